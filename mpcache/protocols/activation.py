"""ReLU, SiLU and GELU."""

from __future__ import annotations

import functools
import math

import torch

from mpcache.protocols.arithmetic import multiply, scale
from mpcache.protocols.comparison import negative, pick
from mpcache.protocols.dealer import DealerSuite
from mpcache.protocols.exact import chebyshev, exact, fitted, numbers
from mpcache.protocols.functions import clipped, decay, exponential, logistic, reciprocal
from mpcache.protocols.operation import Operation, PlainMachine, SecureMachine, Value
from mpcache.protocols.reach import Reached, within
from mpcache.protocols.secret import Secret


class Relu(Operation):
    """max(x, 0). Exact: one comparison and a product with its bit.

    With a dealer |x| < 2^15, and the result counts in the setting's narrow ring.
    """

    name = "relu"

    def plain(self, machine: PlainMachine, x: Value) -> Value:
        return torch.relu(x)

    def run(self, machine: SecureMachine, x: Secret) -> Secret:
        x = machine.settle(x)
        return x - multiply(machine, x, negative(machine, x))

    def run_dealer(self, machine: SecureMachine, x: Secret) -> Secret:
        """Without the product; more fractional bits than the setting's are cut on the way."""
        suite = machine.suite
        assert isinstance(suite, DealerSuite)
        return suite.positive(x, MAGNITUDE, machine.setting.narrow)[0]

    def reaches(self, result: Value, x: Value) -> Reached:
        yield ARGUMENT, x


MAGNITUDE = 15  # what is activated stays below 2^15
GATED_BITS = 16  # and a gate times its factor below 2^16
ARGUMENT = within("argument", MAGNITUDE)


class Silu(Operation):
    """x sigmoid(x).

    1. n = [x < 0]; -|x| clipped to [-16, 0]; e = exp(-|x|); r = 1 / (1 + e), in [1/2, 1].
    2. sigmoid(x) = r + n (1 - 2r); times x.

    Error: 1 + 28 |x| cuts; beyond the clip sigmoid is 0 or 1 within three cuts. With a dealer
    |x| < 2^15: all that the ring of a linear map holds.
    """

    name = "silu"

    def plain(self, machine: PlainMachine, x: Value) -> Value:
        return torch.nn.functional.silu(x)

    def run(self, machine: SecureMachine, x: Secret) -> Secret:
        below = negative(machine, x, magnitude=MAGNITUDE, keep=8)
        depth = multiply(machine, x, below).times(2) - x
        e = decay(machine, depth, magnitude=MAGNITUDE)
        r = logistic(machine, e)
        flip = multiply(machine, machine.shift(-r.times(2), 1.0), below)
        return multiply(machine, x, r + flip)

    def run_dealer(self, machine: SecureMachine, x: Secret) -> Secret:
        """x sigmoid(x) = min(x, 0) + |x| / (1 + exp(-|x|))."""
        low, size = _parted(machine, x)
        r = logistic(machine, decay(machine, -size, magnitude=MAGNITUDE))
        return low + multiply(machine, size, r)

    def reaches(self, result: Value, x: Value) -> Reached:
        yield ARGUMENT, x


class Gated(Operation):
    """silu(gate) times up.

    With a dealer the last two products are one: min(gate, 0) up + |gate| r up, with 14 fractional
    bits of r. Error there: |up| times that of `Silu`, and |gate up| 2^-15. The product must stay
    below 2^16.
    """

    name = "gated"

    def plain(self, machine: PlainMachine, gate: Value, up: Value) -> Value:
        return silu.plain(machine, gate) * up

    def run(self, machine: SecureMachine, gate: Secret, up: Secret) -> Secret:
        return multiply(machine, silu(machine, gate), up)

    def run_dealer(self, machine: SecureMachine, gate: Secret, up: Secret) -> Secret:
        suite, frac = machine.suite, machine.setting.frac
        assert isinstance(suite, DealerSuite)
        low, size = _parted(machine, gate)
        e = decay(machine, -size, magnitude=MAGNITUDE)
        r = logistic(machine, e, frac - GATE_TRIM)
        more = frac - GATE_TRIM
        factors = [(1 << more, more), (1, 0)]
        y = suite.play(suite.combining([low, size, r, up], [(0, 3), (1, 2, 3)], factors))
        return suite.play(suite.trimming(y, y.frac - frac))

    def reaches(self, result: Value, gate: Value, up: Value) -> Reached:
        yield within("gate", MAGNITUDE), gate
        yield within("gate times factor", GATED_BITS), gate * up


GATE_TRIM = 2  # fractional bits that a gate's logistic does without


def _parted(machine: SecureMachine, x: Secret) -> tuple[Secret, Secret]:
    """min(x, 0) and |x|."""
    suite = machine.suite
    assert isinstance(suite, DealerSuite)
    high, low = suite.positive(x, MAGNITUDE)
    return low, high - low


class Gelu(Operation):
    """x Phi(x), Phi the normal distribution (Hendrycks and Gimpel 2016, arXiv 1606.08415).

    x Phi(x) = max(x, 0) - h(|x|), where h(t) = t (1 - Phi(t)) falls to 2^-23 at t = 5.6, and is
    nothing beyond.

    1. t = |x|, kept to [0, 5.6]; exp(-t^2 / 2); k = 1 / (1 + 0.2316419 t).
    2. 1 - Phi(t) = exp(-t^2 / 2) times a polynomial of degree 5 in k, to 7.5e-8 (Abramowitz and
       Stegun 1964, 26.2.17).

    Error: 28 cuts. With a dealer 3 units, or 4 where x has more fractional bits than the setting,
    for |x| < 2^15: all that the ring of a linear map holds.
    """

    name = "gelu"

    def plain(self, machine: PlainMachine, x: Value) -> Value:
        return torch.nn.functional.gelu(x)

    def run(self, machine: SecureMachine, x: Secret) -> Secret:
        x = machine.settle(x)
        upper = x - pick(machine, negative(machine, x), x)
        t = -clipped(machine, x - upper.times(2), -GELU_END)
        e = exponential(machine, -machine.settle(machine.suite.square(t).halved(1)))
        k = reciprocal(machine, machine.shift(scale(machine, t, GELU_SLOPE), 1.0), 4.0)
        tail = machine.zeros_like(k, tuple(k.shape))
        for factor in reversed(GELU_TAIL):
            tail = multiply(machine, k, machine.shift(tail, factor))
        return upper - multiply(machine, t, multiply(machine, e, tail))

    def run_dealer(self, machine: SecureMachine, x: Secret) -> Secret:
        """h from one of 64 quadratics, whose coefficients one row of bits selects.

        1. max(x, 0) and |x| from one opening; the cell of 1/13 that |x| is in, or one below: far
           values are in the last one, where h is 0.
        2. A one-hot row of the cell, and with it, locally, a, b, c and the cell's centre.
        3. a + b s + c s^2 for s, |x| from the centre, in one round, modulo 2^48.
        """
        suite, frac = machine.suite, machine.setting.frac
        assert isinstance(suite, DealerSuite)
        upper, lower = suite.positive(x, MAGNITUDE)
        t = Secret((upper - lower).share, upper.frac)
        cells = suite.clamp(t.times(GELU_CELLS), 0, GELU_BITS, far=GELU_FAR)
        row = suite.one_hot(cells, 0, GELU_BITS, suite.setting.narrow)
        tables, total = _gelu_pieces(), 2 * frac + GELU_FINE
        fracs = (total, total - frac, GELU_FINE, frac)
        a, b, c, centre = (
            row.times(machine.encode(table, bits).reshape(-1, *([1] * t.ndim)), bits).sum(0)
            for table, bits in zip(tables, fracs, strict=True)
        )
        operands = [a, b, c, t - centre]
        h = suite.play(suite.combining(operands, [(0,), (1, 3), (2, 3, 3)]))
        return upper - suite.play(suite.trimming(h, total - frac))

    def reaches(self, result: Value, x: Value) -> Reached:
        yield ARGUMENT, x


GELU_END, GELU_SLOPE = 5.6, 0.2316419
GELU_TAIL = [
    factor / math.sqrt(2 * math.pi)
    for factor in (0.319381530, -0.356563782, 1.781477937, -1.821255978, 1.330274429)
]
GELU_BITS, GELU_CELLS = 6, 13  # 2^6 cells, 13 of them a unit
GELU_FAR = 14  # bits above the cells, for |x| < 2^15
GELU_FINE = 12  # fractional bits of the square's coefficient


@functools.cache
def _gelu_pieces() -> torch.Tensor:
    """a, b, c and the centre [4, 2^6] of each cell: h(t) is a + b s + c s^2, s = t - centre.

    A piece holds for two cells, since a cell may come out one too low; the last one is 0.
    """
    size = 1 << GELU_BITS
    nodes, root = [node / GELU_CELLS for node in chebyshev(3)], exact.sqrt(2)
    rows = []
    for cell in range(size):
        centre = exact.mpf(cell + 1) / GELU_CELLS
        h = [(centre + s) * exact.erfc((centre + s) / root) / 2 for s in nodes]
        rows.append(numbers([*fitted(nodes, h, 2), centre]))
    pieces = torch.stack(rows, -1)
    pieces[:-1, -1] = 0.0
    return pieces


relu = Relu()
silu = Silu()
gated = Gated()
gelu = Gelu()
