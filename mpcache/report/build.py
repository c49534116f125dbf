"""From a `RunRecord` to the fields of report.json, which are a contract."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from mpcache import __version__
from mpcache.config import to_dict
from mpcache.report.checks import run_checks
from mpcache.report.machine import describe_machine
from mpcache.report.record import (
    COUNTS,
    PHASES,
    TIMES,
    Opened,
    PartyRecord,
    PredictedParty,
    RunRecord,
    in_phase,
)

CRYPTEN_WARNINGS = (
    "baseline only: suite crypten uses a first-party provider (TFP): party 0 generates every"
    " triple, and with it could unmask what is shared",
    "baseline only: suite crypten draws its masks from torch's non-cryptographic generator",
)

DEALER_WARNING = (
    "suite dealer protects as long as no two of party 0, party 1 and the dealer work together;"
    " launch runs all three on one host, for measuring"
)

SHARED_WARNING = "the weights are shared: each party has a share of them, and neither knows them"
SPLIT_HERE = "; launch split them itself, so that this host saw them"

STORE_WARNING = (
    "suite dealer protects as long as no two of party 0, party 1 and the dealer work together, and"
    " nobody has read both parties' stores; launch has both of them on one host, for measuring"
)


def build_report(record: RunRecord) -> dict[str, Any]:
    """The report of a run as plain values; bytes and seconds are numbers, lists are by rank.

    The prompt is not in it; the answer is. ``checks`` are booleans: a report with a false one
    is a record of a failure, not a result (`mpcache.report.publish` refuses to render it).
    """
    config, spec = record.config, record.spec
    return {
        "version": __version__,
        "id": record.run_id,
        "config": to_dict(config),
        "machine": {
            **describe_machine(),
            "peak_memory_bytes": [party.peak_memory_bytes for party in record.parties],
            "peak_memory": _peak_memory(record),
        },
        "parties": config.parties,
        "protocol": config.protocol,
        "network": {
            "emulated": config.network.emulated,
            "rtt_ms": config.network.rtt_ms,
            "mbps": config.network.mbps,
        },
        "model": {
            "name": spec.name,
            "family": spec.family,
            "weights": record.weights,
            "origin": record.weights_origin,
            "layers": spec.layers,
            "hidden": spec.hidden,
            "heads": spec.heads,
            "kv_heads": spec.kv_heads,
            "parameters": spec.parameters,
        },
        "prompt_tokens": record.prompt_tokens,
        "new_tokens": len(record.token_ids),
        "text": record.text,
        "token_ids": list(record.token_ids),
        "cache": _cache(record),
        "plaintext": {**asdict(record.plaintext), "token_ids": list(record.plaintext.token_ids)},
        "agreement": {
            **asdict(record.agreement),
            "near_ties": [asdict(tie) for tie in record.agreement.near_ties],
        },
        "secure": _secure(record),
        "predicted": _predicted(record),
        "outlook": [dict(row) for row in record.outlook],
        "ranges": None if record.ranges is None else dict(record.ranges),
        "truncation": None if record.truncation is None else dict(record.truncation),
        "checks": {name: not problems for name, problems in run_checks(record).items()},
        "openings": _openings(record.parties),
        "warnings": warnings(record),
    }


def warnings(record: RunRecord) -> list[str]:
    """What a reader must know before taking a number or the text for what it is not."""
    found = []
    if record.weights == "synthetic":
        found.append("synthetic weights: the text is meaningless; only times and sizes count")
    if record.config.protocol == "crypten":
        found.extend(CRYPTEN_WARNINGS)
    if record.config.protocol == "dealer":
        found.append(DEALER_WARNING if record.config.store is None else STORE_WARNING)
    if record.config.sharing == "shared":
        found.append(SHARED_WARNING + SPLIT_HERE * (record.config.shares is None))
    if not record.config.network.tls:
        found.append("tls is off: whoever sees the wires sees all shares")
    if record.config.verify:
        found.append(
            "--verify is a testing aid: logits and the cache's choices were opened to the client"
        )
    if record.config.device == "cuda":
        found.append(
            "the plaintext twin ran on the GPU and the parties' shares on the CPU: their times are"
            " of different hardware"
        )
    if record.config.network.emulated:
        found.append("the network is emulated: its delays are added inside the transport")
    return found


def _peak_memory(record: RunRecord) -> dict[str, Any]:
    """Each process' own peak in bytes, by its name, their sum, and the peak of all together."""
    each = {f"party {party.rank}": party.peak_memory_bytes for party in record.parties}
    if record.dealer is not None and record.dealer.peak_memory_bytes is not None:
        each["the dealer"] = record.dealer.peak_memory_bytes
    each["the launcher with its twin"] = record.launcher_peak_bytes
    found: dict[str, Any] = {"by_process": each, "sum": sum(each.values())}
    if record.together_peak_bytes is not None:
        found["together"] = max(record.together_peak_bytes, *each.values())
    return found


def _cache(record: RunRecord) -> dict[str, Any]:
    """Public token counts: `static_kept` by layer, `dynamic_kept` by decode step."""
    return {
        "policy": record.config.cache.policy,
        "static_kept": list(record.expected_kept.get("static", [])),
        "clusters": list(record.config.cache.clusters),
        "dynamic_kept": list(record.expected_kept.get("dynamic", [])),
    }


def _predicted(record: RunRecord) -> dict[str, Any]:
    """Counts of each phase; seconds where this machine is calibrated, and how far they are off."""
    found = {phase: _sums(record.predicted, phase) for phase in ("prefill", "decode")}
    if record.predicted_seconds is None:
        return found
    measured = {phase: _slowest(record, phase) for phase in found}
    if record.decode_steps:
        measured["decode"] /= record.decode_steps
    for phase, name, key in (
        ("prefill", "prefill", "seconds"),
        ("decode", "token", "seconds_per_token"),
    ):
        said = record.predicted_seconds.get(name)
        found[phase][key] = said
        took = measured[phase]
        found[phase]["seconds_error"] = None if said is None or not took else said / took - 1
    return found


def _slowest(record: RunRecord, phase: str) -> float:
    return max(party.phase_seconds.get(phase, 0.0) for party in record.parties)


def _secure(record: RunRecord) -> dict[str, Any]:
    phases: dict[str, Any] = {}
    for phase in PHASES:
        phases[phase] = {
            "seconds": _slowest(record, phase),
            **_sums(record.parties, phase),
            "by_scope": _by_scope(record.parties, phase),
        }
    decode, steps = phases["decode"], record.decode_steps
    by_party = [party.step_seconds for party in record.parties] if steps else []
    each = [max(row) for row in zip(*by_party, strict=False)]
    decode["per_token"] = {
        "seconds": decode["seconds"] / steps if steps else None,
        "median_seconds": statistics.median(each) if each else None,
        "slowest_seconds": max(each, default=None),
        "rounds": decode["rounds"] / steps if steps else None,
        "sent_bytes": [size / steps for size in decode["sent_bytes"]] if steps else None,
        "dealt_bytes": [size / steps for size in decode["dealt_bytes"]] if steps else None,
    }
    if record.dealer is not None:
        phases["dealer"] = asdict(record.dealer)
    return phases


def _sums(parties: Sequence[PartyRecord | PredictedParty], phase: str) -> dict[str, Any]:
    """Rounds (the most that any party counted), sent and dealt bytes by rank, of one phase."""
    totals = [dict.fromkeys(COUNTS, 0) for _ in parties]
    for party, total in zip(parties, totals, strict=True):
        for _, values in in_phase(party.scopes, phase):
            for name in COUNTS:
                total[name] += int(values.get(name, 0))
    return {
        "rounds": max(total["rounds"] for total in totals),
        "sent_bytes": [total["sent_bytes"] for total in totals],
        "dealt_bytes": [total["dealt_bytes"] for total in totals],
    }


def _by_scope(parties: Sequence[PartyRecord], phase: str) -> dict[str, dict[str, Any]]:
    """Scope inside the phase -> rounds, bytes and seconds by rank, and the slowest's seconds.

    `seconds` and `wait_seconds` may be those of different parties; `by_party` may be subtracted.
    """
    tables: list[dict[str, Mapping[str, float]]] = [
        dict(in_phase(party.scopes, phase)) for party in parties
    ]
    scopes = {}
    for path in dict.fromkeys(path for table in tables for path in table):
        entries = [table.get(path, {}) for table in tables]
        scopes[path] = {
            "rounds": max(int(entry.get("rounds", 0)) for entry in entries),
            "sent_bytes": [int(entry.get("sent_bytes", 0)) for entry in entries],
            "dealt_bytes": [int(entry.get("dealt_bytes", 0)) for entry in entries],
            "seconds": max(float(entry.get("seconds", 0.0)) for entry in entries),
            "wait_seconds": max(float(entry.get("wait_seconds", 0.0)) for entry in entries),
            "by_party": {
                name: [float(entry.get(name, 0.0)) for entry in entries] for name in TIMES
            },
        }
    return scopes


def _openings(parties: Sequence[PartyRecord]) -> list[dict[str, Any]]:
    """Every opening that any party noted; where counts differ the largest stands."""
    most: dict[tuple[str, str], Opened] = {}
    for party in parties:
        for opened in party.openings:
            key = opened.why, opened.to
            if key not in most or opened.values > most[key].values:
                most[key] = opened
    return [asdict(most[key]) for key in sorted(most)]
