"""Comparisons, selection, maximum and minimum."""

from __future__ import annotations

import math

import torch

from mpcache.protocols.operation import Machine, Operation, PlainMachine, SecureMachine, Value
from mpcache.protocols.reach import Reached, within
from mpcache.protocols.secret import Secret

FEW_COMPARED = 1 << 13  # elements up to which all pairs of a group are worth their rounds
GROUP = 10
MAGNITUDE = 15  # what is compared stays below 2^15, unless it is told otherwise


class Negative(Operation):
    """1 where x < 0, else 0 (an integer: no fractional bits). Exact for the shared value.

    With a dealer for |x| < 2^15, twice what a linear map gives, unless `bits` say otherwise.
    """

    name = "negative"

    def plain(self, machine: PlainMachine, x: Value, **bits: int) -> Value:
        return (x < 0).to(x.dtype)

    def run(self, machine: SecureMachine, x: Secret, **bits: int) -> Secret:
        return machine.suite.negative(x, **bits)

    def reaches(self, result: Value, x: Value, magnitude: int = MAGNITUDE, **_: int) -> Reached:
        yield within("argument", magnitude), x


def at_least(machine: Machine, x: Value, y: Value, **bits: int) -> Value:
    """1 where x >= y, else 0, broadcast; `y` may also be a public tensor or number.

    `bits` may tell `magnitude` and `keep` of the difference: see `Suite.negative`. By default it
    is below 2^15, as that of two results of linear maps is.
    """
    public = isinstance(y, float) or (machine.secure and isinstance(y, torch.Tensor))
    difference = machine.shift(x, -y) if public else x - y
    return machine.shift(-negative(machine, difference, **bits), 1.0)


def choose(machine: Machine, bit: Value, x: Value, y: Value) -> Value:
    """x where `bit` is 1 and y where it is 0. One product; exact, since a bit has no fraction."""
    return y + pick(machine, bit, x - y)


class Pick(Operation):
    """x where the bit (without fractional bits) is 1 and 0 where it is 0, broadcast. Exact."""

    name = "pick"

    def plain(self, machine: PlainMachine, bit: Value, x: Value) -> Value:
        return x * bit

    def run(self, machine: SecureMachine, bit: Secret, x: Secret) -> Secret:
        return machine.suite.multiply(x, bit)


class Maximum(Operation):
    """Maximum over dimension `dim`, which is kept with size 1.

    Exact, but to 2^-keep a level where `keep` is told: see `Suite.negative`. With a dealer two
    elements differ by less than 2^magnitude, by default 2^15.

    1. Split the dimension in halves; an odd last element waits.
    2. Keep the greater of each pair; repeat until one is left: ceil(log2 n) comparisons deep.
    """

    name = "maximum"

    def plain(self, machine: PlainMachine, x: Value, dim: int, **bits: int) -> Value:
        return x.amax(dim, keepdim=True)

    def run(self, machine: SecureMachine, x: Secret, dim: int, **bits: int) -> Secret:
        x = x.transpose(dim, -1)
        while x.shape[-1] > 1:
            half = x.shape[-1] // 2
            left, right, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
            greater = choose(machine, at_least(machine, left, right, **bits), left, right)
            x = machine.cat([greater, rest], -1) if rest.shape[-1] else greater
        return x.transpose(dim, -1)

    def run_dealer(self, machine: SecureMachine, x: Secret, dim: int, **bits: int) -> Secret:
        """Where the elements are few: groups of about the square root, all pairs in each.

        1. Compare all pairs of a group; an element that loses none is its maximum.
        2. That bit selects it. Then the same among the groups' maxima.
        """
        if x.share.numel() > FEW_COMPARED or x.shape[dim] <= 4:
            return self.run(machine, x, dim, **bits)
        x = x.transpose(dim, -1)
        while x.shape[-1] > 1:
            size = x.shape[-1]
            group = size if size <= GROUP else min(GROUP, math.isqrt(size - 1) + 1)
            short = -size % group
            if short:  # repeat some: of equal elements the first wins
                x = machine.cat([x, x[..., :short]], -1)
            x = x.reshape(*x.shape[:-1], x.shape[-1] // group, group)
            first, second = torch.triu_indices(group, group, 1)
            wins = at_least(machine, x.take(first), x.take(second), **bits)
            losses = machine.shift(
                -wins.balance(group),
                torch.arange(group - 1, -1, -1, dtype=torch.float64),
            )
            best = negative(machine, machine.shift(losses, -1.0), magnitude=group.bit_length())
            x = pick(machine, best, x).sum(-1)
        return x.transpose(dim, -1)

    def reaches(
        self, result: Value, x: Value, dim: int, magnitude: int = MAGNITUDE, **_: int
    ) -> Reached:
        yield within("difference", magnitude), x.amax(dim) - x.amin(dim)


class Extrema(Operation):
    """Maximum and minimum over dimension `dim`, which is dropped. Exact, in the range of `Maximum`.

    The first layer of comparisons serves both; then maxima and minima go down their trees
    together, the minima negated.
    """

    name = "extrema"

    def plain(self, machine: PlainMachine, x: Value, dim: int) -> tuple[Value, Value]:
        return x.amax(dim), x.amin(dim)

    def run(self, machine: SecureMachine, x: Secret, dim: int) -> tuple[Secret, Secret]:
        x = x.transpose(dim, -1)
        half = x.shape[-1] // 2
        left, right, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
        if half:
            greater = choose(machine, at_least(machine, left, right), left, right)
            lesser = left + right - greater
            both = machine.stack(
                [machine.cat([greater, rest], -1), -machine.cat([lesser, rest], -1)]
            )
        else:
            both = machine.stack([x, -x])
        both = maximum(machine, both, both.ndim - 1)
        both = both.transpose(-1, dim + 1 if dim >= 0 else dim).squeeze(
            dim + 1 if dim >= 0 else dim
        )
        return both[0], -both[1]

    def reaches(self, result: Value, x: Value, dim: int) -> Reached:
        yield within("difference", MAGNITUDE), result[0] - result[1]


negative = Negative()
pick = Pick()
maximum = Maximum()
extrema = Extrema()
