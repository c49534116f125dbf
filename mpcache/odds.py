"""The odds that local truncation spoils a value of a run: counted, and bounded.

A value of x ring units comes out wrong by 2^(64 - dropped bits) units with odds |x| / 2^64
(`DealerSuite.truncating`). How many values are cut, and how many fractional bits they have, is
counted by the walk that counts costs; how large they get is told by a calibration, or bounded by
what the ring holds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from mpcache.protocols.ledger import layer_of
from mpcache.protocols.operation import Operation
from mpcache.protocols.reach import RING_BITS
from mpcache.protocols.work import Work
from mpcache.ranges import Ranges


@dataclass(frozen=True)
class Odds:
    """Of all local truncations of a run.

    Attributes:
        values: how many values are truncated locally; `dropped` has them by dropped bits.
        wrong: how many of them are expected to come out wrong, at most.
        calibrated: whether magnitudes were measured; else they are all that the ring holds.
    """

    values: int
    dropped: Mapping[int, int]
    wrong: float
    calibrated: bool

    @property
    def run(self) -> float:
        """An upper bound of the odds that any value of the run comes out wrong."""
        return min(1.0, self.wrong)

    def fields(self) -> dict[str, Any]:
        """For the report."""
        return {
            "values": self.values,
            "dropped": {str(bits): count for bits, count in self.dropped.items()},
            "expected_wrong": self.wrong,
            "odds": self.run,
            "calibrated": self.calibrated,
            "says": self.says,
        }

    @property
    def says(self) -> str:
        by = ", ".join(f"{count:,} by {bits} bits" for bits, count in sorted(self.dropped.items()))
        basis = (
            "with the magnitudes that calibration measured"
            if self.calibrated
            else "if all were as great as the ring holds (run mpcache calibrate for measured ones)"
        )
        return (
            f"local truncation of {self.values:,} values ({by}): one of x units is wrong by"
            f" 2^(64 - bits) with odds |x| / 2^64; expected wrong at most {self.wrong:.3g}, odds"
            f" that any is at most {self.run:.3g}, {basis}"
        )


def odds(work: Mapping[str, Work], ranges: Ranges | None) -> Odds:
    """Of what was counted by scope."""
    dropped: Counter[int] = Counter()
    wrong, kinds = 0.0, {kind.name: kind.cut_bits for kind in _operations()}
    for path, part in work.items():
        for cut, values in part.cuts.items():
            dropped[cut.bits] += values
            wrong += values * 2.0 ** (_bits(path, ranges, kinds) + cut.frac - 64)
    return Odds(dropped.total(), dict(sorted(dropped.items())), wrong, ranges is not None)


def _bits(path: str, ranges: Ranges | None, kinds: Mapping[str, int | None]) -> int:
    """What is cut in a scope is below 2^bits: by the operation alone, as measured, or by the ring.

    What the innermost operation of a path was seen to meet counts; never an outer one's, whose
    inside may be larger.
    """
    names = path.split("/")
    bounded = [bits for name in names if (bits := kinds.get(name)) is not None]
    if bounded:
        return min(bounded)
    inner = next((name for name in reversed(names) if name in kinds), None)
    if ranges is None or inner is None:
        return RING_BITS
    layers = [layer for name in names if (layer := layer_of(name)) is not None]
    met = ranges.bits(inner, layers[-1] if layers else None)
    return RING_BITS if met is None else max(met, 1)


def _operations() -> Iterator[type[Operation]]:
    left = list(Operation.__subclasses__())
    while left:
        kind = left.pop()
        left += kind.__subclasses__()
        if hasattr(kind, "name"):
            yield kind
