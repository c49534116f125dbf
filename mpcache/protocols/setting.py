"""The public numbers that every party and every reading of a run must agree on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Truncation = Literal["exact", "local"]
Profile = Literal["lan", "wan"]
Sharing = Literal["owner", "shared"]


@dataclass(frozen=True)
class Setting:
    """How values are shared and which suite works on them.

    Args:
        world: number of parties.
        suite: name of the protocol suite.
        frac: fractional bits of a fixed-point value.
        owner: rank of the party that holds the weights.
        client: rank of the party that holds the prompt and receives the answer.
        clip: softmax arguments below ``-clip`` count as ``-clip``; exp(-16) is under one unit.
        truncation: how low bits are dropped after a product: exactly to a unit, or locally, which
            errs by a lot with small odds.
        verify: a testing aid: choices open to the client, for the twin to follow.
        profile: what the suite dealer saves where it has a choice: lan or wan, bytes or rounds.
        sharing: who has the weights in suite dealer: their owner in the clear, or each party a
            share, so that nobody knows them.
    """

    world: int = 2
    suite: str = "crypten"
    frac: int = 16
    owner: int = 0
    client: int = 1
    clip: float = 16.0
    truncation: Truncation = "exact"
    profile: Profile = "lan"
    verify: bool = False
    sharing: Sharing = "owner"

    @property
    def narrow(self) -> int:
        """Bits of a product of two values, 20 of them integer: the ring of linear maps.

        Their results stay below 2^18 then: activations of thousands of times the usual size occur
        (Sun et al., "Massive Activations in Large Language Models", arXiv 2402.17762; 25,117 in
        SmolLM2). Local truncation needs all bits.
        """
        return 64 if self.truncation == "local" else min(64, 2 * self.frac + 20)

    @property
    def short(self) -> int:
        """As `narrow`, with 16 integer bits: the ring of attention, whose sums stay below 2^14."""
        return 64 if self.truncation == "local" else min(64, 2 * self.frac + 16)
