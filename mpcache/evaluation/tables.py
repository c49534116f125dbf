"""Markdown of results; the screen shows the same rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from mpcache.evaluation.summary import kind_of

Row = Mapping[str, Any]
COLUMNS: dict[str, list[tuple[str, str, str | None]]] = {  # task -> (title, value, its error)
    "perplexity": [
        ("ratio", "ratio", "ratio_error"),
        ("perplexity", "perplexity", "perplexity_error"),
    ],
    "passkey": [("exact", "exact", "exact_error"), ("digits", "digits", "digits_error")],
    "agreement": [("agreement", "agreement", "agreement_error"), ("prefix", "prefix", None)],
    "recall": [
        ("mass", "mass", "mass_error"),
        ("without sink", "mass_without_sink", "mass_without_sink_error"),
    ],
    "longbench": [("score", "score", "score_error")],
}
NOTES = {
    "perplexity": "Perplexity over the full cache's on the same windows, with its standard error"
    " (paired over windows); then the perplexity itself, whose error is that over windows.",
    "passkey": "Share of five-digit keys answered exactly by greedy decoding, and of digits in"
    " their place.",
    "agreement": "Share of the full cache's greedy tokens that the policy would choose as well,"
    " fed the same tokens; mean count before the first difference.",
    "recall": "Share of the full cache's attention mass that lies on what the policy attends to,"
    " mean over steps, layers and query heads; then without the first four tokens.",
    "longbench": "Score from 0 to 1 by the metric that LongBench publishes for the data set, mean"
    " over its records.",
}


def with_error(value: float | None, error: float | None) -> str:
    if value is None:
        return "-"
    shown = f"{value:.2f}" if abs(value) >= 10 else f"{value:.3f}"
    return shown if error is None else f"{shown} ± {error:.3f}"


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, columns padded to equal width."""
    cells = [[cell.replace("|", "\\|") for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ["| " + " | ".join(map(str.ljust, row, widths)) + " |" for row in cells]
    lines.insert(1, "| " + " | ".join("-" * width for width in widths) + " |")
    return "\n".join(lines) + "\n"


def task_rows(task: str, rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of a task's table."""
    columns = COLUMNS[kind_of(task)]
    header = ["policy", "budget %", "attended", "stored", "windows", *(c[0] for c in columns)]
    body = []
    for row in rows:
        cells = [str(row["policy"]), f"{row['budget']:g}"]
        cells += [f"{row[name]:.0f}" if name in row else "-" for name in ("attended", "stored")]
        cells.append(str(row["windows"]))
        for _, name, error in columns:
            cells.append(with_error(row.get(name), row.get(error) if error else None))
        body.append(cells)
    return header, body


def subject_line(summary: Mapping[str, Any]) -> str:
    """What was measured, on what: the caption of every number."""
    subject = summary["subject"]
    return (
        f"{subject['model']} ({subject['weights']}), text {summary['text']} (SHA-256"
        f" {subject['text']}...), {subject['context']} tokens of which the last"
        f" {subject['decode']} decoded, seed {subject['seed']}, {subject['arithmetic']} arithmetic,"
        " plaintext."
    )


def page(task: str, summary: Mapping[str, Any]) -> str:
    """The Markdown page of a task."""
    table = markdown(*task_rows(task, summary["rows"]))
    warning = "".join(f"**{text}**\n\n" for text in summary.get("warnings", ()))
    return (
        f"# {task}\n\n{warning}{NOTES[kind_of(task)]} Budgets are percent of the prompt's tokens;"
        " *attended* is the mean count of tokens that a decode step attends to, *stored* what is"
        f" kept after the prompt.\n\n{table}\n{subject_line(summary)}\n"
    )
