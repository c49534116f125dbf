"""How a decode step grows with the context, by cache, and where one cache begins to cost less."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

Row = dict[str, Any]
LEAST = 4  # contexts that a fit needs
MEASURES = {
    "seconds": lambda row: row["seconds"]["median"],
    "bytes sent": lambda row: max(row["sent_bytes"]),
    "bytes dealt": lambda row: row["dealt_bytes"],
}


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


def sentences(rows: Sequence[Row]) -> list[str]:
    """What the rows say, where caches were measured at enough contexts in one setting."""
    groups: dict[tuple[Any, ...], dict[str, dict[int, Row]]] = {}
    for row in rows:
        if row["kind"] == "decode":
            key = row["protocol"], row["network"], row["layers"]
            groups.setdefault(key, {}).setdefault(row["cache"], {})[row["context"]] = row
    found = []
    for (protocol, network, _), every in groups.items():
        caches = {name: table for name, table in every.items() if len(table) >= LEAST}
        for name, read in MEASURES.items():
            parts = [
                f"{cache} {power:.2f} (standard error {error:.2f})"
                for cache, table in caches.items()
                if all(read(row) for row in table.values())
                for power, error in [_fit(table, read)]
            ]
            if parts:
                text = f"{protocol}, {network}: {name} grow with T to the power of"
                found.append(f"{text} {', '.join(parts)}.{_crossing(caches, read)}")
        found += [
            f"{protocol}, {network}: {text}"
            for other in every
            for text in [_reduction(every, other)]
            if text
        ]
    return found


def _reduction(caches: dict[str, dict[int, Row]], name: str) -> str:
    """How much less than with the full cache attention takes and sends, projections apart."""
    if name == "full" or "full" not in caches:
        return ""
    parts = []
    for context in sorted(caches[name].keys() & caches["full"].keys()):
        ours, full = (caches[which][context]["attention"] for which in (name, "full"))
        faster = full["seconds"] / ours["seconds"]
        fewer = max(full["sent_bytes"]) / max(ours["sent_bytes"])
        parts.append(f"T = {context:,} {faster:.2f} and {fewer:.2f}")
    return (
        (
            f"in attention, projections apart, {name} is faster and sends less than full by the"
            f" factors {', '.join(parts)}."
        )
        if parts
        else ""
    )


def _fit(table: dict[int, Row], read: Any) -> tuple[float, float]:
    contexts = sorted(table)
    return exponent(contexts, [read(table[context]) for context in contexts])


def _crossing(caches: dict[str, dict[int, Row]], read: Any) -> str:
    if not {"mpcache", "full"} <= caches.keys():
        return ""
    contexts = sorted(caches["mpcache"].keys() & caches["full"].keys())
    if not contexts:
        return ""
    small, full = ([read(caches[name][c]) for c in contexts] for name in ("mpcache", "full"))
    below = [c for c, mine, other in zip(contexts, small, full, strict=True) if mine < other]
    if not below:
        return " mpcache is below full at none of them."
    at = crossover(contexts, small, full)
    if at is None:
        return f" mpcache is below full at T = {', '.join(f'{c:,}' for c in below)} alone."
    if at == contexts[0]:
        return f" mpcache is below full from T = {contexts[0]:,}, the least measured, on."
    return f" mpcache is below full from about T = {at:,.0f} on."
