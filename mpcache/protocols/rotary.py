"""Rotary position embedding (Su et al., arXiv 2104.09864), half-split form."""

from __future__ import annotations

import torch

from mpcache.protocols.operation import Operation, PlainMachine, SecureMachine, Value
from mpcache.protocols.secret import Secret


class Rotary(Operation):
    """Rotate pairs (x_i, x_{i + d/2}) of x [..., tokens, d] by public angles.

    Args:
        cos, sin: public [tokens, d / 2].

    The two products are added before one truncation. Error: one cut, and
    (|x_i| + |x_{i + d/2}|) / 2 units from rounding cos and sin. The result is kept for many
    products.
    """

    name = "rotary"

    def plain(self, machine: PlainMachine, x: Value, cos: torch.Tensor, sin: torch.Tensor) -> Value:
        half = x.shape[-1] // 2
        first, second = x[..., :half], x[..., half:]
        cos, sin = cos.to(x), sin.to(x)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

    def run(
        self, machine: SecureMachine, x: Secret, cos: torch.Tensor, sin: torch.Tensor
    ) -> Secret:
        half, frac = x.shape[-1] // 2, machine.setting.frac
        first, second = x[..., :half], x[..., half:]
        c, s = machine.encode(cos).to(x.share.device), machine.encode(sin).to(x.share.device)
        rotated = machine.cat(
            [
                first.times(c, frac) - second.times(s, frac),
                second.times(c, frac) + first.times(s, frac),
            ],
            -1,
        )
        return machine.suite.settle_kept(rotated)


rotary = Rotary()
