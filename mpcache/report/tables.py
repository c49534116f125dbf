"""The rows that the screen and the Markdown page both show, as text."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import Any

_NUMBERED = re.compile(r"^(layer|token|step)s?[-_]?\d+$")
TOP_COMPONENTS = 12


def in_bytes(size: float) -> str:
    """``1.5 MB``: decimal units, as networks count."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.4g} {unit}"
    return f"{size:.4g} B"


def in_seconds(seconds: float | None) -> str:
    if seconds is None:
        return "-"
    if seconds < 1e-3:
        return f"{seconds * 1e6:.3g} us"
    return f"{seconds * 1e3:.3g} ms" if seconds < 1 else f"{seconds:.3f} s"


def by_party(sizes: Sequence[float] | None) -> str:
    """Bytes of each party in the order of ranks; one figure where all are equal."""
    if not sizes:
        return "-"
    if len(set(sizes)) == 1:
        return f"{in_bytes(sizes[0])} each"
    return ", ".join(in_bytes(size) for size in sizes)


def headline(report: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(what, plaintext, secret-shared) of the summary table."""
    plain, secure = report["plaintext"], report["secure"]
    prefill, token = secure["prefill"], secure["decode"]["per_token"]
    rounds = "-" if token["rounds"] is None else f"{token['rounds']:,.6g}"
    rows = [
        ("setup", "-", in_seconds(secure["setup"]["seconds"])),
        ("prefill", in_seconds(plain["prefill_seconds"]), in_seconds(prefill["seconds"])),
        ("a token", in_seconds(plain["decode_seconds_per_token"]), in_seconds(token["seconds"])),
        *_spread(token),
        ("rounds, prefill", "-", f"{prefill['rounds']:,}"),
        ("rounds, a token", "-", rounds),
        ("bytes sent, setup", "-", by_party(secure["setup"]["sent_bytes"])),
        ("bytes sent, prefill", "-", by_party(prefill["sent_bytes"])),
        ("bytes sent, a token", "-", by_party(token["sent_bytes"])),
    ]
    if any(prefill["dealt_bytes"]) or any(secure["decode"]["dealt_bytes"]):
        rows.append(("bytes dealt, prefill", "-", by_party(prefill["dealt_bytes"])))
        rows.append(("bytes dealt, a token", "-", by_party(token["dealt_bytes"])))
    if secure.get("dealer", {}).get("source") == "store":
        rows.append(("dealer's work, all", "-", "0, dealt ahead from a store"))
    elif "dealer" in secure:
        rows.append(("dealer's work, all", "-", in_seconds(secure["dealer"]["seconds"])))
    return rows


def _spread(token: dict[str, Any]) -> list[tuple[str, str, str]]:
    """Tokens do not take equally long; reports of earlier versions do not say so."""
    median, slowest = token.get("median_seconds"), token.get("slowest_seconds")
    if median is None or slowest is None:
        return []
    told = f"{in_seconds(median)}, {in_seconds(slowest)}"
    return [("a token, median and slowest", "-", told)]


def against_prediction(report: dict[str, Any]) -> list[tuple[str, str, str]]:
    """(what, measured, predicted): counts, and seconds where they were predicted."""
    rows = []
    secure, predicted = report["secure"], report["predicted"]
    for phase in ("prefill", "decode"):
        for name in ("rounds", "sent_bytes", "dealt_bytes"):
            measured, said = secure[phase][name], predicted[phase][name]
            rows.append((f"{phase}, {name}", exact(measured), exact(said)))
    for what, measured, said in _foreseen(report):
        rows.append((f"{what}, seconds", in_seconds(measured), _with_error(said, measured)))
    return rows


def _foreseen(report: dict[str, Any]) -> list[tuple[str, float, float]]:
    """(what, measured, predicted seconds), where both are known."""
    secure, predicted = report["secure"], report["predicted"]
    token = secure["decode"]["per_token"]["seconds"]
    rows = (
        ("prefill", secure["prefill"]["seconds"], predicted["prefill"].get("seconds")),
        ("a token", token, predicted["decode"].get("seconds_per_token")),
    )
    return [(what, took, said) for what, took, said in rows if took and said is not None]


def _with_error(said: float, measured: float) -> str:
    return f"{in_seconds(said)} ({said / measured - 1:+.0%})"


def foreseen(report: dict[str, Any]) -> str:
    """A sentence on the seconds that were predicted, and how far they were off."""
    found = _foreseen(report)
    if not found:
        return "predicted seconds: none, this machine is not calibrated (mpcache cost --calibrate)"
    parts = (f"{what} {_with_error(said, measured)}" for what, measured, said in found)
    return f"predicted seconds, and how far off: {', '.join(parts)}"


def components(
    phase: dict[str, Any], depth: int | None = None, top: int | None = TOP_COMPONENTS
) -> list[tuple[str, dict[str, Any]]]:
    """The costliest components of a phase: scopes without layer numbers, summed, by bytes sent.

    Args:
        depth: how many parts of a scope's path name its component; all if None.
        top: how many components; all if None.

    Returns:
        (component, totals); `by_party` is missing where a scope of it has none.
    """
    totals: dict[str, list[dict[str, Any]]] = {}
    for path, entry in phase["by_scope"].items():
        parts = [part for part in path.split("/") if not _NUMBERED.match(part)]
        totals.setdefault("/".join(parts[:depth]) or "layers", []).append(entry)
    summed = {name: _total(entries) for name, entries in totals.items()}
    return sorted(summed.items(), key=lambda item: (-sum(item[1]["sent_bytes"]), item[0]))[:top]


def _total(entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
    total = {
        "rounds": sum(entry["rounds"] for entry in entries),
        "seconds": sum(entry["seconds"] for entry in entries),
        "sent_bytes": _by_rank([entry["sent_bytes"] for entry in entries]),
        "dealt_bytes": _by_rank([entry["dealt_bytes"] for entry in entries]),
    }
    if all("by_party" in entry for entry in entries):
        times = [entry["by_party"] for entry in entries]
        total["by_party"] = {name: _by_rank([t[name] for t in times]) for name in times[0]}
    return total


def _by_rank(rows: Sequence[Sequence[Any]]) -> list[Any]:
    return [sum(column) for column in zip(*rows, strict=True)]


def split(times: dict[str, Sequence[float]], rank: int) -> list[tuple[str, float]]:
    """A party's seconds as parts of a bar; what is not told apart is computing."""
    away = [
        (style, times[name][rank] if name in times else 0.0)
        for style, name in (
            ("wait", "wait_seconds"),
            ("transfer", "transfer_seconds"),
            ("deal", "dealer_seconds"),
        )
    ]
    own = times["seconds"][rank] - sum(size for _, size in away)
    return [("compute", max(0.0, own)), *away]


def time_rows(report: dict[str, Any]) -> list[tuple[str, ...]]:
    """(who, computing, waiting, moving messages, taking corrections) of each phase and party."""
    rows: list[tuple[str, ...]] = []
    for phase in ("prefill", "decode"):
        found = components(report["secure"][phase], depth=0, top=None)
        times = found[0][1].get("by_party", {}) if found else {}
        for rank in range(len(times.get("seconds", ()))):
            parts = [in_seconds(size) for _, size in split(times, rank)]
            rows.append((f"{phase}, party {rank}", *parts))
        work = report["secure"].get("dealer", {}).get("phases", {}).get(phase)
        if work:
            rows.append((f"{phase}, dealer", in_seconds(work["seconds"]), "-", "-", "-"))
    return rows


def outlook_rows(report: dict[str, Any]) -> tuple[list[str], list[tuple[str, ...]]]:
    """The head and the rows of what a token would take at other lengths and on other networks."""
    rows = report.get("outlook") or []
    networks = list((rows[0]["seconds"] or {}) if rows else {})
    head = ["tokens before", "cache", "rounds", "sent, by party", "dealt", *networks]
    return head, [
        (
            f"{row['context']:,}",
            row["cache"],
            f"{row['rounds']:,}",
            by_party(row["sent_bytes"]),
            in_bytes(max(row["dealt_bytes"])),
            *(in_seconds((row["seconds"] or {}).get(network)) for network in networks),
        )
        for row in rows
    ]


def agreement(report: dict[str, Any]) -> list[str]:
    """Sentences on how far the secret-shared run follows the plaintext twin."""
    found, temperature = report["agreement"], sampled_at(report)
    equal = f"{found['equal_tokens']} of {found['total_tokens']} tokens"
    lines = [f"{equal} equal the plaintext twin's under the same cache policy."]
    if temperature:
        lines = [
            f"Tokens were sampled at temperature {temperature:g}, so agreement below 100% is"
            f" expected: {equal} are the plaintext twin's likeliest on the same prefix, under the"
            " same cache policy."
        ]
    for tie in found["near_ties"]:
        lines.append(
            f"Token {tie['position']} differs: {tie['secure_id']} against {tie['plain_id']}, which"
            f" the twin holds {tie['margin']:.3g} apart in logits."
        )
    if found["max_logit_error"] is not None:
        lines.append(
            f"Logit error: at most {found['max_logit_error']:.3g}, {found['mean_logit_error']:.3g}"
            " on average" + (", under the parties' choices." if found.get("choices") else ".")
        )
    if found.get("choices"):
        lines.append(
            f"Choices of the cache: {found['differing_choices']:,} of {found['choices']:,} differ"
            " from what the twin would choose there."
        )
    if found.get("followed_tokens") is not None:
        lines.append(
            f"{found['followed_tokens']} of {found['total_tokens']} tokens equal the twin's under"
            " the parties' choices."
        )
    return lines


def sampled_at(report: dict[str, Any]) -> float:
    """The temperature of a run whose tokens were drawn; 0 where they are the likeliest."""
    return float(report["config"].get("temperature", 0.0))


def network(report: dict[str, Any]) -> str:
    wire = report["network"]
    if not wire["emulated"]:
        return "loopback or real network, nothing emulated"
    rate = f"{wire['mbps']:g} Mbps" if wire["mbps"] else "no limit of rate"
    return f"emulated: {rate}, {wire['rtt_ms']:g} ms round trip"


def machine(report: dict[str, Any]) -> str:
    """The caption of every number."""
    facts = report["machine"]
    memory = in_bytes(facts["memory_bytes"]) if facts.get("memory_bytes") else "unknown"
    return (
        f"{facts['cpu']}, {facts['cores']} cores, {memory} memory, {facts['system']},"
        f" Python {facts['python']}, torch {facts['torch']}"
    )


def memory(report: dict[str, Any]) -> str:
    """A sentence on the memory of all processes of a run."""
    found = report["machine"].get("peak_memory")
    if found is None:
        parties = by_party(report["machine"]["peak_memory_bytes"])
        return f"Peak memory of the parties {parties}; of other processes it was not measured."
    each = ", ".join(f"{name} {in_bytes(size)}" for name, size in found["by_process"].items())
    if "together" in found:
        return (
            f"Peak memory: {each}; together {in_bytes(found['together'])} at one time, looked at"
            " twice a second."
        )
    return (
        f"Peak memory: {each}; {in_bytes(found['sum'])} is the sum of each process' peak, an upper"
        " bound of what was in use together."
    )


def arithmetic(report: dict[str, Any]) -> list[str]:
    """Sentences on whether the model stays in the ring's ranges, and on local truncation."""
    found = (report.get(name) for name in ("ranges", "truncation"))
    return [f"{part['says'][0].upper()}{part['says'][1:]}." for part in found if part]


def model(report: dict[str, Any]) -> str:
    facts = report["model"]
    return (
        f"{facts['name']} ({facts['family']}, {facts['parameters']:,} parameters,"
        f" {facts['layers']} layers, {facts['weights']} weights)"
    )


def exact(value: int | list[int]) -> str:
    if isinstance(value, list):
        return ", ".join(f"{size:,}" for size in value)
    return f"{value:,}"


def runs(counts: Sequence[int | Sequence[int]]) -> str:
    """``12 (x30)`` for thirty equal layers; ``9 to 12`` where a step's layers differ."""
    said = [
        f"{count}" if isinstance(count, int) else f"{min(count)} to {max(count)}"
        for count in counts
    ]
    groups = [(text, len(list(equal))) for text, equal in itertools.groupby(said)]
    parts = [f"{text} (x{times})" if times > 1 else text for text, times in groups]
    return ", ".join(parts) or "none"
