"""What one decode step of the whole model costs on shares, counted without data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from mpcache import calibration
from mpcache.config import PRESETS, load
from mpcache.costing import quick
from mpcache.eviction.base import Policy
from mpcache.models.spec import ModelSpec
from mpcache.speeds import Speeds, far_seconds

PROTOCOL = "dealer"
PARTIES = 2
NETWORKS = ("lan", "wan")
# What a price is given in: the field of a row, and the words for it.
AXES = {
    "rounds": "rounds a token",
    "online_bytes": "MB sent a token, both parties",
    "dealt_bytes": "MB dealt a token",
    "lan_seconds": "predicted seconds a token, lan",
    "wan_seconds": "predicted seconds a token, wan",
}


@dataclass(frozen=True)
class Clock:
    """How seconds are predicted.

    Attributes:
        speeds: of this machine, where it is calibrated; else the network's share is all there is.
        note: what the seconds are, for the reader.
    """

    speeds: Speeds | None
    note: str

    @staticmethod
    def here() -> Clock:
        """By the calibration that is saved on this machine, if there is one."""
        speeds, missing = calibration.load(PROTOCOL)
        if speeds is not None:
            return Clock(
                speeds,
                "Predicted seconds: network and arithmetic, from this machine's calibration (on"
                f" layers left out of it off by {speeds.held_out.median:.0%} in the middle and"
                f" {speeds.held_out.worst:.0%} at most); each process on a host of its own.",
            )
        why = missing.removeprefix("no seconds: ")
        return Clock(None, f"Predicted seconds: the network alone, without any arithmetic ({why}).")


def decode_price(
    spec: ModelSpec, policy: Policy, prompt_tokens: int, clock: Clock
) -> dict[str, Any] | None:
    """The price of the first decode step after `prompt_tokens`, the choice of its token included.

    Setup and prefill are not in it. Bytes are frames on the wire, of both parties together.

    Returns:
        A value for each of `AXES` and `sent_bytes` of each party; None for a policy that runs in
        plaintext only.
    """
    if not policy.oblivious:
        return None
    config = load(None, {"parties": PARTIES, "protocol": PROTOCOL, "max_new_tokens": 2})
    found = quick(config, spec, prompt_tokens, policy)
    step = found.phases()["decode"]
    token = found.token()
    row = {
        "rounds": step["rounds"],
        "sent_bytes": step["sent_bytes"],
        "online_bytes": sum(step["sent_bytes"]),
        "dealt_bytes": sum(step["dealt_bytes"]),
    }
    for network in NETWORKS:
        far = PRESETS[network]
        known = clock.speeds.seconds(token, far) if clock.speeds else far_seconds(token, far)
        row[f"{network}_seconds"] = known
    return row


def front(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Which points no other beats: none is as low in both figures and lower in one.

    Sorted, a point is in front where its second figure is below all before it; equals share it.
    """
    lowest = float("inf")
    best: set[tuple[float, float]] = set()
    for point in sorted(set(points)):
        if point[1] < lowest:
            best.add(point)
            lowest = point[1]
    return [point in best for point in points]
