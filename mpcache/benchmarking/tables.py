"""Rows of a sweep as a table on the screen and as Markdown, the machine in the caption."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rich.markup import escape
from rich.table import Table

from mpcache.benchmarking import scaling
from mpcache.report import tables
from mpcache.report.page_time import BUSY

Row = dict[str, Any]
SETTING = ("protocol", "parties", "profile", "network", "device")
NAMES = {
    "decode": ("cache", "tokens", "layers", *SETTING),
    "prefill": ("cache", "tokens", "layers", *SETTING),
    "ops": ("operator", *SETTING),
}
TITLES = {
    "decode": "one decode step",
    "prefill": "a prompt through the layers",
    "ops": "operators",
}


def cells(row: Row) -> dict[str, str]:
    """What a row shows, as text by column."""
    seconds, short = row["seconds"], tables.in_seconds
    dealt = row["protocol"] == "dealer"
    network = f"{row['network']} (emulated)" if row["emulated"] else row["network"]
    shown = {
        "protocol": row["protocol"],
        "parties": str(row["parties"]),
        "profile": row["profile"] or "the usual",
        "network": network,
        "device": row["device"],
    }
    if row["kind"] == "ops":
        shown["operator"] = row["operator"]
    else:
        keep = f" {row['keep']:.0%}" if "keep" in row else ""
        shown["cache"] = row["cache"] + keep
        whole = " (whole model)" * row["whole"]
        shown |= {"tokens": f"{row['context']:,}", "layers": f"{row['layers']}{whole}"}
    return {name: shown[name] for name in NAMES[row["kind"]]} | {
        "seconds": short(seconds["median"]),
        "least to most": f"{short(seconds['min'])} to {short(seconds['max'])}",
        **_foreseen(row),
        "rounds": f"{row['rounds']:,}",
        "sent": tables.in_bytes(max(row["sent_bytes"])),
        "dealt": tables.in_bytes(row["dealt_bytes"]) if dealt else "-",
        "dealer": short(row["dealer_seconds"]) if dealt else "-",
        "ahead": short(row["ahead_seconds"]) if row.get("ahead_seconds") else "-",
        "plaintext": short(row["plaintext_seconds"]["median"]),
    }


def _foreseen(row: Row) -> dict[str, str]:
    """The predicted seconds, and what the cache alone takes and sends."""
    found = {}
    if row["kind"] != "ops":
        predicted = row["predicted_seconds"]
        off = "" if predicted is None else f" ({predicted / row['seconds']['median'] - 1:+.0%})"
        found["predicted"] = "-" if predicted is None else tables.in_seconds(predicted) + off
        found["attention"] = tables.in_seconds(row["attention"]["seconds"])
    return found


def columns(rows: Sequence[Row]) -> list[str]:
    """Columns that are shown: those in which rows differ, and the figures."""
    return _columns(rows)[0]


def _columns(rows: Sequence[Row]) -> tuple[list[str], list[str]]:
    """Columns that are shown, and those that name what all rows have in common."""
    kind, shown = rows[0]["kind"], [cells(row) for row in rows]
    common = [
        name
        for name in NAMES[kind][1:]
        if name != "tokens" and len({row[name] for row in shown}) == 1
    ]
    return [name for name in shown[0] if name not in common], common


def caption(rows: Sequence[Row]) -> str:
    """Where and how the rows were measured."""
    counts = sorted({row["seconds"]["count"] for row in rows})
    models = sorted({row["model"] for row in rows if "model" in row})
    first = cells(rows[0])
    usual = {"parties": "2", "profile": "the usual", "device": "cpu"}
    common = "".join(
        f"{name} {first[name]}; " for name in _columns(rows)[1] if first[name] != usual.get(name)
    )
    dealt = " everything dealt before," * any(row["protocol"] == "dealer" for row in rows)
    if any(row.get("ahead_seconds") for row in rows):
        dealt += " party 1's masks multiplied with the weights before (ahead),"
    what = f"{', '.join(models)}, synthetic weights; " if models else ""
    return (
        f"{what}{common}sent: by the party that sends most; two processes on a plain socket pair,"
        f"{dealt} medians of {' or '.join(map(str, counts))} steps; measured on"
        f" {tables.machine(rows[0])}.{crowded(rows)}"
    )


def crowded(rows: Sequence[Row]) -> str:
    """Says so if other processes had the processor while the parties would have computed."""
    parts = [part for row in rows for part in row["parts"]]
    computing, busy = (sum(part[name] for part in parts) for name in ("compute", "busy"))
    if computing < BUSY * busy:
        return ""
    return (
        " The processor was shared with other work: it worked for the parties"
        f" {busy / computing:.0%} of the time that they were computing. Seconds are too long."
    )


FACTORS = ("full over", "tokens", "step: time", "sent", "attention: time", "sent there")


def factor_rows(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """How many times as much the full cache takes, as text under `FACTORS`."""
    found = scaling.factors(rows)
    several = len({factor.setting for factor in found}) > 1
    return [
        (
            factor.cache + (f", {factor.setting}" if several else ""),
            f"{factor.context:,}",
            f"{factor.seconds:.2f}",
            f"{factor.sent:.2f}",
            f"{factor.attention_seconds:.2f}",
            f"{factor.attention_sent:.2f}",
        )
        for factor in found
    ]


def screen(rows: Sequence[Row]) -> list[Table]:
    """The measured rows, and how caches compare with the full one."""
    kind = rows[0]["kind"]
    table = Table(title=TITLES[kind], caption=escape(caption(rows)), caption_justify="left")
    names = columns(rows)
    for name in names:
        left = name in NAMES[kind]
        table.add_column(name, justify="left" if left else "right", no_wrap=not left)
    for row in rows:
        shown = cells(row)
        table.add_row(*(escape(shown[name]) for name in names))
    for sentence in scaling.sentences(rows):
        table.caption = f"{table.caption}\n{escape(sentence)}"
    compared = Table(title="the full cache over others: how many times as much")
    for name in FACTORS:
        compared.add_column(name, justify="left" if name == FACTORS[0] else "right")
    for line in factor_rows(rows):
        compared.add_row(*map(escape, line))
    return [table, compared] if compared.row_count else [table]


def markdown(rows: Sequence[Row]) -> str:
    names, left = columns(rows), NAMES[rows[0]["kind"]]
    shown = [cells(row) for row in rows]
    text = _table(names, [[row[name] for name in names] for row in shown], left)
    text += "\n\n" + caption(rows)
    compared = factor_rows(rows)
    if compared:
        text += "\n\nHow many times as much the full cache takes:\n\n"
        text += _table(FACTORS, compared, FACTORS[:1])
    said = "".join(f"\n- {sentence}" for sentence in scaling.sentences(rows))
    return text + (f"\n{said}" if said else "")


def _table(names: Sequence[str], lines: Sequence[Sequence[str]], left: Sequence[str]) -> str:
    head = ["| " + " | ".join(names) + " |"]
    head.append("| " + " | ".join("---" if name in left else "---:" for name in names) + " |")
    return "\n".join(head + ["| " + " | ".join(line) + " |" for line in lines])
