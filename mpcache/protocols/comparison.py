"""Comparisons, selection, maximum and minimum."""

from __future__ import annotations

import torch

from mpcache.protocols.arithmetic import multiply
from mpcache.protocols.operation import Machine, Operation, PlainMachine, SecureMachine, Value
from mpcache.protocols.secret import Secret


class Negative(Operation):
    """1 where x < 0, else 0 (an integer: no fractional bits). Exact for the shared value."""

    name = "negative"

    def plain(self, machine: PlainMachine, x: Value, **bits: int) -> Value:
        return (x < 0).to(x.dtype)

    def run(self, machine: SecureMachine, x: Secret, **bits: int) -> Secret:
        return machine.suite.negative(x, **bits)


def at_least(machine: Machine, x: Value, y: Value, **bits: int) -> Value:
    """1 where x >= y, else 0, broadcast; `y` may also be a public tensor or number.

    `bits` may tell `magnitude` and `keep` of the difference: see `Suite.negative`.
    """
    public = isinstance(y, float) or (machine.secure and isinstance(y, torch.Tensor))
    difference = machine.shift(x, -y) if public else x - y
    return machine.shift(-negative(machine, difference, **bits), 1.0)


def choose(machine: Machine, bit: Value, x: Value, y: Value) -> Value:
    """x where `bit` is 1 and y where it is 0. One product; exact, since a bit has no fraction."""
    return y + multiply(machine, x - y, bit)


class Maximum(Operation):
    """Maximum over dimension `dim`, which is kept with size 1. Exact.

    1. Split the dimension in halves; an odd last element waits.
    2. Keep the greater of each pair; repeat until one is left: ceil(log2 n) comparisons deep.
    """

    name = "maximum"

    def plain(self, machine: PlainMachine, x: Value, dim: int) -> Value:
        return x.amax(dim, keepdim=True)

    def run(self, machine: SecureMachine, x: Secret, dim: int) -> Secret:
        x = x.transpose(dim, -1)
        while x.shape[-1] > 1:
            half = x.shape[-1] // 2
            left, right, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
            greater = choose(machine, at_least(machine, left, right), left, right)
            x = machine.cat([greater, rest], -1) if rest.shape[-1] else greater
        return x.transpose(dim, -1)


class Extrema(Operation):
    """Maximum and minimum over dimension `dim`, which is dropped. Exact.

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


negative = Negative()
maximum = Maximum()
extrema = Extrema()
