"""Where a run's time and traffic go, as parts of the HTML page."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mpcache.report import tables
from mpcache.report.charts import Bar, bars
from mpcache.report.markup import Markup, table, tag

TOP_SCOPES = 100
PARTS = (
    ("compute", "computing"),
    ("wait", "waiting for a peer"),
    ("transfer", "moving messages"),
    ("deal", "taking corrections"),
)
MEANING = (
    "Computing: a party's own arithmetic, and whatever else the machine did meanwhile. Waiting for"
    " a peer: until the slowest peer began to send. Moving messages: from then on until all were"
    " there, an emulated network's delay included. Taking corrections: waiting for the dealer, and"
    " copying what it dealt. Parties on one host share its processor cores, and the dealer's."
)
BUSY = 1.5  # computing over processor time, from which on others had the processor


def time_section(report: dict[str, Any]) -> Markup:
    """Seconds of each party by what it did, of each phase and of its components."""
    shown: list[Any] = [tag("h3", "Where the time goes")]
    steps = max(1, report["new_tokens"] - 1)
    for phase, title, share in (
        ("decode", "A token, on average", 1 / steps),
        ("prefill", "The prompt (prefill)", 1.0),
    ):
        total = _all(report, phase)
        if total is None or not total["seconds"]:
            continue
        shown.append(tag("h4", title))
        rows = _by_party(total, share) if "by_party" in total else [_whole("slowest party", total)]
        rows += _dealer_bar(report, phase, share)
        shown.append(bars(rows, PARTS if "by_party" in total else ()))
    if any("by_party" in (_all(report, phase) or {}) for phase in ("decode", "prefill")):
        shown.append(tag("p", MEANING, class_="soft"))
    shown += [tag("p", text, class_="soft") for text in (_dealer(report), _crowded(report)) if text]
    for phase in ("decode", "prefill"):
        shown += _components(report, phase)
    return tag("div", *shown)


def _all(report: dict[str, Any], phase: str) -> dict[str, Any] | None:
    """All scopes of a phase, summed."""
    found = tables.components(report["secure"][phase], depth=0, top=None)
    return found[0][1] if found else None


def _by_party(total: dict[str, Any], share: float) -> list[Bar]:
    times = total["by_party"]
    return [
        Bar(
            f"party {rank}",
            tables.in_seconds(seconds * share),
            [(style, size * share) for style, size in tables.split(times, rank)],
        )
        for rank, seconds in enumerate(times["seconds"])
    ]


def _whole(label: str, total: dict[str, Any]) -> Bar:
    return Bar(label, tables.in_seconds(total["seconds"]), [("compute", total["seconds"])])


def _dealer_bar(report: dict[str, Any], phase: str, share: float) -> list[Bar]:
    work = report["secure"].get("dealer", {}).get("phases", {}).get(phase)
    if not work or not work["seconds"]:
        return []
    seconds = work["seconds"] * share
    return [Bar("dealer, at the same time", tables.in_seconds(seconds), [("compute", seconds)])]


def _dealer(report: dict[str, Any]) -> str:
    dealer = report["secure"].get("dealer")
    if not dealer:
        return ""
    if dealer.get("source") == "store":
        return "All correlations were dealt ahead from a store; no dealer ran."
    parts = ", ".join(
        f"{phase} {tables.in_seconds(work['seconds'])} and {tables.in_bytes(work['dealt_bytes'])}"
        for phase, work in dealer.get("phases", {}).items()
    )
    return (
        f"The dealer worked {tables.in_seconds(dealer['seconds'])} in all, beside the parties,"
        f" within {tables.in_seconds(dealer['elapsed_seconds'])}{f': {parts}' if parts else ''}."
    )


def _crowded(report: dict[str, Any]) -> str:
    """Says so if others had the processor while the parties would have computed."""
    computing = busy = 0.0
    for phase in ("decode", "prefill"):
        times = (_all(report, phase) or {}).get("by_party", {})
        if "busy_seconds" not in times:
            return ""
        computing += sum(tables.split(times, rank)[0][1] for rank in range(report["parties"]))
        busy += sum(times["busy_seconds"])
    if busy <= 0 or computing < BUSY * busy:
        return ""
    return (
        f"The processor was shared: of {tables.in_seconds(computing)} that the parties were"
        f" computing, it worked for them {tables.in_seconds(busy)}. On an idle machine, or with a"
        " host for each party, this run would be faster."
    )


def _components(report: dict[str, Any], phase: str) -> list[Markup]:
    """The components that take longest; each bar is the mean of the parties."""
    ranked = tables.components(report["secure"][phase], depth=2, top=None)
    ranked = sorted(ranked, key=lambda item: -item[1]["seconds"])[: tables.TOP_COMPONENTS]
    if not any(total["seconds"] for _, total in ranked):
        return []
    known = all("by_party" in total for _, total in ranked)
    whose = "the mean of the parties" if known else "the slowest party, waiting included"
    rows = [_mean(name, total) if known else _whole(name, total) for name, total in ranked]
    title = tag("h4", f"{phase} by component: all steps and layers, {whose}")
    return [title, bars(rows, PARTS if known else ())]


def _mean(name: str, total: dict[str, Any]) -> Bar:
    times = total["by_party"]
    count = len(times["seconds"])
    sums: dict[str, float] = {}
    for rank in range(count):
        for style, size in tables.split(times, rank):
            sums[style] = sums.get(style, 0.0) + size / count
    seconds = sum(times["seconds"]) / count
    return Bar(name, tables.in_seconds(seconds), list(sums.items()))


# --- traffic -------------------------------------------------------------------------------------


def traffic_section(report: dict[str, Any]) -> Markup:
    """Rounds and bytes by scope, the costliest first."""
    shown: list[Any] = [tag("h3", "Rounds and bytes by scope")]
    for phase in ("decode", "prefill"):
        measured = report["secure"][phase]
        ranked = [item for item in tables.components(measured, top=None) if _sent(item[1])]
        if not ranked:
            continue
        top = ranked[: tables.TOP_COMPONENTS]
        shown.append(tag("h4", f"{phase}: bytes sent by both parties together, layers summed"))
        sizes = [(name, sum(total["sent_bytes"])) for name, total in top]
        shown.append(bars([Bar(n, tables.in_bytes(size), [("size", size)]) for n, size in sizes]))
        shown.append(_collapsed(f"{phase}: all {len(ranked)} components", ranked))
        scopes = [item for item in measured["by_scope"].items() if _sent(item[1])]
        scopes.sort(key=lambda item: (-sum(item[1]["sent_bytes"]), item[0]))
        if len(scopes) > len(ranked):
            some = f"the first {TOP_SCOPES} of " if len(scopes) > TOP_SCOPES else "all "
            title = f"{phase}: {some}{len(scopes)} scopes, by bytes sent"
            shown.append(_collapsed(title, scopes[:TOP_SCOPES]))
    return tag("div", *shown)


def _sent(entry: dict[str, Any]) -> bool:
    return bool(entry["rounds"] or any(entry["sent_bytes"]) or any(entry["dealt_bytes"]))


def _collapsed(title: str, items: Sequence[tuple[str, dict[str, Any]]]) -> Markup:
    rows = [
        (
            name,
            f"{entry['rounds']:,}",
            tables.exact(entry["sent_bytes"]),
            tables.exact(entry["dealt_bytes"]),
            tables.in_seconds(entry["seconds"]),
        )
        for name, entry in items
    ]
    head = ("scope", "rounds", "bytes sent, by party", "bytes dealt, by party", "seconds, slowest")
    return tag("details", tag("summary", title), table(head, rows))
