"""The gate before a result: each check gives the list of what disagrees, empty when all agrees."""

from __future__ import annotations

from collections.abc import Sequence

from mpcache.report.record import (
    COUNTS,
    PHASES,
    DealerRecord,
    Kept,
    PartyRecord,
    PredictedParty,
    RunRecord,
    nonzero,
)

MAX_LISTED = 5


def sent_equals_received(parties: Sequence[PartyRecord]) -> list[str]:
    """All bytes that left a party arrived at another: in every scope, and on every wire."""
    problems = []
    counted = [nonzero(party.scopes) for party in parties]
    for path in _paths(counted):
        sent, received = (
            sum(scopes.get(path, {}).get(name, 0) for scopes in counted)
            for name in ("sent_bytes", "received_bytes")
        )
        if sent != received:
            problems.append(f"{path}: {sent} bytes sent in all, {received} received")
    by_rank = {party.rank: party for party in parties}
    for sender in parties:
        for peer, wire in sender.peers.items():
            other = by_rank[peer].peers.get(sender.rank, {}) if peer in by_rank else {}
            sent, received = wire.get("sent_bytes", 0), other.get("received_bytes", 0)
            if sent != received:
                problems.append(
                    f"party {sender.rank} sent {sent} bytes to party {peer}, which got {received}"
                )
    return problems


def rounds_agree(parties: Sequence[PartyRecord]) -> list[str]:
    """Every party counted the same number of rounds in every scope."""
    counted = [nonzero(party.scopes) for party in parties]
    problems = []
    for path in _paths(counted):
        rounds = [scopes.get(path, {}).get("rounds", 0) for scopes in counted]
        if len(set(rounds)) > 1:
            problems.append(f"{path}: the parties counted {rounds} rounds")
    return problems


def measured_equals_predicted(
    parties: Sequence[PartyRecord], predicted: Sequence[PredictedParty]
) -> list[str]:
    """Rounds, messages, bytes, openings and transcript of every party are as the twin said."""
    if [party.rank for party in parties] != [party.rank for party in predicted]:
        return [f"{len(predicted)} parties were predicted, {len(parties)} measured"]
    problems = []
    for measured, expected in zip(parties, predicted, strict=True):
        got, want = nonzero(measured.scopes), nonzero(expected.scopes)
        for path in _paths([got, want]):
            for name in COUNTS:
                was, said = got.get(path, {}).get(name, 0), want.get(path, {}).get(name, 0)
                if was != said:
                    problems.append(
                        f"party {measured.rank}, {path}: {name} {was}, predicted {said}"
                    )
        if measured.transcript != expected.transcript:
            problems.append(f"party {measured.rank}: the transcript is not the predicted one")
        if expected.openings is not None and set(measured.openings) != set(expected.openings):
            problems.append(f"party {measured.rank}: the openings are not the predicted ones")
    return problems


def _dealt(parties: Sequence[PartyRecord], dealer: DealerRecord | None) -> list[str]:
    """Party 1 used exactly what the dealer emitted."""
    if dealer is None:
        return []
    used = sum(int(v.get("dealt_bytes", 0)) for party in parties for v in party.scopes.values())
    if used == dealer.dealt_bytes:
        return []
    return [f"the dealer dealt {dealer.dealt_bytes} bytes, the parties used {used}"]


def kept_equals_budget(parties: Sequence[PartyRecord], expected: Kept) -> list[str]:
    """Every party's cache kept exactly the public counts, by layer and by step."""
    problems = []
    for party in parties:
        for level in sorted(expected.keys() | party.kept.keys()):
            was, budget = list(party.kept.get(level, [])), list(expected.get(level, []))
            if was != budget:
                problems.append(f"party {party.rank}: {level} kept {was}, budget {budget}")
    return problems


def run_checks(record: RunRecord) -> dict[str, list[str]]:
    """All four checks by name, each with what disagrees."""
    return {
        "sent_equals_received": sent_equals_received(record.parties) + _strays(record.parties),
        "rounds_agree": rounds_agree(record.parties),
        "measured_equals_predicted": measured_equals_predicted(record.parties, record.predicted)
        + _dealt(record.parties, record.dealer),
        "kept_equals_budget": kept_equals_budget(record.parties, record.expected_kept),
    }


def refusal(checks: dict[str, list[str]]) -> str:
    """One line a failed check, with the first of what disagrees; empty if none failed."""
    lines = []
    for name, problems in checks.items():
        if problems:
            more = f"; and {len(problems) - MAX_LISTED} more" * (len(problems) > MAX_LISTED)
            lines.append(f"check {name} failed: {'; '.join(problems[:MAX_LISTED])}{more}")
    return "\n".join(lines)


def _strays(parties: Sequence[PartyRecord]) -> list[str]:
    """Counts outside the three phases would be missing from the report's sums."""
    return [
        f"party {party.rank} counted bytes or rounds in {path}, outside {', '.join(PHASES)}"
        for party in parties
        for path in nonzero(party.scopes)
        if path.partition("/")[0] not in PHASES
    ]


def _paths(tables: Sequence[dict[str, dict[str, int]]]) -> list[str]:
    return sorted({path for table in tables for path in table})
