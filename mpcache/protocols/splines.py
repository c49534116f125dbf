"""Smooth functions on a bounded range: a quadratic for each segment, from one table look-up."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch

from mpcache.protocols.dealer import DealerSuite
from mpcache.protocols.operation import SecureMachine
from mpcache.protocols.plays import Play, side_by_side
from mpcache.protocols.secret import Secret, stack

FEW = 1 << 13  # elements up to which tables of some kilobytes each are worth their rounds


@functools.cache
def quadratics(
    function: Callable[[torch.Tensor], torch.Tensor], low: float, high: float, keep: int, bits: int
) -> torch.Tensor:
    """Coefficients [3, 2^bits] of a + b x + c x^2 for the segment of each index.

    Index i stands for x in [i, i + 2) / 2^keep, since an index may come out one too low, the more
    often the lower x is in its segment. Indices outside [low, high) get the nearest segment inside.
    """
    index = torch.arange(1 << bits, dtype=torch.float64).clamp(low * 2**keep, high * 2**keep - 1)
    nodes = torch.cos((2 * torch.arange(3, dtype=torch.float64) + 1) * torch.pi / 6)
    x = (index.unsqueeze(-1) + 1 + nodes) / 2**keep
    vandermonde = torch.stack([torch.ones_like(x), x, x * x], -1)
    return torch.linalg.solve(vandermonde, function(x)).t().contiguous()


def spline(
    machine: SecureMachine,
    x: Secret,
    function: Callable[[torch.Tensor], torch.Tensor],
    low: float,
    high: float,
    keep: int,
    bits: int,
) -> Secret:
    """function(x) for x in [low, high): one look-up, one square, two products at once.

    Args:
        keep: 2^keep segments a unit. bits: high 2^keep is at most 2^bits.
    """
    suite = machine.suite
    assert isinstance(suite, DealerSuite)
    tables = machine.encode(quadratics(function, low, high, keep, bits))
    (a, b, c), _ = suite.lookup(x, keep, bits, tables)
    square = machine.settle(suite.square(x))
    both = suite.multiply(stack([b, c]), stack([x, square]))
    return a + machine.settle(both.sum(0))


def _origin(low: float, keep: int) -> float:
    """Where `lines` begins: a segment below `low`, since an index may be one too low."""
    return (math.floor(low * 2**keep) - 1) / 2**keep


@functools.cache
def lines(
    function: Callable[[torch.Tensor], torch.Tensor], low: float, high: float, keep: int, bits: int
) -> torch.Tensor:
    """Coefficients [2, 2^bits] of a + b x for the segment of each index, counted from `_origin`.

    Index i stands for x in [i, i + 1) / 2^keep beyond the origin, and for a little above. Indices
    outside [low, high) get the nearest segment inside.
    """
    first = _origin(low, keep) * 2**keep
    index = first + torch.arange(1 << bits, dtype=torch.float64)
    index = index.clamp(low * 2**keep, high * 2**keep - 1)
    nodes = torch.cos((2 * torch.arange(2, dtype=torch.float64) + 1) * torch.pi / 4)
    x = (index.unsqueeze(-1) + 1 + nodes) / 2**keep
    y = function(x)
    slope = (y[:, 1] - y[:, 0]) / (x[:, 1] - x[:, 0])
    return torch.stack([y[:, 0] - slope * x[:, 0], slope])


def lining(
    machine: SecureMachine,
    x: Secret,
    function: Callable[[torch.Tensor], torch.Tensor],
    low: float,
    high: float,
    keep: int,
    bits: int,
    cut: int = 16,
    fine: int = 24,
) -> Play:
    """The parts a, b and x of a + b x = function(x) for x in [low, high): one look-up.

    Error of the sum, relative to a function with |slope x| at most its value: a cut of x, and what
    a line leaves of it in a segment.

    Args:
        keep: 2^keep segments a unit. bits: 2^bits of them reach from `low` to `high`.
        cut: fractional bits that x is left with. fine: those of slopes; values have their sum.
    """
    suite = machine.suite
    assert isinstance(suite, DealerSuite)
    offset, slope = lines(function, low, high, keep, bits)
    tables = torch.stack([machine.encode(offset, cut + fine), machine.encode(slope, fine)])
    index = machine.shift(x, -_origin(low, keep))
    ((a, b), _), x = yield from side_by_side(
        [suite.looking_up(index, keep, bits, tables), suite.truncating(x, x.frac - cut)]
    )
    return Secret(a.share, cut + fine), Secret(b.share, fine), x
