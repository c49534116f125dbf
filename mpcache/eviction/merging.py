"""Pieces of the policies that gather, drop and merge tokens obliviously."""

from __future__ import annotations

import itertools
import math

from mpcache.protocols.arithmetic import matmul, multiply, scale
from mpcache.protocols.comparison import at_least, maximum, pick
from mpcache.protocols.functions import reciprocal
from mpcache.protocols.norm import norm
from mpcache.protocols.operation import Machine, Value

COSINE = {"magnitude": 2, "keep": 16}  # differences of cosines


def gather(machine: Machine, rows: Value, *parts: Value) -> list[Value]:
    """What one-hot `rows` [heads, k, n] choose of each part [heads, n, width]. Exact."""
    both = matmul(machine, rows, machine.cat(parts, -1))
    ends = [sum(part.shape[-1] for part in parts[:i]) for i in range(len(parts) + 1)]
    return [both[..., first:last] for first, last in itertools.pairwise(ends)]


def drop(machine: Machine, row: Value, x: Value) -> Value:
    """x [heads, n, width] without the token that the one-hot `row` [heads, n] marks, in order."""
    passed = row.cumsum(-1)[..., :-1].unsqueeze(-1)
    return x[:, :-1] + pick(machine, passed, x[:, 1:] - x[:, :-1])


def cosines(machine: Machine, x: Value, y: Value) -> Value:
    """Cosines [heads, n, m] of the angles between x [heads, n, width] and y [heads, m, width]."""
    count, width = x.shape[1:]
    both = machine.cat([x, y], 1)
    unit = norm(machine, both.reshape(-1, width), None, None, 1e-6, False)
    unit = scale(machine, unit, 1 / math.sqrt(width)).reshape(*both.shape)
    return matmul(machine, unit[:, :count], unit[:, count:].transpose(1, 2))


def nearest(machine: Machine, cosine: Value, threshold: Value) -> tuple[Value, Value]:
    """Bits [heads, n, m] of each token's most similar one of m, and that similarity [heads, n, 1].

    The threshold competes as one more, a class of its own: who is nearest to it has no bit.

    Args:
        cosine: [heads, n, m]. threshold: [heads, n, 1].
    """
    most = maximum(machine, cosine, 2, **COSINE)
    bar = maximum(machine, machine.cat([most, threshold], 2), 2, **COSINE)
    return at_least(machine, cosine, bar, **COSINE), most


def merge(machine: Machine, kept: Value, others: Value, weights: Value) -> Value:
    """Means of each kept token, with weight 1, and of the others that go to it.

    Args:
        kept: [heads, m, width]. others: [heads, n, width].
        weights: [heads, n, m], from 0 to 1, with the fractional bits of the values or none.
    """
    total = kept + matmul(machine, weights.transpose(1, 2), others)
    mass = weights.sum(1).unsqueeze(-1)
    over = reciprocal(machine, machine.shift(mass, 1.0), 1.0 + others.shape[1])
    return multiply(machine, total, over)
