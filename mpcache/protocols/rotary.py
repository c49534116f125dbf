"""Rotary position embedding (Su et al., arXiv 2104.09864), half-split form."""

from __future__ import annotations

from typing import Any

import torch

from mpcache.protocols.operation import Operation, PlainMachine, SecureMachine, Value
from mpcache.protocols.reach import RING_BITS, Reach, Reached
from mpcache.protocols.secret import Secret

TURNED = Reach("result", RING_BITS, RING_BITS + 1)  # kept modulo 2^48, so a cut has a bit more


class Rotary(Operation):
    """Rotate pairs (x_i, x_{i + d/2}) of x [..., tokens, d] by their tokens' angles.

    Args:
        cos, sin: [tokens, d / 2], public, or both secret where nobody shall learn the positions.

    The two products are added before one truncation. Public angles: error one cut, and
    (|x_i| + |x_{i + d/2}|) / 2 units from rounding cos and sin; secret ones are rounded before.
    With a dealer secret angles that are kept (`Machine.keep`) have x opened once.
    The result is kept for many products.
    """

    name = "rotary"

    def plain(self, machine: PlainMachine, x: Value, cos: Value, sin: Value) -> Value:
        half = x.shape[-1] // 2
        first, second = x[..., :half], x[..., half:]
        cos, sin = cos.to(x), sin.to(x)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

    def run(
        self,
        machine: SecureMachine,
        x: Secret,
        cos: torch.Tensor | Secret,
        sin: torch.Tensor | Secret,
    ) -> Secret:
        half, frac = x.shape[-1] // 2, machine.setting.frac
        if isinstance(cos, Secret) or isinstance(sin, Secret):
            assert isinstance(cos, Secret) and isinstance(sin, Secret)
            x = machine.keep(x)
            turned = machine.cat([x[..., half:], x[..., :half]], -1)
            straight = machine.suite.multiply(x, machine.cat([cos, cos], -1))
            across = machine.suite.multiply(turned, machine.cat([-sin, sin], -1))
            return machine.settle(straight + across)
        first, second = x[..., :half], x[..., half:]
        c, s = machine.encode(cos), machine.encode(sin)
        rotated = machine.cat(
            [
                first.times(c, frac) - second.times(s, frac),
                second.times(c, frac) + first.times(s, frac),
            ],
            -1,
        )
        return machine.suite.settle_kept(rotated)

    def reaches(self, result: Value, *args: Any, **options: Any) -> Reached:
        yield TURNED, result


rotary = Rotary()
