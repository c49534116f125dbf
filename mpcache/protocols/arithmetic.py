"""Sums and products: elementwise, matrix, public factor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch

from mpcache.protocols.dealer import DealerSuite
from mpcache.protocols.embedding import embedded
from mpcache.protocols.operation import Operation, PlainMachine, SecureMachine, Value
from mpcache.protocols.reach import RESULT, RING_BITS, Reached, within
from mpcache.protocols.secret import Secret, lifted
from mpcache.protocols.tokens import Tokens

EXTRA_BITS = 8
NARROW_BITS = 18  # of a linear map's result in the setting's narrow ring
PRODUCT_BITS = 15  # of products of keys and queries, in the short ring


class Multiply(Operation):
    """Elementwise product of two secrets, broadcast. Error: one cut (`Suite.truncate`).

    |x y| < 2^30 with 16 fractional bits: beyond that the ring wraps, in every suite.
    """

    name = "multiply"

    def plain(self, machine: PlainMachine, x: Value, y: Value) -> Value:
        return x * y

    def run(self, machine: SecureMachine, x: Secret, y: Secret) -> Secret:
        return machine.multiply(x, y)

    def reaches(self, result: Value, *args: Any, **options: Any) -> Reached:
        yield RESULT, result


class Matmul(Operation):
    """Matrix product [..., n, k] @ [..., k, m] of two secrets. Error: one cut, whatever k.

    Its range is that of `Multiply`, for the sums.
    """

    name = "matmul"

    def plain(self, machine: PlainMachine, x: Value, y: Value) -> Value:
        return x @ y

    def run(self, machine: SecureMachine, x: Secret, y: Secret) -> Secret:
        return machine.matmul(x, y)

    def reaches(self, result: Value, *args: Any, **options: Any) -> Reached:
        yield RESULT, result


class Product(Operation):
    """Matrix product that keeps the fractional bits of both factors. Exact.

    With a dealer it counts modulo 2^width, as do values that `Machine.coarse` made: of keys and
    queries it must stay below 2^15, or their ring of 48 bits wraps.
    """

    name = "product"

    def plain(self, machine: PlainMachine, x: Value, y: Value, width: int = 64) -> Value:
        return x @ y

    def run(self, machine: SecureMachine, x: Secret, y: Secret, width: int = 64) -> Secret:
        return machine.suite.matmul(x, y, width)

    def reaches(self, result: Value, *args: Any, **options: Any) -> Reached:
        yield within("result", PRODUCT_BITS), result


class Scale(Operation):
    """Product with a public tensor or number, broadcast.

    A power of two at or below 1 is exact and free: only the point moves, and the result keeps
    more fractional bits until the next truncation. Else error: one cut, and |x| / 2 units from
    rounding the factor, which gets up to `EXTRA_BITS` more bits when its greatest element is
    small: |x| times that element, in units, but |x| / 2^9 for factors below 2^-8.
    """

    name = "scale"

    def plain(self, machine: PlainMachine, x: Value, factor: torch.Tensor | float) -> Value:
        return x * factor

    def run(self, machine: SecureMachine, x: Secret, factor: torch.Tensor | float) -> Secret:
        if isinstance(factor, float) and 0 < factor <= 1:
            exponent = -math.log2(factor)
            if exponent == int(exponent):
                return x.halved(int(exponent))
        frac = machine.setting.frac + _extra(factor)
        ring = machine.encode(factor, frac)
        return machine.settle(x.times(ring, frac))

    def reaches(self, result: Value, x: Value, factor: torch.Tensor | float) -> Reached:
        bits = RING_BITS - _extra(factor)
        yield within("result", bits), result


def _extra(factor: torch.Tensor | float) -> int:
    """Fractional bits more that a public factor gets, since its greatest element is small."""
    largest = max(torch.as_tensor(factor).abs().max().item(), 2.0**-EXTRA_BITS)
    return max(0, math.floor(-math.log2(largest)))


class Settle(Operation):
    """Bring a value back to the setting's fractional bits. Error: one cut where it has more."""

    name = "settle"

    def plain(self, machine: PlainMachine, x: Value) -> Value:
        return x

    def run(self, machine: SecureMachine, x: Secret) -> Secret:
        return machine.settle(x)

    def reaches(self, result: Value, *args: Any, **options: Any) -> Reached:
        yield RESULT, result


class Settled(Operation):
    """Values brought to the setting's fractional bits, side by side; some of them kept as well.

    Args:
        values: with any fractional bits. kept: for which of them many products follow.

    Error: one cut where a value has more bits. With a dealer all of it is one round: what a cut
    opens serves as what keeping would open (`DealerSuite.settling_kept`).
    """

    name = "settled"

    def plain(
        self, machine: PlainMachine, values: Sequence[Value], kept: Sequence[bool]
    ) -> list[Value]:
        return list(values)

    def run(
        self, machine: SecureMachine, values: Sequence[Secret], kept: Sequence[bool]
    ) -> list[Secret]:
        return [
            machine.suite.settle_kept(value) if stays else machine.settle(value)
            for value, stays in zip(values, kept, strict=True)
        ]

    def run_dealer(
        self, machine: SecureMachine, values: Sequence[Secret], kept: Sequence[bool]
    ) -> list[Secret]:
        suite = machine.suite
        assert isinstance(suite, DealerSuite)
        plays = [
            suite.settling_kept(value) if stays else suite.settling(value)
            for value, stays in zip(values, kept, strict=True)
        ]
        return suite.together(*plays)

    def reaches(self, result: Value, *args: Any, **options: Any) -> Reached:
        for value in result:
            yield RESULT, value


class Linear(Operation):
    """Activations [tokens, inputs] times a weight [inputs, outputs], plus a bias [outputs].

    Unless `settled`, the result keeps all its fractional bits. Unless `wide`, it may count in the
    setting's narrow ring, where it must stay below 2^18 (else below 2^30): beyond that the ring
    wraps, and `mpcache calibrate` tells how near to it a model comes. Error: one cut if settled,
    and (|x|_1 + 1) / 2 units from rounding weights and bias.
    """

    name = "linear"

    def plain(
        self,
        machine: PlainMachine,
        x: Value,
        weight: Value,
        bias: Value | None = None,
        settled: bool = True,
        wide: bool = False,
    ) -> Value:
        product = x @ weight
        return product if bias is None else product + bias

    def run(
        self,
        machine: SecureMachine,
        x: Secret,
        weight: Secret,
        bias: Secret | None = None,
        settled: bool = True,
        wide: bool = False,
    ) -> Secret:
        product = machine.suite.matmul(x, weight, 64 if wide else machine.setting.narrow)
        if bias is not None:
            product = product + lifted(bias, product.frac)
        return machine.settle(product) if settled else product

    def reaches(
        self,
        result: Value,
        x: Value,
        weight: Value,
        bias: Value | None = None,
        settled: bool = True,
        wide: bool = False,
    ) -> Reached:
        bits = RING_BITS if wide else NARROW_BITS
        yield within("wide result" if wide else "result", bits), result


class Embed(Operation):
    """Rows of a secret table [vocab, width] for secret tokens. Exact.

    The twin takes ids [tokens]; on shares the tokens are one-hot rows [tokens, vocab]. With a
    dealer they are what `embedding` says, and the table an owner's matrix.
    """

    name = "embed"

    def plain(self, machine: PlainMachine, tokens: Value, table: Value) -> Value:
        return table[tokens]

    def run(self, machine: SecureMachine, tokens: Secret, table: Secret) -> Secret:
        return machine.matmul(tokens, table)

    def run_dealer(self, machine: SecureMachine, tokens: Tokens, table: Secret) -> Secret:
        suite = machine.suite
        assert isinstance(suite, DealerSuite)
        return embedded(suite, tokens, table)


multiply = Multiply()
matmul = Matmul()
product = Product()
scale = Scale()
settle = Settle()
settled = Settled()
linear = Linear()
embed = Embed()
