"""Rows of a sweep as a table on the screen and as Markdown, the machine in the caption."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from mpcache.report import tables

Row = dict[str, Any]
MEASURES = (
    *("seconds, median (least to most)", "rounds", "sent, most", "dealt", "dealer's seconds"),
    "plaintext",
)
NAMES = {
    "decode": ("cache", "tokens", "layers", "protocol", "network"),
    "prefill": ("cache", "tokens", "layers", "protocol", "network"),
    "ops": ("operator", "protocol", "network"),
}
TITLES = {
    "decode": "one decode step",
    "prefill": "a prompt through the layers",
    "ops": "operators",
}


def head(kind: str) -> tuple[str, ...]:
    return (*NAMES[kind], *MEASURES)


def cells(row: Row) -> tuple[str, ...]:
    """What a row shows, as text."""
    seconds = row["seconds"]
    network = f"{row['network']} (emulated)" if row["emulated"] else row["network"]
    names: tuple[str, ...] = (row["protocol"], network)
    if row["kind"] == "ops":
        names = (row["operator"], *names)
    else:
        cache = row["cache"] + (f" {row['dynamic_keep']:g}" if "dynamic_keep" in row else "")
        names = (cache, f"{row['context']:,}", str(row["layers"]), *names)
    short = tables.in_seconds
    dealt = row["protocol"] == "dealer"
    return (
        *names,
        f"{short(seconds['median'])} ({short(seconds['min'])} to {short(seconds['max'])})",
        f"{row['rounds']:,}",
        tables.in_bytes(max(row["sent_bytes"])),
        tables.in_bytes(row["dealt_bytes"]) if dealt else "-",
        short(row["dealer_seconds"]) if dealt else "-",
        short(row["plaintext_seconds"]["median"]),
    )


def caption(rows: Sequence[Row]) -> str:
    """Where and how the rows were measured."""
    counts = sorted({row["seconds"]["count"] for row in rows})
    models = sorted({row["model"] for row in rows if "model" in row})
    what = f"{', '.join(models)}, synthetic weights; " if models else ""
    return (
        f"{what}two processes on a plain socket pair, everything dealt before, medians of"
        f" {' or '.join(map(str, counts))} steps; measured on {tables.machine(rows[0])}."
    )


def screen(rows: Sequence[Row]) -> Table:
    kind = rows[0]["kind"]
    table = Table(title=TITLES[kind], caption=escape(caption(rows)), caption_justify="left")
    for name in head(kind):
        table.add_column(name, justify="left" if name in NAMES[kind] else "right")
    for row in rows:
        table.add_row(*map(escape, cells(row)))
    return table


def markdown(rows: Sequence[Row]) -> str:
    kind = rows[0]["kind"]
    titles = head(kind)
    lines = ["| " + " | ".join(titles) + " |"]
    lines.append("| " + " | ".join("---" if t in NAMES[kind] else "---:" for t in titles) + " |")
    lines.extend("| " + " | ".join(cells(row)) + " |" for row in rows)
    return "\n".join(lines) + "\n\n" + caption(rows)
