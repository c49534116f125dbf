"""`mpcache eval`: accuracy of cache policies on real text, in plaintext, priced for MPC."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mpcache.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from mpcache.evaluation.settings import Settings

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Measure what cache policies do to a model's answers on real text; nothing is secret.",
)

Out = Annotated[Path, typer.Option(help="Folder of the results; a run that stopped goes on there.")]
Model = Annotated[str, typer.Option(help="A name from `mpcache models`, or a folder.")]
Weights = Annotated[str, typer.Option(help="auto, required or synthetic.")]
Text = Annotated[
    list[str] | None,
    typer.Option(
        help="A UTF-8 file, or the name of a text that every installation has:"
        " pydoc_data.topics (the default) or networkx; repeatable."
    ),
]
Learned = Annotated[
    list[str] | None,
    typer.Option(help="A UTF-8 file; repeatable. Else docstrings of Python's library."),
]
Policies = Annotated[str | None, typer.Option(help="Names, with commas between; all by default.")]
Budgets = Annotated[str, typer.Option(help="Percent of the prompt's tokens, commas between.")]
Context = Annotated[int, typer.Option(help="Tokens of a window.")]
Decode = Annotated[int, typer.Option(help="How many of them are decoded one by one.")]
Windows = Annotated[int, typer.Option(help="Windows of text.")]
Keys = Annotated[int, typer.Option("--keys", help="Hidden passkeys, each at its own depth.")]
Seed = Annotated[int, typer.Option(min=0, help="Which windows and keys; synthetic weights.")]
Arithmetic = Annotated[
    str,
    typer.Option(help="float, or fixed: what the parties of suite dealer compute, in the clear."),
]
Device = Annotated[str, typer.Option(help="cpu or cuda; cuda with float arithmetic only.")]
Lanes = Annotated[int, typer.Option(help="Caches that decode beside each other; takes memory.")]

OUT = Path("runs/eval")
BUDGETS = "5,10,20,50"


def _settings(**given: Any) -> Settings:
    from mpcache.evaluation.settings import Settings, parse_budgets, parse_policies

    given["every"] = given["policies"] is None
    given["policies"] = parse_policies(given["policies"], given["arithmetic"])
    given["budgets"] = parse_budgets(given["budgets"])
    given["texts"] = tuple(given.pop("text") or ())
    return Settings(**given)


def _lessons(**given: Any) -> Settings:
    """What a policy learns from: nothing is decoded."""
    plain = {"decode": 1, "arithmetic": "float", "lanes": 1}
    return _settings(policies="full", budgets="100", **plain, **given)


def _counted(keys: int) -> int:
    """`keys`, which the tasks read as windows.

    Raises:
        UsageError: there are none.
    """
    if keys < 1:
        raise UsageError(f"--keys {keys}: expected 1 or more")
    return keys


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False)


def _run(task: str, **given: Any) -> None:
    settings = _settings(**given)
    from mpcache.evaluation import runner

    runner.run(task, settings, _console())


@app.command()
def perplexity(
    policies: Policies = None,
    budgets: Budgets = BUDGETS,
    windows: Windows = 8,
    context: Context = 1024,
    decode: Decode = 128,
    model: Model = "smollm2",
    weights: Weights = "auto",
    text: Text = None,
    seed: Seed = 0,
    arithmetic: Arithmetic = "float",
    device: Device = "cpu",
    lanes: Lanes = 16,
    out: Out = OUT,
) -> None:
    """Perplexity over the full cache's: the end of each window decoded token by token."""
    _run("perplexity", **locals())


@app.command()
def passkey(
    policies: Policies = None,
    budgets: Budgets = BUDGETS,
    keys: Keys = 20,
    context: Context = 1024,
    model: Model = "smollm2",
    weights: Weights = "auto",
    text: Text = None,
    seed: Seed = 0,
    arithmetic: Arithmetic = "float",
    device: Device = "cpu",
    lanes: Lanes = 16,
    out: Out = OUT,
) -> None:
    """Five digits hidden in a prompt: are they found after the prompt has been evicted from?"""
    given = locals()
    _run("passkey", windows=_counted(given.pop("keys")), decode=1, **given)


@app.command()
def recall(
    policies: Policies = None,
    budgets: Budgets = BUDGETS,
    windows: Windows = 4,
    context: Context = 1024,
    decode: Decode = 64,
    model: Model = "smollm2",
    weights: Weights = "auto",
    text: Text = None,
    seed: Seed = 0,
    arithmetic: Arithmetic = "float",
    device: Device = "cpu",
    out: Out = OUT,
) -> None:
    """Share of the full cache's attention that lies on what a policy attends to."""
    _run("recall", **locals())


@app.command()
def agreement(
    policies: Policies = None,
    budgets: Budgets = BUDGETS,
    windows: Windows = 8,
    context: Context = 1024,
    decode: Decode = 128,
    model: Model = "smollm2",
    weights: Weights = "auto",
    text: Text = None,
    seed: Seed = 0,
    arithmetic: Arithmetic = "float",
    device: Device = "cpu",
    lanes: Lanes = 16,
    out: Out = OUT,
) -> None:
    """Share of the full cache's greedy tokens that a policy would choose as well."""
    _run("agreement", **locals())


@app.command()
def pareto(
    policies: Policies = None,
    budgets: Budgets = BUDGETS,
    windows: Windows = 8,
    keys: Keys = 20,
    context: Context = 1024,
    decode: Decode = 128,
    model: Model = "smollm2",
    weights: Weights = "auto",
    text: Text = None,
    seed: Seed = 0,
    arithmetic: Arithmetic = "float",
    device: Device = "cpu",
    lanes: Lanes = 16,
    out: Out = OUT,
) -> None:
    """Perplexity and passkeys against the price of a token on shares; runs what --out lacks."""
    given = locals()
    count = _counted(given.pop("keys"))
    settings = _settings(**given)
    from mpcache.evaluation import pareto as task

    task.run(settings, count, _console())


@app.command()
def longbench(
    data: Annotated[Path, typer.Option(help="Folder of LongBench's or XSUM's *.jsonl.")],
    tasks: Annotated[
        str | None, typer.Option(help="Files by name without .jsonl, commas between; all else.")
    ] = None,
    records: Annotated[int, typer.Option(help="Of each file, from its top; 0 for all.")] = 0,
    max_new_tokens: Annotated[
        int, typer.Option(help="Of an answer at most; 0 for the published number.")
    ] = 0,
    policies: Policies = None,
    budgets: Budgets = BUDGETS,
    context: Annotated[int, typer.Option(help="Tokens of prompt and answer at most.")] = 2048,
    model: Model = "smollm2",
    weights: Weights = "auto",
    arithmetic: Arithmetic = "float",
    device: Device = "cpu",
    lanes: Lanes = 16,
    out: Out = OUT,
) -> None:
    """Questions on long texts from files that you have: answers scored as LongBench does."""
    names = () if tasks is None else tuple(dict.fromkeys(n.strip() for n in tasks.split(",")))
    settings = _settings(
        policies=policies, budgets=budgets, windows=records, context=context, model=model,
        weights=weights, text=None, arithmetic=arithmetic, device=device, lanes=lanes, out=out,
    )  # fmt: skip
    from mpcache.evaluation import longbench as task

    task.run(settings, data, names, max_new_tokens, _console())


@app.command()
def preferences(
    windows: Windows = 8,
    context: Context = 1024,
    model: Model = "smollm2",
    weights: Weights = "auto",
    text: Learned = None,
    seed: Seed = 0,
    device: Device = "cpu",
    out: Annotated[Path, typer.Option(help="Table to write into.")] = OUT / "cake.yaml",
) -> None:
    """Measure what part of a budget each layer prefers, for cache policy cake; made public."""
    given = _lessons(**locals())
    from mpcache.evaluation import ahead

    ahead.preferences(given, out, _console())


@app.command()
def gates(
    windows: Windows = 24,
    context: Context = 1024,
    model: Model = "smollm2",
    weights: Weights = "auto",
    text: Learned = None,
    seed: Seed = 0,
    device: Device = "cpu",
    out: Annotated[
        Path | None, typer.Option(help="A .safetensors file; else where this host looks for them.")
    ] = None,
) -> None:
    """Train the gates of cache policy attention-gate for a model, which stays as it is."""
    given = _lessons(**{**locals(), "out": out or OUT})
    from mpcache.evaluation import ahead

    ahead.gates(given, out, _console())


@app.command()
def readme(
    source: Annotated[
        list[Path] | None,
        typer.Option(
            "--from",
            help="Folder that `eval pareto` wrote, runs/eval by default; repeatable: the same"
            " policies and budgets on other texts go beside it.",
        ),
    ] = None,
    file: Annotated[Path, typer.Option(help="Markdown file with the markers.")] = Path("README.md"),
) -> None:
    """Write the table of `eval pareto` between its markers in the README, its charts to docs/."""
    from mpcache.evaluation.readme import write

    for path in write(source or [OUT], file):
        typer.echo(f"written: {path}")
