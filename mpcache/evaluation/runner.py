"""Windows one by one, skipping what is there; then summary, table and charts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from mpcache import __version__
from mpcache.errors import UsageError
from mpcache.evaluation import charts, tables, tasks
from mpcache.evaluation.fixed import FixedMachine
from mpcache.evaluation.lanes import Engine
from mpcache.evaluation.recall import recall
from mpcache.evaluation.settings import Settings, cells
from mpcache.evaluation.store import Cell, Result, Store, Subject
from mpcache.evaluation.summary import HEADLINE, kind_of, summarise
from mpcache.evaluation.tasks import Key, Say
from mpcache.evaluation.texts import Text, Windows, load_text
from mpcache.eviction.base import Policy
from mpcache.heap import free_at_once
from mpcache.models.decoder import load_weights
from mpcache.models.registry import Source, find
from mpcache.protocols.operation import PlainMachine
from mpcache.protocols.setting import Setting
from mpcache.report.console import print_warnings
from mpcache.report.files import write_atomic, write_json_to
from mpcache.report.machine import describe_machine

if TYPE_CHECKING:
    from rich.console import Console

Measure = Callable[
    [Engine, int, Mapping[Key, Policy], Say], Iterator[dict[Key, Result]]
]  # engine, window, policies


@dataclass(frozen=True)
class Job:
    """A task, ready to run: everything that can be wrong with its input has been checked.

    Attributes:
        prompt_tokens: of a window; of each window where they differ.
    """

    task: str
    settings: Settings
    source: Source
    text: Text
    prompt_tokens: int | Sequence[int]
    new_tokens: int
    measure: Measure

    def policies(self, window: int) -> dict[Key, Policy]:
        """Every policy at every budget, for the prompt of a window."""
        prompt = self.prompt_of(window)
        found = cells(self.settings.policies, self.settings.budgets, prompt)
        return {key: policy.fitted(self.source.spec) for key, policy in found.items()}

    def prompt_of(self, window: int) -> int:
        counts = self.prompt_tokens
        return counts if isinstance(counts, int) else counts[window]

    @property
    def subject(self) -> Subject:
        settings = self.settings
        return Subject(
            model=self.source.spec.name,
            weights=self.source.origin,
            text=self.text.digest,
            context=settings.context,
            decode=self.new_tokens,
            seed=settings.seed,
            arithmetic=settings.arithmetic,
        )


def prepare(task: str, settings: Settings) -> Job:
    """Check the input of a task and cut the text.

    Raises:
        UsageError: an option, the text or the model does not do.
    """
    charts.require()
    settings.check()
    text = load_text(settings.texts)
    source = find(settings.model, settings.weights, settings.seed)
    source.check()
    settings = settings.able(source.spec)
    settings.check_model(source, settings.context + EXTRA[task])
    return JOBS[task](settings, source, text)


def _perplexity(settings: Settings, source: Source, text: Text) -> Job:
    length = settings.context + 1
    windows = Windows(source.tokenizer(), text, length, settings.windows, settings.seed)

    def measure(
        engine: Engine, window: int, policies: Mapping[Key, Policy], say: Say
    ) -> Iterator[dict[Key, Result]]:
        return tasks.perplexity(
            engine, windows[window], settings.decode, policies, settings.lanes, say
        )

    prompt = settings.context - settings.decode
    return Job("perplexity", settings, source, text, prompt, settings.decode, measure)


def _agreement(settings: Settings, source: Source, text: Text) -> Job:
    prompt = settings.context - settings.decode
    windows = Windows(source.tokenizer(), text, prompt, settings.windows, settings.seed)

    def measure(
        engine: Engine, window: int, policies: Mapping[Key, Policy], say: Say
    ) -> Iterator[dict[Key, Result]]:
        return tasks.agreement(
            engine, windows[window], settings.decode, policies, settings.lanes, say
        )

    return Job("agreement", settings, source, text, prompt, settings.decode, measure)


def _recall(settings: Settings, source: Source, text: Text) -> Job:
    codec = source.tokenizer()
    windows = Windows(codec, text, settings.context, settings.windows, settings.seed)

    def measure(
        engine: Engine, window: int, policies: Mapping[Key, Policy], say: Say
    ) -> Iterator[dict[Key, Result]]:
        return recall(engine, windows[window], settings.decode, policies, say)

    prompt = settings.context - settings.decode
    return Job("recall", settings, source, text, prompt, settings.decode, measure)


def _passkey(settings: Settings, source: Source, text: Text) -> Job:
    codec = source.tokenizer()
    needed = tasks.passkey_tokens(codec)
    if settings.context <= needed:
        raise UsageError(
            f"--context {settings.context}: the passkey's own text has {needed} tokens; give more"
        )
    fillers = Windows(codec, text, settings.context, settings.windows, settings.seed)

    def measure(
        engine: Engine, window: int, policies: Mapping[Key, Policy], say: Say
    ) -> Iterator[dict[Key, Result]]:
        filler = fillers[window][len(codec.empty) :]
        hidden = tasks.hide(codec, filler, settings.context, window, settings.seed)
        return tasks.passkey(engine, codec, hidden, policies, settings.lanes, say)

    return Job(
        "passkey", settings, source, text, settings.context, tasks.ANSWER_TOKENS - 1, measure
    )


EXTRA = {"perplexity": 0, "agreement": 0, "recall": 0, "passkey": tasks.ANSWER_TOKENS}
JOBS: dict[str, Callable[[Settings, Source, Text], Job]] = {
    "perplexity": _perplexity,
    "passkey": _passkey,
    "recall": _recall,
    "agreement": _agreement,
}


def engine_of(settings: Settings, source: Source) -> Engine:
    """The model's weights on the machine that the arithmetic asks for."""
    free_at_once()
    setting = Setting(suite="dealer")
    machine: PlainMachine | FixedMachine
    if settings.arithmetic == "fixed":
        machine = FixedMachine(setting, settings.seed)
    else:
        machine = PlainMachine(setting, settings.device)
    with torch.inference_mode():
        return Engine(machine, load_weights(machine, source.spec, source.lazy()))


def run(task: str, settings: Settings, console: Console) -> dict[str, Any]:
    """Measure what is missing, and write the summary, the table and the charts.

    Raises:
        UsageError: a mistake in the input; nothing was started.
    """
    job = prepare(task, settings)
    with Store(settings.out) as store:
        return run_job(job, store, console, Loaded(settings, job.source))


class Loaded:
    """The engine, loaded when it is first asked for."""

    def __init__(self, settings: Settings, source: Source) -> None:
        self.settings, self.source = settings, source
        self._engine: Engine | None = None

    def __call__(self, console: Console) -> Engine:
        if self._engine is None:
            with console.status("loading the model"):
                self._engine = engine_of(self.settings, self.source)
        return self._engine


def run_job(job: Job, store: Store, console: Console, loaded: Loaded) -> dict[str, Any]:
    """Measure what a job misses in the store, and publish it."""
    print_warnings(console, [text for text in (job.source.notice, job.text.notice) if text])
    every = {window: job.policies(window) for window in range(job.settings.windows)}
    missing = {
        window: {
            key: policy
            for key, policy in policies.items()
            if not _there(job, key, policy, store, window)
        }
        for window, policies in every.items()
    }
    missing = {window: some for window, some in missing.items() if some}
    _measure(job, store, missing, sum(map(len, every.values())), console, loaded)
    summary = summarise_job(job, store, list(every[0]))
    publish(job, summary, console)
    return summary


def _at(job: Job, key: Key, window: int) -> Cell:
    return Cell(job.task, job.subject, key[0], key[1], window)


def _there(job: Job, key: Key, policy: Policy, store: Store, window: int) -> bool:
    """Whether a window was measured, and under the policy as it is now."""
    found = store.results.get(_at(job, key, window))
    return found is not None and found.get("options") == repr(policy)


def _counts(policy: Policy, prompt_tokens: int, new_tokens: int) -> dict[str, Any]:
    """Public token counts: stored after the prompt, and attended to in a step on average."""
    budget = policy.budget(prompt_tokens, new_tokens + 1)
    return {
        "stored": budget.static,
        "attended": sum(budget.dynamic) / len(budget.dynamic),
        "options": repr(policy),
    }


def _measure(
    job: Job,
    store: Store,
    missing: Mapping[int, Mapping[Key, Policy]],
    every: int,
    console: Console,
    loaded: Loaded,
) -> None:
    total = sum(len(some) for some in missing.values())
    if every > total:
        console.print(f"{every - total} of {every} measurements are there already")
    if not total:
        return
    engine = loaded(console)
    columns = [TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn()]
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        bar = progress.add_task(job.task, total=total)
        for number, (window, policies) in enumerate(missing.items(), 1):

            def say(what: str, number: int = number) -> None:
                progress.update(bar, description=f"window {number} of {len(missing)}: {what}")

            prompt = job.prompt_of(window)
            counts = {key: _counts(one, prompt, job.new_tokens) for key, one in policies.items()}
            for results in job.measure(engine, window, policies, say):
                store.add(
                    {
                        _at(job, key, window): {**counts[key], **result}
                        for key, result in results.items()
                    }
                )
                progress.advance(bar, len(results))
    if isinstance(engine.machine, FixedMachine) and engine.machine.lost:
        beyond = f"{engine.machine.lost:,} values were beyond what the parties' primitives read"
        print_warnings(console, [beyond])


def summarise_job(job: Job, store: Store, keys: Sequence[Key]) -> dict[str, Any]:
    """The summary of the windows and policies that were asked for."""
    every = [_at(job, key, window) for key in keys for window in range(job.settings.windows)]
    wanted = {cell: store.results[cell] for cell in every}
    warnings = [f"left out: {why}" for why in job.settings.left_out]
    if job.source.kind == "synthetic":
        warnings.append("synthetic weights: these figures say nothing about a trained model")
    if job.text.notice:
        warnings.append(job.text.notice)
    return {
        "version": __version__,
        "task": job.task,
        "subject": asdict(job.subject),
        "text": job.text.origin,
        "text_sha256": job.text.sha256,
        "machine": describe_machine(),
        "warnings": warnings,
        "rows": summarise(wanted, job.task, job.subject),
    }


def publish(job: Job, summary: dict[str, Any], console: Console) -> None:
    """Write `<task>.json`, `.md`, `.png` and `.svg`, and show the table."""
    out, task, rows = job.settings.out, job.task, summary["rows"]
    write_json_to(out / f"{task}.json", summary)
    write_atomic(out / f"{task}.md", tables.page(task, summary))
    value, label = HEADLINE[kind_of(task)]
    title = f"{summary['subject']['model']}, {summary['subject']['context']} tokens"
    charts.over_budget(rows, value, title, label, out / task)
    show(console, task, *tables.task_rows(task, rows))
    print_warnings(console, summary["warnings"])
    console.print(f"written: {escape(str(out / task))}.md, .json, .png, .svg", soft_wrap=True)


def show(
    console: Console, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]
) -> None:
    table = Table(title=escape(title), title_justify="left")
    for number, name in enumerate(header):
        table.add_column(name, justify="left" if number == 0 else "right", no_wrap=True)
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)
