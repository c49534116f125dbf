"""Long-context questions from data files: every policy answers greedily, scored as published."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from mpcache.errors import UsageError
from mpcache.evaluation import charts, metrics, runner, tables, tasks
from mpcache.evaluation.lanes import Engine
from mpcache.evaluation.longbench_data import DataSet, Record, read_folder
from mpcache.evaluation.longbench_prompts import TASKS, encoded
from mpcache.evaluation.runner import Job, Loaded
from mpcache.evaluation.settings import Settings
from mpcache.evaluation.store import Result, Store
from mpcache.evaluation.tasks import Key, Say
from mpcache.evaluation.texts import Text
from mpcache.eviction.base import Policy
from mpcache.models.registry import Source
from mpcache.report.files import write_atomic, write_json_to

if TYPE_CHECKING:
    from rich.console import Console

Row = dict[str, Any]
NAME = "longbench"


def run(
    settings: Settings, data: Path, only: Sequence[str], answer: int, console: Console
) -> dict[str, Any]:
    """Measure every data set in a folder, then write one table of them all.

    Args:
        settings: `windows` is how many records of each file; 0 for all of them.
        only: names of files without their ending; all of them if empty.
        answer: at most so many tokens an answer; 0 for what is published.

    Raises:
        UsageError: a mistake in an option or in a file; nothing was started.
    """
    jobs = prepare(settings, data, only, answer)
    loaded = Loaded(settings, jobs[0].source)
    with Store(settings.out) as store:
        summaries = {job.task: runner.run_job(job, store, console, loaded) for job in jobs}
        result = overview(summaries)
    publish(settings, result, console)
    return result


def prepare(settings: Settings, data: Path, only: Sequence[str], answer: int) -> list[Job]:
    """Read and check everything, and cut the prompts.

    Raises:
        UsageError: see `run`.
    """
    charts.require()
    if settings.windows < 0 or answer < 0:
        raise UsageError("--records and --max-new-tokens: expected 1 or more, or 0 for all")
    replace(settings, windows=1, decode=1, context=max(settings.context, 2)).check()
    sets = read_folder(data)
    labels = [one.label for one in sets]
    for name in only:
        if name not in labels:
            raise UsageError(f"--tasks: {data} has no {name}.jsonl; it has {', '.join(labels)}")
    source = runner.find(settings.model, settings.weights, settings.seed)
    source.check()
    settings = settings.able(source.spec)
    settings.check_model(source, settings.context)
    return [_job(settings, source, one, answer) for one in sets if not only or one.label in only]


def _job(settings: Settings, source: Source, data: DataSet, answer: int) -> Job:
    task, codec = TASKS[data.task], source.tokenizer()
    new_tokens = min(task.new_tokens, answer or task.new_tokens)
    room = settings.context - new_tokens
    if room < 1:
        raise UsageError(
            f"--context {settings.context} leaves no prompt before the {new_tokens} tokens of an"
            f" answer of {data.label}; give more, or fewer --max-new-tokens"
        )
    records = data.records[: settings.windows or None]
    texts = [task.filled(record.context, record.question) for record in data.records]
    prompts = [encoded(codec, text, room, task.chat) for text in texts[: len(records)]]
    stop = list(source.spec.eos_ids)

    def measure(
        engine: Engine, window: int, policies: Mapping[Key, Policy], say: Say
    ) -> Iterator[dict[Key, Result]]:
        return answered(
            engine, source, prompts[window], records[window], data.task, new_tokens, policies,
            settings.lanes, say, stop,
        )  # fmt: skip

    truths = [repr((record.answers, record.classes)) for record in data.records]
    return Job(
        task=f"{NAME}-{data.label}",
        settings=replace(settings, windows=len(records), decode=new_tokens),
        source=source,
        text=Text(f"{data.label}.jsonl", "\n".join([*texts, *truths])),
        prompt_tokens=[len(prompt) for prompt in prompts],
        new_tokens=new_tokens,
        measure=measure,
    )


def answered(
    engine: Engine,
    source: Source,
    prompt: Sequence[int],
    record: Record,
    name: str,
    new_tokens: int,
    policies: Mapping[Key, Policy],
    lanes: int,
    say: Say,
    stop: Sequence[int],
) -> Iterator[dict[Key, Result]]:
    """Each policy's greedy answer up to its end or `new_tokens`, and its score."""
    task, codec = TASKS[name], source.tokenizer()
    say("prefill")
    prefill = engine.prefill(prompt)
    for batch in tasks.batches(policies, lanes):
        running = tasks.started(engine, prefill, batch, new_tokens, say)
        results: dict[Key, Result] = {}
        for key, ids in tasks.decoded(engine, running, new_tokens, say, stop).items():
            answer = codec.decode(ids)
            score = metrics.score(
                task.metric, answer, record.answers, record.classes, task.first_line
            )
            results[key] = {
                "score": score, "answer": answer, "tokens": len(ids), "record": record.name,
                "prompt": len(prompt),
            }  # fmt: skip
        yield results


# --- all data sets together ----------------------------------------------------------------------


def overview(summaries: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """A row a policy and budget: the score on each data set, and their plain mean."""
    labels = {task: task.removeprefix(f"{NAME}-") for task in summaries}
    found: dict[Key, Row] = {}
    for task, summary in summaries.items():
        for row in summary["rows"]:
            key = row["policy"], row["budget"]
            one = found.setdefault(key, {"policy": key[0], "budget": key[1], "scores": {}})
            one["scores"][labels[task]] = {name: row[name] for name in ("score", "score_error")}
    for row in found.values():
        scores = [one["score"] for one in row["scores"].values()]
        errors = [one["score_error"] for one in row["scores"].values()]
        row["score"] = sum(scores) / len(scores)
        known = [error for error in errors if error is not None]
        row["score_error"] = (
            sum(error**2 for error in known) ** 0.5 / len(scores)
            if len(known) == len(scores)
            else None
        )
    first = next(iter(summaries.values()))
    return {
        "version": first["version"],
        "data": {
            labels[task]: {"records": summary["rows"][0]["windows"], **summary["subject"]}
            for task, summary in summaries.items()
        },
        "machine": first["machine"],
        "warnings": first["warnings"],
        "rows": list(found.values()),
    }


def table(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    names = list(result["data"])
    body = []
    for row in result["rows"]:
        cells = [row["policy"], f"{row['budget']:g}"]
        cells.append(tables.with_error(row["score"], row["score_error"]))
        for name in names:
            cells.append(tables.with_error(**_named(row["scores"][name])))
        body.append(cells)
    return ["policy", "budget %", "mean", *names], body


def _named(score: Mapping[str, Any]) -> dict[str, Any]:
    return {"value": score["score"], "error": score["score_error"]}


def publish(settings: Settings, result: dict[str, Any], console: Console) -> None:
    """Write `longbench.json`, `.md`, `.png` and `.svg`, and show the table."""
    out = settings.out / NAME
    first = next(iter(result["data"].values()))
    records = ", ".join(f"{name} {one['records']}" for name, one in result["data"].items())
    warning = "".join(f"**{text}**\n\n" for text in result["warnings"])
    header, body = table(result)
    text = (
        f"# {NAME}\n\n{warning}{tables.NOTES[NAME]} Prompts in words of our own after the published"
        f" ones, their middle cut to fit; greedy answers; plaintext. Records: {records}.\n\n"
        f"{tables.markdown(header, body)}\n{first['model']} ({first['weights']}), at most"
        f" {first['context']} tokens with the answer, {first['arithmetic']} arithmetic.\n"
    )
    write_json_to(out.with_suffix(".json"), result)
    write_atomic(out.with_suffix(".md"), text)
    title = f"{first['model']}, {first['context']} tokens, {len(result['data'])} data sets"
    charts.over_budget(result["rows"], "score", title, "mean score, 0 to 1", out)
    runner.show(console, NAME, header, body)
    console.print(f"written: {escape(str(out))}.md, .json, .png, .svg", soft_wrap=True)
