"""What a run would take elsewhere, and what was measured in pieces: curves of the HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mpcache.report import tables
from mpcache.report.compare import FULL
from mpcache.report.markup import Markup, table, tag
from mpcache.report.plots import Curve, plot

PREDICTED = (
    "Predicted from the plaintext twin, no run: rounds and bytes are exact, seconds come from this"
    " machine's calibration. local: all processes on this host; lan (3 Gbit/s, 0.3 ms) and wan (400"
    " Mbit/s, 40 ms): each process on a host like this one."
)
COUNTED = (
    "Predicted from the plaintext twin, no run: rounds and bytes are exact; this machine is not"
    " calibrated, so there are no seconds (mpcache cost --calibrate)."
)


def outlook_section(report: dict[str, Any]) -> Markup | None:
    """A token at other lengths, with the full cache and on other networks."""
    rows = report.get("outlook") or []
    if not rows:
        return None
    head, shown = tables.outlook_rows(report)
    networks = head[5:]
    note = PREDICTED if networks else COUNTED
    return tag(
        "div",
        tag("h3", "A token at other lengths and on other networks (predicted)"),
        tag("p", note, class_="soft"),
        tag("div", *_outlook_plots(rows, networks), class_="plots"),
        table(head, shown),
        *(tag("p", text, class_="soft") for text in cheaper(rows)),
    )


def _outlook_plots(rows: Sequence[dict[str, Any]], networks: Sequence[str]) -> list[Markup]:
    caches = list(dict.fromkeys(row["cache"] for row in rows))
    found = []
    sent = [
        Curve(cache, [(r["context"], max(r["sent_bytes"])) for r in rows if r["cache"] == cache])
        for cache in caches
    ]
    found.append(plot(sent, "tokens before", tables.in_bytes, "Bytes sent a token"))
    for network in networks:
        curves = [
            Curve(
                cache,
                [(r["context"], r["seconds"][network]) for r in rows if r["cache"] == cache],
                dashed=True,
            )
            for cache in caches
        ]
        title = f"Seconds a token, {network}"
        found.append(plot(curves, "tokens before", tables.in_seconds, title))
    return [picture for picture in found if picture is not None]


def cheaper(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Where the policy costs less than the full cache: a sentence for bytes and each network."""
    policy = next((row["cache"] for row in rows if row["cache"] != FULL), None)
    if policy is None:
        return []
    table_of = {(row["context"], row["cache"]): row for row in rows}
    contexts = sorted({context for context, _ in table_of})
    found = []
    for network in ("", *(rows[0].get("seconds") or {})):
        name = f"seconds, {network}" if network else "bytes sent"

        def read(context: int, cache: str, network: str = network) -> float:
            row = table_of[context, cache]
            return float(row["seconds"][network] if network else max(row["sent_bytes"]))

        ratios = {context: read(context, FULL) / read(context, policy) for context in contexts}
        less = [c for c in contexts if ratios[c] > 1]
        where = f"from {less[0]:,} tokens on" if less == contexts[-len(less) :] and less else ""
        if not less:
            where = "at none of these lengths: here the full cache is the cheaper one"
        elif not where:
            where = f"at {', '.join(f'{c:,}' for c in less)} tokens"
        last = contexts[-1]
        found.append(
            f"{name}: {policy} takes less than the full cache {where}; at {last:,} tokens the full"
            f" cache takes {ratios[last]:.2f} times as much."
        )
    return found
