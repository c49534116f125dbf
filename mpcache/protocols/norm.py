"""RMSNorm (Zhang and Sennrich 2019) and LayerNorm (Ba et al. 2016) over the last dimension."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch

from mpcache.protocols.arithmetic import multiply, scale
from mpcache.protocols.dealer import DealerSuite
from mpcache.protocols.exact import powers_of_two
from mpcache.protocols.functions import inverse_sqrt, stairs, stepped, stepped_product
from mpcache.protocols.operation import Operation, PlainMachine, SecureMachine, Value
from mpcache.protocols.plans import DEALT_WEIGHT, ROUND_BYTES
from mpcache.protocols.reach import Reach, Reached
from mpcache.protocols.secret import Secret
from mpcache.protocols.splines import lining

# Rows are brought to a sum of squares in [LOW, 4 LOW): small enough that its truncation is safe,
# large enough that the elements keep their precision.
LOW = 64.0
# The suite dealer brings the sum of squares itself to [SCALED, 4 SCALED), without a truncation.
SCALED = 10  # a power of two: SCALED + 20 is LARGEST_SUM, and 2 LARGEST_SUM + 2 bits fit
FACTOR_FRAC = 10  # fractional bits of the factor 2^-k, which is 2^-9 at least
ROOT_FRAC = 26  # and of its product with the root
# Fractional bits of t and of a slope: with all of them, and where x is multiplied in one go.
PARTED, WHOLE = (16, 24), (14, 16)
# Mean squares are told apart from 2^-16 up, sums of squares up to 2^30.
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

    With a dealer a sum of squares from 2^30 on counts as 2^31, so that |y| comes out up to 0.3 too
    small. From 2^31 on (a root of the sum of 46,340) the ring cannot hold it, and it wraps.
    """

    name = "norm"

    def plain(
        self,
        machine: PlainMachine,
        x: Value,
        gain: Value | None,
        bias: Value | None,
        eps: float,
        centered: bool,
    ) -> Value:
        if centered:
            x = x - x.mean(-1, keepdim=True)
        y = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)
        y = y if gain is None else y * gain
        return y if bias is None else y + bias

    def run(
        self,
        machine: SecureMachine,
        x: Secret,
        gain: Secret | None,
        bias: Secret | None,
        eps: float,
        centered: bool,
    ) -> Secret:
        size = x.shape[-1]
        if centered:
            x = x - machine.settle(scale(machine, x.sum(-1, keepdim=True), 1 / size))
        bits = int(math.log2(LOW))
        floor = 2 * ((SMALLEST_MEAN + int(math.log2(size)) - bits) // 2)
        steps = range(floor, LARGEST_SUM - bits + 1, 2)
        scales = powers_of_two(-step for step in steps)
        total = machine.shift(machine.suite.square(x).sum(-1, keepdim=True), eps * size)
        factor, offset = stairs(
            machine,
            total,
            LOW * powers_of_two(steps[1:]),
            scales.sqrt(),
            eps * size / LOW * scales,
            magnitude=LARGEST_SUM + 1,
        )
        x = multiply(machine, x, factor)
        squares = machine.suite.square(x).sum(-1, keepdim=True).halved(bits)
        mean = machine.settle(squares) + offset
        root = scale(machine, inverse_sqrt(machine, mean), math.sqrt(size / LOW))
        y = multiply(machine, x, machine.settle(root))
        y = y if gain is None else multiply(machine, y, gain)
        return y if bias is None else y + bias

    def run_dealer(
        self,
        machine: SecureMachine,
        x: Secret,
        gain: Secret | None,
        bias: Secret | None,
        eps: float,
        centered: bool,
    ) -> Secret:
        """x is opened once, for its square and its product; what lies between is one number a row.

        1. s = sum of squares + n eps. Steps at 768 * 4^k of s: f^2 = 4^-k and f = 2^-k.
        2. t = s f^2 in [768, 3072), up to 4096 at the last step, exactly, in the same round: no
           truncation. From 2^30 on t is 2048 and f 2^-10.
        3. sqrt(n) / sqrt(t) = a + b t in a segment of 2^-8.
        4. x (a + b t) f: with few rounds in one product, where the line has 30 fractional bits;
           else (a + b t) f is cut to 26 of them first.
        """
        suite, size = machine.suite, x.shape[-1]
        assert isinstance(suite, DealerSuite)
        x = suite.widened(x)  # squares need all bits
        if centered:
            x = x - machine.settle(scale(machine, x.sum(-1, keepdim=True), 1 / size))
        kept = suite.keep(x)
        total = machine.shift(suite.multiply(kept, kept).sum(-1, keepdim=True), eps * size)
        floor = 2 * ((SMALLEST_MEAN + int(math.log2(size)) - SCALED) // 2)
        steps = range(floor, LARGEST_SUM - SCALED, 2)
        thresholds = 0.75 * 2.0**SCALED * powers_of_two(steps[1:])
        scales = powers_of_two(-step for step in steps)
        zero = torch.zeros(1, dtype=torch.float64)
        thresholds = torch.cat([thresholds, zero + 2.0**LARGEST_SUM])
        with machine.scope("steps"):
            reached, totals = suite.steps(total, machine.encode(thresholds, total.frac))
        roots = torch.cat([scales.sqrt(), zero + 2.0**-FACTOR_FRAC])
        factor = stepped(machine, reached, roots, FACTOR_FRAC)
        t = stepped_product(machine, total, totals, torch.cat([scales, zero]), steps[-1])
        ceiling = 2.0 ** (LARGEST_SUM + 1 - 2 * FACTOR_FRAC)
        t = t + stepped(machine, reached, torch.cat([0 * scales, zero + ceiling]), t.frac)
        shift = math.floor(math.log2(size) / 2) - SCALED // 2
        root = scaled_root(math.sqrt(size) / 2 ** (SCALED // 2 + shift))
        # two rounds fewer, for nine products of masks an element
        profile = suite.setting.profile
        saved = 2 * ROUND_BYTES[profile] >= DEALT_WEIGHT[profile] * 9 * 8 * x.share.numel()
        whole = saved and x.frac + sum(WHOLE) + FACTOR_FRAC <= 56
        cut, fine = WHOLE if whole else PARTED
        parts = lining(machine, t.halved(SCALED), root, 0.7, 4.0, 8, 10, cut, fine)
        a, b, t = suite.play(parts)
        if whole:
            operands = [kept, a, b, t, factor]
            y = suite.play(suite.combining(operands, [(0, 1, 4), (0, 2, 3, 4)]))
        else:
            r = suite.play(suite.combining([a, b, t, factor], [(0, 3), (1, 2, 3)])).halved(-shift)
            r = suite.truncate(r, r.frac - ROOT_FRAC)
            y, shift = suite.multiply(kept, r), 0
        y = y.halved(-shift)
        y = suite.play(suite.trimming(y, y.frac - suite.setting.frac))
        y = y if gain is None else multiply(machine, y, gain)
        return y if bias is None else y + bias

    def reaches(
        self,
        result: Value,
        x: Value,
        gain: Value | None,
        bias: Value | None,
        eps: float,
        centered: bool,
    ) -> Reached:
        if centered:
            x = x - x.mean(-1, keepdim=True)
        total = x.square().sum(-1) + eps * x.shape[-1]
        yield Reach("sum of squares", LARGEST_SUM, LARGEST_SUM + 1), total


@functools.cache
def scaled_root(root: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """root / sqrt(x), one function for each number, so that its tables are made once."""
    return lambda x: root * torch.rsqrt(x)


norm = Norm()
