"""RMSNorm (Zhang and Sennrich 2019) and LayerNorm (Ba et al. 2016) over the last dimension."""

from __future__ import annotations

import math

import torch

from mpcache.protocols.arithmetic import multiply, scale
from mpcache.protocols.functions import inverse_sqrt, stairs
from mpcache.protocols.operation import Operation, PlainMachine, SecureMachine, Value
from mpcache.protocols.secret import Secret

# Rows are brought to a sum of squares in [LOW, 4 LOW): small enough that its truncation is safe,
# large enough that the elements keep their precision.
LOW = 64.0
# Mean squares are told apart from 2^-16 up; sums of squares must stay below 2^30.
SMALLEST_MEAN = -16
LARGEST_SUM = 30


class Norm(Operation):
    """Rows [rows, n] over their root mean square, times a gain [n], plus a bias [n].

    On shares:

    1. (`centered`) subtract the mean.
    2. s = sum of squares + n eps, with all its bits: no truncation.
    3. Steps at 64 * 4^k of s: a secret f = 2^-k, and x' = f x has its sum of squares, with
       f^2 n eps added, in [64, 256). Both f and f^2 n eps are step functions of s.
    4. r = 1/sqrt(that sum / 64), and x' r sqrt(n/64) gain + bias.

    No calibration is needed: rows with a root mean square from 2^-8 on and a sum of squares below
    2^30 are all normalised with the same precision. Error in cuts, with y before the gain:
    |gain| (sqrt(n) / 8 + 1 + |y| (7 + sqrt(n) / 8 + 40 / sqrt(n))) + 1; centered rows add
    |gain| (1 + |y|) / rms, since their mean is off by a cut.
    """

    name = "norm"

    def plain(
        self,
        machine: PlainMachine,
        x: Value,
        gain: Value,
        bias: Value | None,
        eps: float,
        centered: bool,
    ) -> Value:
        if centered:
            x = x - x.mean(-1, keepdim=True)
        y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * gain
        return y if bias is None else y + bias

    def run(
        self,
        machine: SecureMachine,
        x: Secret,
        gain: Secret,
        bias: Secret | None,
        eps: float,
        centered: bool,
    ) -> Secret:
        size = x.shape[-1]
        if centered:
            x = x - machine.settle(scale(machine, x.sum(-1, keepdim=True), 1 / size))
        bits = int(math.log2(LOW))
        floor = 2 * ((SMALLEST_MEAN + int(math.log2(size)) - bits) // 2)
        steps = torch.arange(floor, LARGEST_SUM - bits + 1, 2, dtype=torch.float64)
        total = machine.shift(machine.suite.square(x).sum(-1, keepdim=True), eps * size)
        factor, offset = stairs(
            machine,
            total,
            LOW * torch.exp2(steps[1:]),
            torch.exp2(-steps / 2),
            eps * size / LOW * torch.exp2(-steps),
            magnitude=LARGEST_SUM + 1,
        )
        x = multiply(machine, x, factor)
        squares = machine.suite.square(x).sum(-1, keepdim=True).halved(bits)
        mean = machine.settle(squares) + offset
        root = scale(machine, inverse_sqrt(machine, mean), (size / LOW) ** 0.5)
        y = multiply(machine, multiply(machine, x, machine.settle(root)), gain)
        return y if bias is None else y + bias


norm = Norm()
