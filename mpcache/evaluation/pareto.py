"""Accuracy at its price: perplexity and passkeys against what a token costs on shares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from mpcache import __version__
from mpcache.evaluation import pareto_chart, runner, tables
from mpcache.evaluation.pricing import AXES, PROTOCOL, Clock, decode_price, front
from mpcache.evaluation.settings import Settings, cells
from mpcache.report.console import print_warnings
from mpcache.report.files import write_atomic, write_json_to
from mpcache.report.machine import describe_machine

if TYPE_CHECKING:
    from rich.console import Console

Row = dict[str, Any]
NAME = "pareto"
# Measures of accuracy: the field of a row -> 1 where a low figure is good, -1 where a high one is.
MEASURES = {"ratio": 1, "exact": -1}
MARKS = {"ratio": "*", "exact": "†"}


def run(settings: Settings, keys: int, console: Console) -> dict[str, Any]:
    """Measure what is missing of both tasks, price every policy, and write table and chart.

    Args:
        keys: how many passkeys.

    Raises:
        UsageError: a mistake in the input; nothing was started.
    """
    settings = settings.able(runner.find(settings.model, settings.weights, settings.seed).spec)
    hidden = replace(settings, windows=keys, decode=1)
    for task, given in (("perplexity", settings), ("passkey", hidden)):
        runner.prepare(task, given)
    with console.status("pricing"):  # seconds, and a policy that cannot be priced shows now
        prices = priced(settings)
    measured = {
        "perplexity": runner.run("perplexity", settings, console),
        "passkey": runner.run("passkey", hidden, console),
    }
    result = summary(settings, keys, measured, prices)
    publish(settings, result, console)
    return result


def priced(settings: Settings) -> dict[str, Any]:
    """The price of a token under every policy and budget, after the perplexity's prompt."""
    source = runner.find(settings.model, settings.weights, settings.seed)
    prompt_tokens = settings.context - settings.decode
    clock = Clock.here()
    rows = {
        key: decode_price(source.spec, policy, prompt_tokens, clock)
        for key, policy in cells(settings.policies, settings.budgets, prompt_tokens).items()
    }
    about = {
        "protocol": PROTOCOL,
        "prompt_tokens": prompt_tokens,
        "predicted": True,
        "calibrated": clock.speeds is not None,
        "seconds": clock.note,
    }
    return {"about": about, "rows": rows}


def summary(
    settings: Settings, keys: int, measured: Mapping[str, Any], prices: Mapping[str, Any]
) -> dict[str, Any]:
    found = {
        (row["policy"], row["budget"]): row for row in measured["passkey"]["rows"]
    }  # the tasks have the same policies and budgets
    rows = []
    for row in measured["perplexity"]["rows"]:
        key = row["policy"], row["budget"]
        price = prices["rows"][key]
        both = {**row, "passkeys": found[key]["windows"]}
        both |= {name: found[key][name] for name in ("exact", "exact_error")}
        rows.append({**both, "oblivious": price is not None, **(price or {})})
    mark(rows)
    about = measured["perplexity"]
    return {
        "version": __version__,
        "command": command(settings, keys),
        "subject": about["subject"],
        "text": about["text"],
        "text_sha256": about["text_sha256"],
        "machine": describe_machine(),
        "warnings": about["warnings"],
        "prices": prices["about"],
        "settings": {**asdict(settings), "out": None, "texts": None, "keys": keys},
        "rows": rows,
    }


def mark(rows: Sequence[Row]) -> None:
    """Note in each row on which axes of price it is in front, for each measure of accuracy."""
    for row in rows:
        row["front"] = {measure: [] for measure in MEASURES}
    priced_rows = [row for row in rows if row["oblivious"]]
    for measure, sign in MEASURES.items():
        for axis in AXES:
            marks = front([(row[axis], sign * row[measure]) for row in priced_rows])
            for row, ahead in zip(priced_rows, marks, strict=True):
                if ahead:
                    row["front"][measure].append(axis)


def command(settings: Settings, keys: int) -> str:
    """The command line that gives the same figures."""
    budgets = ",".join(f"{budget:g}" for budget in settings.budgets)
    words = ["mpcache eval pareto", f"--model {settings.model}" * (settings.model != "smollm2")]
    words += [f"--text {Path(name).name}" for name in settings.texts]
    words += [f"--policies {','.join(settings.policies)}", f"--budgets {budgets}"]
    words += [f"--windows {settings.windows} --keys {keys} --context {settings.context}"]
    words += [f"--decode {settings.decode} --seed {settings.seed} --out DIR"]
    return " ".join(word for word in words if word)


# --- what is written -----------------------------------------------------------------------------


PRICES = ("rounds", "online MB", "dealt MB", "lan s", "wan s")


def table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and cells; marks tell on which axes of price a row is in front."""
    header = ["policy", "budget %", "attended", "perplexity ratio", "passkey", *PRICES]
    return header, [
        [*named(row), accuracy(row, "ratio"), accuracy(row, "exact"), *priced_cells(row)]
        for row in rows
    ]


def named(row: Row) -> list[str]:
    return [str(row["policy"]), f"{row['budget']:g}", f"{row['attended']:.0f}"]


def accuracy(row: Row, measure: str) -> str:
    return tables.with_error(row[measure], row[f"{measure}_error"])


def priced_cells(row: Row) -> list[str]:
    """What a token costs, in the order of `PRICES`, with the row's marks."""
    return [_price(row, axis) for axis in AXES]


def _price(row: Row, axis: str) -> str:
    if not row["oblivious"]:
        return "-"
    value = row[axis]
    if axis.endswith("bytes"):
        shown = f"{value / 1e6:.2f}"
    else:
        shown = f"{value:,}" if axis == "rounds" else f"{value:.2f}"
    marks = "".join(mark for name, mark in MARKS.items() if axis in row["front"][name])
    return f"{shown} {marks}".rstrip()


def notes(result: Mapping[str, Any], texts: int = 1) -> str:
    """What the figures are: the text around every table and chart of them, on so many texts."""
    everywhere = " on every text" if texts > 1 else ""
    plain = [row["policy"] for row in result["rows"] if not row["oblivious"]]
    unpriced = f" No price: {', '.join(dict.fromkeys(plain))} (plaintext only)." if plain else ""
    prices = result["prices"]
    return (
        "Accuracy is measured in plaintext, with standard errors: perplexity over the full cache's"
        " on the same windows (lower is better), and the share of"
        f" {result['settings']['keys']} passkeys found exactly. Prices are predicted, not measured:"
        f" one decode step of the whole model in suite `{prices['protocol']}` after"
        f" {prices['prompt_tokens']:,} tokens, counted without data; online bytes are those of both"
        f" parties. {prices['seconds']} Marked: no other policy or budget is as good at a lower"
        f" price{everywhere}, in perplexity (\\*) or in passkeys (†).{unpriced}"
    )


def page(result: Mapping[str, Any]) -> str:
    """The Markdown page."""
    warning = "".join(f"**{text}**\n\n" for text in result["warnings"])
    return (
        f"# Accuracy and price\n\n{warning}{notes(result)}\n\n![chart]({NAME}.svg)\n\n"
        f"{markdown(result)}\n{tables.subject_line(result)}\n\n`{result['command']}`\n"
    )


def markdown(result: Mapping[str, Any]) -> str:
    """The table alone."""
    return marked(*table(result["rows"]))


def marked(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Markdown of cells with marks; that of perplexity is escaped."""
    star = MARKS["ratio"]
    return tables.markdown(header, [[cell.replace(star, f"\\{star}") for cell in r] for r in body])


def publish(settings: Settings, result: dict[str, Any], console: Console) -> None:
    """Write `pareto.json`, `.md`, `.png` and `.svg`, and show the table."""
    out = settings.out / NAME
    write_json_to(out.with_suffix(".json"), result)
    write_atomic(out.with_suffix(".md"), page(result))
    pareto_chart.draw(result, out)
    runner.show(console, NAME, *table(result["rows"]))
    console.print(notes(result).replace("\\", ""), markup=False)
    print_warnings(console, result["warnings"])
    console.print(f"written: {escape(str(out))}.md, .json, .png, .svg", soft_wrap=True)
