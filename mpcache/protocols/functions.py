"""exp, 1/x and 1/sqrt(x): each on a range where few products reach the fixed point's precision."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch

from mpcache.protocols.arithmetic import multiply, scale
from mpcache.protocols.comparison import at_least
from mpcache.protocols.dealer import DealerSuite
from mpcache.protocols.exact import chebyshev, exact, fitted, powers_of_two, rounded
from mpcache.protocols.operation import Machine, Operation, PlainMachine, SecureMachine, Value
from mpcache.protocols.plays import Play
from mpcache.protocols.secret import Secret
from mpcache.protocols.splines import FEW, lining, spline

EXP_SQUARINGS = 5
NEWTON_STEPS = 3


class Exponential(Operation):
    """exp(x) for x in [-clip, 0]; the caller clips.

    1. z = x / 2^5 and its Taylor sum of degree 3.
    2. Five squarings.

    CrypTen's own limit (1 + x / 2^8)^(2^8) is off by up to 4e-3 at 16 fractional bits, since the
    division by 2^8 drops eight of them. Error here: 95 cuts at x = 0, falling about as exp(x) to
    one cut (32 of them from z, 32 from the Taylor sum, 31 from the squarings); and the Taylor
    rest, relative x^4 / (24 * 2^15).
    """

    name = "exp"
    cut_bits = 1

    def plain(self, machine: PlainMachine, x: Value) -> Value:
        return torch.exp(x)

    def run(self, machine: SecureMachine, x: Secret) -> Secret:
        z = machine.settle(x.halved(EXP_SQUARINGS))
        inner = machine.shift(scale(machine, z, 1 / 6), 0.5)
        inner = machine.shift(multiply(machine, z, inner), 1.0)
        result = machine.shift(multiply(machine, z, inner), 1.0)
        for _ in range(EXP_SQUARINGS):
            result = machine.settle(machine.suite.square(result))
        return result


class Stairs(Operation):
    """Public step functions of a secret: table[number of thresholds that x reaches].

    Args:
        x: any shape, any fractional bits.
        thresholds: public, ascending, [steps].
        tables: each public, [steps + 1]; one result for each.
        bits: `magnitude` and `keep` of x's distance from a threshold, see `Suite.negative`.

    1. Compare x with every threshold, in one batch.
    2. A step function is a public combination of those bits: free, and exact on ring elements.
    """

    name = "stairs"

    def plain(
        self,
        machine: PlainMachine,
        x: Value,
        thresholds: torch.Tensor,
        *tables: torch.Tensor,
        **bits: int,
    ) -> list[Value]:
        reached = (x.unsqueeze(-1) >= thresholds.to(x.device)).sum(-1)
        return [table.to(x)[reached] for table in tables]

    def run(
        self,
        machine: SecureMachine,
        x: Secret,
        thresholds: torch.Tensor,
        *tables: torch.Tensor,
        **bits: int,
    ) -> list[Secret]:
        reached = at_least(machine, x.unsqueeze(-1), thresholds, **bits)
        return [stepped(machine, reached, table, machine.setting.frac) for table in tables]


def stepped(machine: SecureMachine, reached: Secret, table: torch.Tensor, frac: int) -> Secret:
    """table[number of ones] for bits [..., steps] that fall, table [steps + 1]; `frac` bits."""
    entries = machine.encode(table, frac)
    rises = reached.times(entries.diff(), frac).sum(-1)
    return machine.suite.shift(rises, entries[0])


def stepped_product(
    machine: SecureMachine, x: Secret, products: Secret, table: torch.Tensor, frac: int
) -> Secret:
    """x table[..] as in `stepped`, from x and its products [..., steps] with the bits."""
    entries = machine.encode(table, frac)
    return products.times(entries.diff(), frac).sum(-1) + x.times(entries[0], frac)


class Reciprocal(Operation):
    """1/x for x in [1, upper], `upper` public.

    1. A factor s = 2^-k brings x into [1, 2): steps at the powers of two.
    2. A line and three Newton steps y <- y(2 - xy) for 1/(sx); times s.

    Error: 4 cuts (2 where `upper` is at most 2).

    With a dealer what is well below 1 counts as 1, and what is above 2^k, the second power of two
    from `upper` on, as 2^k: nothing wraps for |x| < 2^14.
    """

    name = "reciprocal"
    cut_bits = 2

    def plain(self, machine: PlainMachine, x: Value, upper: float) -> Value:
        return 1 / x

    def run(self, machine: SecureMachine, x: Secret, upper: float) -> Secret:
        wide = upper > 2
        if wide:
            steps = range(math.ceil(math.log2(upper)) + 1)
            up, down = powers_of_two(steps[1:]), powers_of_two(-step for step in steps)
            (factor,) = stairs(machine, x, up, down)
            x = multiply(machine, x, factor)
        y = _newton(machine, x)
        return multiply(machine, y, factor) if wide else y

    def run_dealer(self, machine: SecureMachine, x: Secret, upper: float) -> Secret:
        """For few elements a spline on [1, 2) takes the place of the Newton steps.

        Steps beyond both ends lead to a factor of 0 and an offset: 1 below, 2 above.
        """
        powers = range(max(1, math.ceil(math.log2(upper))) + 1)
        zero = torch.zeros(1, dtype=torch.float64)
        # a little below 1 the first piece still holds, and so the steps may be read coarsely
        thresholds = torch.cat([zero + 1 - 2.0**-6, powers_of_two([*powers[1:], len(powers)])])
        inner = powers_of_two(-power for power in powers)
        factor, offset, over = stairs(
            machine,
            x,
            thresholds,
            torch.cat([zero, inner, zero]),
            torch.cat([zero + 1, 0 * inner, zero + 2]),
            torch.cat([zero + 1, inner, inner[-1:]]),
            magnitude=15,
            keep=8,
        )
        z = multiply(machine, x, factor) + offset
        few = x.share.numel() <= FEW
        y = spline(machine, z, torch.reciprocal, 1.0, 2.0, 6, 8) if few else _newton(machine, z)
        return multiply(machine, y, over)


def _newton(machine: SecureMachine, x: Secret) -> Secret:
    """1/x for x in [1, 2]."""
    y = machine.shift(-machine.settle(x.halved(1)), 1.457)  # minimax line
    for _ in range(NEWTON_STEPS):
        y = multiply(machine, y, machine.shift(-multiply(machine, x, y), 2.0))
    return y


class Inverse(Operation):
    """1/x for x in [2^low, 2^high), with `frac` fractional bits. With a dealer only.

    1. Steps at 0.75 * 2^k: f = 2^-k, and t = x f in [0.75, 1.5), exactly, in one round. Beyond
       both ends f stays and t is 0.75 or 1.5: what is below counts as 0.75 * 2^low, what is above
       as 1.5 * 2^high, for all that the ring holds.
    2. 1/t = a + b t in a segment of 2^-7; (a + b t) f in one product.

    Error: 3 * 2^-15 of the result, and a cut at `frac`.
    """

    name = "inverse"

    def plain(self, machine: PlainMachine, x: Value, low: int, high: int, frac: int) -> Value:
        return 1 / x

    def run(self, machine: SecureMachine, x: Secret, low: int, high: int, frac: int) -> Secret:
        suite = machine.suite
        assert isinstance(suite, DealerSuite)
        return suite.play(inverting(machine, x, low, high, frac, x.width - 1))


def inverting(
    machine: SecureMachine, x: Secret, low: int, high: int, frac: int, bits: int = 0
) -> Play:
    """`Inverse` as a play: four rounds.

    Args:
        bits: |x| < 2^bits ring units; by default 2^high at most, which is cheaper.
    """
    suite = machine.suite
    assert isinstance(suite, DealerSuite)
    zero = torch.zeros(1, dtype=torch.float64)
    inner = powers_of_two(-power for power in range(low, high + 1))
    thresholds = 0.75 * powers_of_two(range(low, high + 2))
    encoded = machine.encode(thresholds, x.frac)
    reached, products = yield from suite.stepping(x, encoded, bits or min(63, x.frac + high + 1))
    factor = stepped(machine, reached, torch.cat([inner[:1], inner, inner[-1:]]), high)
    t = stepped_product(machine, x, products, torch.cat([zero, inner, zero]), high)
    t = t + stepped(machine, reached, torch.cat([zero + 0.75, 0 * inner, zero + 1.5]), t.frac)
    a, b, t = yield from lining(machine, t, torch.reciprocal, 0.7, 1.6, 7, 7, 16, 20)
    r = yield from suite.combining([a, b, t, factor], [(0, 3), (1, 2, 3)])
    return (yield from suite.truncating(r, r.frac - frac))


class InverseSqrt(Operation):
    """1/sqrt(x) for x in [1, 4): a line and three Newton steps y <- y(3 - xy^2)/2.

    Error: 3 cuts. With a dealer what is below 1 counts as 1 and what is above 5 as 5, for
    |x| <= 2^12.
    """

    name = "inverse-sqrt"
    cut_bits = 3

    def plain(self, machine: PlainMachine, x: Value) -> Value:
        return torch.rsqrt(x)

    def run(self, machine: SecureMachine, x: Secret) -> Secret:
        # a chord-like line, within 12% on [1, 4]
        y = machine.shift(scale(machine, x, -0.1668), 1.1165)
        for _ in range(NEWTON_STEPS):
            square = machine.settle(machine.suite.square(y))
            y = multiply(machine, y, machine.shift(-multiply(machine, x, square), 3.0)).halved(1)
            y = machine.settle(y)
        return y

    def run_dealer(self, machine: SecureMachine, x: Secret) -> Secret:
        suite, frac = machine.suite, machine.setting.frac
        assert isinstance(suite, DealerSuite)
        kept = suite.clamp(machine.shift(x, -1.0), frac, frac + 2, 64)
        z = machine.shift(Secret(kept.share, frac), 1.0)
        return spline(machine, z, torch.rsqrt, 1.0, 8.0, keep=5, bits=8)


class Decay(Operation):
    """exp(x) for x <= 0, however far: what is below -clip counts as -clip or as 0.

    With a dealer x may also be positive, up to 0.9; above 1 it counts as 1, and |x| < 2^17 where
    its ring holds that. Args: `magnitude`: |x| < 2^magnitude.
    """

    name = "decay"

    def plain(self, machine: PlainMachine, x: Value, magnitude: int = 15) -> Value:
        return torch.exp(x)

    def run(self, machine: SecureMachine, x: Secret, magnitude: int = 15) -> Secret:
        return exponential(machine, clipped(machine, x, -machine.setting.clip))

    def run_dealer(self, machine: SecureMachine, x: Secret, magnitude: int = 15) -> Secret:
        """exp in its window, and 0 outside: e^-15 is below 2^-21."""
        suite = machine.suite
        assert isinstance(suite, DealerSuite)
        e = suite.exp(x)
        return suite.play(suite.trimming(e, e.frac - suite.setting.frac))


class Logistic(Operation):
    """1 / (1 + e) for e in [0, 1], and a little beyond.

    Args:
        frac: fractional bits of the result with a dealer; the setting's by default.
    """

    name = "logistic"
    cut_bits = 1

    def plain(self, machine: PlainMachine, e: Value, frac: int | None = None) -> Value:
        return 1 / (1 + e)

    def run(self, machine: SecureMachine, e: Secret, frac: int | None = None) -> Secret:
        return reciprocal(machine, machine.shift(e, 1.0), 2.0)

    def run_dealer(self, machine: SecureMachine, e: Secret, frac: int | None = None) -> Secret:
        """A polynomial of degree 6, within 2^-16 on [0, 1]: a square, and one product of it with e.

        c0 + c1 e + c2 s + c3 e s + c4 s s + c5 e s s + c6 s s s, with s = e^2.
        """
        suite = machine.suite
        assert isinstance(suite, DealerSuite)
        s = machine.settle(suite.square(e))
        constant, *factors = _logistic_factors(machine.setting.frac)
        monomials = [(0,), (1,), (0, 1), (1, 1), (0, 1, 1), (1, 1, 1)]
        operands = [e.modulo(64), s]
        total = suite.play(suite.combining(operands, monomials, factors))
        total = suite.shift(total, torch.tensor(constant))
        frac = machine.setting.frac if frac is None else frac
        return suite.play(suite.trimming(total, total.frac - frac))


LOGISTIC_EXTRA = 13  # fractional bits of the last coefficient; 61 in all with 16 of e


@functools.cache
def _logistic_factors(frac: int) -> list[Any]:
    """The constant as a ring element, and for each power its coefficient and fractional bits.

    The last coefficients are rounded first, and the others are fitted to what is left.
    """
    total, degree = 3 * frac + LOGISTIC_EXTRA, 6
    points = [exact.mpf("0.5005") * (1 + node) for node in chebyshev(64)]
    wanted = [1 / (1 + x) for x in points]
    last: list[Any] = []
    for power in (degree, degree - 1):
        top = fitted(points, wanted, power)[-1]
        last.insert(0, exact.ldexp(rounded(top, LOGISTIC_EXTRA), -LOGISTIC_EXTRA))
        wanted = [value - last[0] * x**power for value, x in zip(wanted, points, strict=True)]
    constant, *rest = fitted(points, wanted, degree - 2)
    found: list[Any] = [rounded(constant, total)]
    sizes = (1, 1, 2, 2, 3, 3)  # e, s, e s, s s, e s s, s s s
    for coefficient, size in zip([*rest, *last], sizes, strict=True):
        more = total - size * frac
        found.append((rounded(coefficient, more), more))
    return found


def clipped(machine: Machine, x: Value, low: float) -> Value:
    """x, but `low` where x < low; with a dealer |x - low| < 2^15."""
    above = at_least(machine, x, low)
    return machine.shift(multiply(machine, machine.shift(x, -low), above), low)


exponential = Exponential()
stairs = Stairs()
reciprocal = Reciprocal()
inverse = Inverse()
inverse_sqrt = InverseSqrt()
decay = Decay()
logistic = Logistic()
