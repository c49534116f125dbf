"""How a decode step grows with the context, by cache, and where one cache begins to cost less."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

Row = dict[str, Any]
Read = Callable[[Row], float]
LEAST = 4  # contexts that a fit needs
LONG = 2048  # tokens from which on caches are compared with the paper's figures
OURS, FULL = "mpcache", "full"
SETTING = ("model", "layers", "whole", "protocol", "parties", "profile", "network")
MEASURES: dict[str, Read] = {
    "seconds": lambda row: row["seconds"]["median"],
    "seconds of attention": lambda row: row["attention"]["seconds"],
    "bytes sent": lambda row: max(row["sent_bytes"]),
    "bytes dealt": lambda row: row["dealt_bytes"],
}
PAPER_LATENCY, PAPER_BYTES = (1.8, 2.01), (3.39, 8.37)
PAPER = (
    f"MPCache's paper reports {PAPER_LATENCY[0]} to {PAPER_LATENCY[1]} times lower decode latency"
    f" and {PAPER_BYTES[0]} to {PAPER_BYTES[1]} times less communication (arXiv 2501.06807, on"
    " other machines and another protocol)."
)


def exponent(contexts: Sequence[float], values: Sequence[float]) -> tuple[float, float]:
    """e of the power law c T^e that fits best in logarithms, and its standard error."""
    x, y = np.log(contexts), np.log(values)
    fitted = np.polyfit(x, y, 1)
    off = y - np.polyval(fitted, x)
    spread = float(((x - x.mean()) ** 2).sum())
    return float(fitted[0]), math.sqrt(float((off**2).sum()) / (len(x) - 2) / spread)


def crossover(
    contexts: Sequence[int], small: Sequence[float], full: Sequence[float]
) -> float | None:
    """The context from which on `small` stays below `full`: between two measured ones by the line
    through their logarithms. The first context if it is below everywhere, None if not at the last.
    """
    gaps = [math.log(a / b) for a, b in zip(small, full, strict=True)]
    if gaps[-1] >= 0:
        return None
    last = max((i for i, gap in enumerate(gaps) if gap >= 0), default=-1)
    if last < 0:
        return float(contexts[0])
    share = gaps[last] / (gaps[last] - gaps[last + 1])
    left, right = math.log(contexts[last]), math.log(contexts[last + 1])
    return math.exp(left + share * (right - left))


def groups(rows: Sequence[Row]) -> dict[str, dict[str, dict[int, Row]]]:
    """Decode rows by what was measured but for cache and context: name -> cache -> context."""
    decodes = [row for row in rows if row["kind"] == "decode"]
    several = {name for name in SETTING if len({str(row.get(name)) for row in decodes}) > 1} | {
        "protocol",
        "network",
    }
    found: dict[str, dict[str, dict[int, Row]]] = {}
    for row in decodes:
        parts = [_said(name, row.get(name)) for name in SETTING if name in several]
        name = ", ".join(part for part in parts if part)
        found.setdefault(name, {}).setdefault(row["cache"], {})[row["context"]] = row
    return found


def _said(name: str, value: Any) -> str:
    if name == "whole":
        return "whole model" if value else ""
    return f"{value} {name}" if name in ("layers", "parties") else str(value or "")


def sentences(rows: Sequence[Row]) -> list[str]:
    """How costs grow, where a cache begins to cost less, and how that is beside the paper's."""
    found = []
    for name, every in groups(rows).items():
        caches = {cache: table for cache, table in every.items() if len(table) >= LEAST}
        for measure, read in MEASURES.items():
            parts = [
                f"{cache} {power:.2f} (standard error {error:.2f})"
                for cache, table in caches.items()
                if all(read(row) for row in table.values())
                for power, error in [_fit(table, read)]
            ]
            if parts:
                text = f"{name}: {measure} grow with T to the power of"
                found.append(f"{text} {', '.join(parts)}.{_crossing(caches, read)}")
        context = _longest(every)
        if context is not None:
            found.append(_verdict(name, every, context))
    return found


@dataclass(frozen=True)
class Factor:
    """How many times as much the full cache takes as another one, in one setting."""

    setting: str
    cache: str
    context: int
    seconds: float
    sent: float
    attention_seconds: float
    attention_sent: float


def factors(rows: Sequence[Row]) -> list[Factor]:
    """Every cache against the full one, where both were measured in the same setting."""
    return [
        _factor(name, cache, context, table[context], every[FULL][context])
        for name, every in groups(rows).items()
        if FULL in every
        for cache, table in every.items()
        if cache != FULL
        for context in sorted(table.keys() & every[FULL].keys())
    ]


def _factor(name: str, cache: str, context: int, ours: Row, full: Row) -> Factor:
    mine, theirs = ours["attention"], full["attention"]
    return Factor(
        name,
        cache,
        context,
        full["seconds"]["median"] / ours["seconds"]["median"],
        max(full["sent_bytes"]) / max(ours["sent_bytes"]),
        theirs["seconds"] / mine["seconds"],
        max(theirs["sent_bytes"]) / max(mine["sent_bytes"]),
    )


def _longest(every: dict[str, dict[int, Row]]) -> int | None:
    """The longest context that both mpcache and the full cache were measured at, if it is long."""
    both = every.get(OURS, {}).keys() & every.get(FULL, {}).keys()
    return max(both) if both and max(both) >= LONG else None


def _verdict(name: str, every: dict[str, dict[int, Row]], context: int) -> str:
    """The full cache against mpcache at a context, beside what the paper reports."""
    found = _factor(name, OURS, context, every[OURS][context], every[FULL][context])
    low = PAPER_LATENCY[0]
    text = (
        f"{name}: at T = {context:,} a step takes {found.seconds:.2f} times as long with the full"
        f" cache as with {OURS} and sends {found.sent:.2f} times as much; attention alone"
        f" {found.attention_seconds:.2f} and {found.attention_sent:.2f} times. {PAPER}"
    )
    if found.attention_seconds >= low:
        return text
    cheap = "is cheap" if found.attention_seconds > 1 else "is the cheaper one"
    return (
        f"{text} Here the full cache {cheap}: attention over all tokens costs this suite less than"
        f" {low} times what it costs over the chosen ones."
    )


def _fit(table: dict[int, Row], read: Read) -> tuple[float, float]:
    contexts = sorted(table)
    return exponent(contexts, [read(table[context]) for context in contexts])


def _crossing(caches: dict[str, dict[int, Row]], read: Read) -> str:
    if not {OURS, FULL} <= caches.keys():
        return ""
    contexts = sorted(caches[OURS].keys() & caches[FULL].keys())
    if not contexts:
        return ""
    small, full = ([read(caches[name][c]) for c in contexts] for name in (OURS, FULL))
    below = [c for c, mine, other in zip(contexts, small, full, strict=True) if mine < other]
    if not below:
        return f" {OURS} is below {FULL} at none of them."
    at = crossover(contexts, small, full)
    if at is None:
        return f" {OURS} is below {FULL} at T = {', '.join(f'{c:,}' for c in below)} alone."
    if at == contexts[0]:
        return f" {OURS} is below {FULL} from T = {contexts[0]:,}, the least measured, on."
    return f" {OURS} is below {FULL} from about T = {at:,.0f} on."
