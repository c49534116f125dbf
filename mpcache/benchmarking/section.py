"""Lines of `mpcache bench` as a section of the HTML page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mpcache.benchmarking import scaling, sweep, tables
from mpcache.errors import UsageError
from mpcache.report import tables as figures
from mpcache.report.charts import Bar, bars
from mpcache.report.markup import Markup, table, tag
from mpcache.report.page_time import PARTS
from mpcache.report.plots import Curve, plot

Row = dict[str, Any]
TITLES = {
    "decode": "Measured: one decode step",
    "prefill": "Measured: a prompt",
    "ops": "Measured: single operators",
}


def section(path: Path) -> Markup:
    """A table, curves over the context and what the rows say, of one file of lines.

    Raises:
        UsageError: it is no file of lines, or an empty one.
    """
    rows = sweep.read_lines(path)
    if not rows:
        raise UsageError(f"{path} is empty; run `mpcache bench` again")
    try:
        return _section(path.stem, rows)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise UsageError(
            f"{path} is damaged, or of another version ({type(error).__name__}: {error}); run"
            " `mpcache bench` again"
        ) from None


def _section(name: str, rows: Sequence[Row]) -> Markup:
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    return tag(
        "section",
        *(_of_kind(name, kind, [row for row in rows if row["kind"] == kind]) for kind in kinds),
    )


def _of_kind(name: str, kind: str, rows: Sequence[Row]) -> Markup:
    names, shown = tables.columns(rows), [tables.cells(row) for row in rows]
    return tag(
        "div",
        tag("h2", f"{TITLES[kind]} ({name})"),
        *(tag("p", sentence) for sentence in scaling.sentences(rows)),
        tag("div", *_curves(rows), class_="plots"),
        _times(rows),
        table(names, [[row[column] for column in names] for row in shown]),
        tag("p", tables.caption(rows), class_="soft"),
        *_compared(rows),
    )


def _compared(rows: Sequence[Row]) -> list[Markup]:
    lines = tables.factor_rows(rows)
    if not lines:
        return []
    title = "How many times as much the full cache takes"
    return [tag("h3", title), table(tables.FACTORS, lines), tag("p", scaling.PAPER, class_="soft")]


def _curves(rows: Sequence[Row]) -> list[Markup]:
    """Seconds and bytes over the context, a curve a cache and setting."""
    if rows[0]["kind"] == "ops":
        return []
    measures: tuple[tuple[str, Callable[[Row], float], Callable[[float], str]], ...] = (
        ("Seconds", lambda row: row["seconds"]["median"], figures.in_seconds),
        ("Seconds of attention", lambda row: row["attention"]["seconds"], figures.in_seconds),
        ("Bytes sent", lambda row: max(row["sent_bytes"]), figures.in_bytes),
    )
    found = []
    for title, read, shown in measures:
        points: dict[str, list[tuple[float, float]]] = {}
        for row in rows:
            points.setdefault(_setting(row, rows), []).append((row["context"], read(row)))
        curves = [Curve(label, sorted(line)) for label, line in points.items()]
        found.append(plot(curves, "tokens of the context", shown, title))
    return [picture for picture in found if picture is not None]


def _setting(row: Row, rows: Sequence[Row]) -> str:
    """The cache, and what else tells rows apart."""
    parts = [row["cache"]]
    for name in ("model", "protocol", "network", "parties", "profile"):
        if len({other.get(name) for other in rows}) > 1:
            parts.append(f"{row[name]} parties" if name == "parties" else str(row[name]))
    return ", ".join(part for part in parts if part)


def _times(rows: Sequence[Row]) -> Markup | None:
    """Where the time of each row goes, of the party that takes longest."""
    if rows[0]["kind"] == "ops":
        return None
    several = len({row["context"] for row in rows}) > 1
    shown = []
    for row in rows:
        slowest = max(row["parts"], key=lambda part: sum(part.values()) - part["busy"])
        parts = [(style, slowest["dealer" if style == "deal" else style]) for style, _ in PARTS]
        label = _setting(row, rows) + (f", {row['context']:,} tokens" if several else "")
        shown.append(Bar(label, figures.in_seconds(sum(size for _, size in parts)), parts))
    return tag("div", tag("h3", "Where the time goes, slowest party"), bars(shown, PARTS))
