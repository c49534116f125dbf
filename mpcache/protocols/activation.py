"""ReLU and SiLU."""

from __future__ import annotations

import torch

from mpcache.protocols.arithmetic import multiply
from mpcache.protocols.comparison import negative
from mpcache.protocols.dealer import DealerSuite
from mpcache.protocols.functions import decay, logistic
from mpcache.protocols.operation import Operation, PlainMachine, SecureMachine, Value
from mpcache.protocols.secret import Secret


class Relu(Operation):
    """max(x, 0). Exact: one comparison and a product with its bit.

    With a dealer the result counts in the setting's narrow ring.
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


MAGNITUDE = 15  # what is activated stays below 2^15


class Silu(Operation):
    """x sigmoid(x).

    1. n = [x < 0]; -|x| clipped to [-16, 0]; e = exp(-|x|); r = 1 / (1 + e), in [1/2, 1].
    2. sigmoid(x) = r + n (1 - 2r); times x.

    Error: 1 + 28 |x| cuts; beyond the clip sigmoid is 0 or 1 within three cuts.
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


GATE_TRIM = 2  # fractional bits that a gate's logistic does without


def _parted(machine: SecureMachine, x: Secret) -> tuple[Secret, Secret]:
    """min(x, 0) and |x|."""
    suite = machine.suite
    assert isinstance(suite, DealerSuite)
    high, low = suite.positive(x, MAGNITUDE)
    return low, high - low


relu = Relu()
silu = Silu()
gated = Gated()
