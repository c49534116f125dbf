"""How far the quantities of operations may go: stated beside each operation, checked on a model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Reach:
    """How far a quantity of an operation may go in suite `dealer`.

    Args:
        what: names it, such as ``result`` or ``sum of squares``.
        bits: below 2^bits in magnitude the operation's stated error holds.
        wraps: from 2^wraps on the ring wraps: a comparison goes wrong at once, a truncation with
            odds that grow from 0. None where it saturates for all that its ring holds.
    """

    what: str
    bits: int
    wraps: int | None = None


RING_BITS = 30  # a product of two values of 16 fractional bits stays below 2^30 in 64 bits
Reached = Iterator[tuple[Reach, Any]]  # a range, and the values that must stay in it


def within(what: str, bits: int) -> Reach:
    """A quantity that may come up to the ring's end, where it wraps."""
    return Reach(what, bits, bits)


RESULT = within("result", RING_BITS)
