"""ReLU and SiLU."""

from __future__ import annotations

import torch

from mpcache.protocols.arithmetic import multiply
from mpcache.protocols.comparison import negative, pick
from mpcache.protocols.dealer import DealerSuite
from mpcache.protocols.functions import decay, logistic
from mpcache.protocols.operation import Operation, PlainMachine, SecureMachine, Value
from mpcache.protocols.secret import Secret


class Relu(Operation):
    """max(x, 0). Exact: one comparison and a product with its bit.

    With a dealer |x| < 2^15: all that the ring of a linear map holds.
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
        return suite.positive(x, MAGNITUDE)[0]


MAGNITUDE = 15  # what is activated stays below 2^15


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
        """x sigmoid(x) = min(x, 0) + |x| / (1 + exp(-|x|)): one product with the sign."""
        below = negative(machine, x, magnitude=MAGNITUDE)
        low = pick(machine, below, x)
        size = x - low.times(2)
        r = logistic(machine, decay(machine, -size, magnitude=MAGNITUDE))
        return low + multiply(machine, size, r)


relu = Relu()
silu = Silu()
