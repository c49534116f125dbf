"""What a cache policy saves: one run against a full-cache run of the same configuration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

FULL = "full"
_OWN = ("cache", "report")  # keys of the configuration in which two compared runs may differ


@dataclass(frozen=True)
class Reduction:
    """How many times less a decode step takes than with the full cache of run `against`.

    Bytes are those of the party that sends most. A ratio is None where there is nothing to divide.
    """

    against: str
    seconds: float | None
    rounds: float | None
    sent_bytes: float | None
    dealt_bytes: float | None


def reduction(report: dict[str, Any], reports: Sequence[dict[str, Any]]) -> Reduction | None:
    """What the policy of `report` saves against the first comparable full-cache run."""
    for other in reports:
        if _full(report) or not _full(other) or differences(report, other):
            continue
        mine, theirs = (run["secure"]["decode"]["per_token"] for run in (report, other))
        return Reduction(
            other["id"],
            ratio(theirs["seconds"], mine["seconds"]),
            ratio(theirs["rounds"], mine["rounds"]),
            ratio(most(theirs["sent_bytes"]), most(mine["sent_bytes"])),
            ratio(most(theirs["dealt_bytes"]), most(mine["dealt_bytes"])),
        )
    return None


def obstacles(report: dict[str, Any], reports: Sequence[dict[str, Any]]) -> list[str]:
    """Why no reduction can be stated, one sentence a full-cache run."""
    if _full(report) or reduction(report, reports) is not None:
        return []
    return [
        f"Not compared with the full cache of run {other['id']}: these differ:"
        f" {', '.join(differences(report, other))}."
        for other in reports
        if _full(other)
    ]


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """What beside the cache differs between two runs, by name."""
    left, right = _facts(one), _facts(other)
    return [name for name in left | right if left.get(name) != right.get(name)]


def most(sizes: Sequence[float] | None) -> float | None:
    """The bytes of the party that has most."""
    return max(sizes) if sizes else None


def ratio(above: float | None, below: float | None) -> float | None:
    return above / below if above is not None and below else None


def times_plaintext(report: dict[str, Any]) -> float | None:
    """Secret-shared seconds a token over the twin's."""
    return ratio(
        report["secure"]["decode"]["per_token"]["seconds"],
        report["plaintext"]["decode_seconds_per_token"],
    )


def _full(report: dict[str, Any]) -> bool:
    return bool(report["cache"]["policy"] == FULL)


def _facts(report: dict[str, Any]) -> dict[str, Any]:
    config = {f"config {k}": v for k, v in report["config"].items() if k not in _OWN}
    machine = {f"machine {k}": v for k, v in report["machine"].items() if "peak" not in k}
    names = ("version", "parties", "protocol", "network", "model", "prompt_tokens", "new_tokens")
    return {name: report[name] for name in names} | config | machine
