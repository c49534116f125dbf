"""Softmax with a public mask, and attention made of it."""

from __future__ import annotations

import torch

from mpcache.protocols.arithmetic import matmul, multiply, scale
from mpcache.protocols.comparison import maximum
from mpcache.protocols.functions import decay, reciprocal
from mpcache.protocols.operation import Machine, Operation, PlainMachine, SecureMachine, Value
from mpcache.protocols.secret import Secret

HIDDEN = -(2.0**11)  # scores stay between it and 2^11
MAGNITUDE = 12  # so that their differences stay below 2^12


class Softmax(Operation):
    """Probabilities over the last dimension, where `visible` (public, 0/1, or None for all).

    On shares:

    1. Hidden places get -2^11; d = x - max(x), clipped to [-16, 0].
    2. e = exp(d), hidden places set to 0; r = 1 / sum(e); p = e r.

    CrypTen's softmax does not clip, and its exp grows again below about -500. Error in
    cuts: that of exp over the sum s of all e, p times the same for s, 4 p, and 1.
    """

    name = "softmax"

    def plain(self, machine: PlainMachine, x: Value, visible: torch.Tensor | None = None) -> Value:
        if visible is not None:
            x = x.masked_fill(visible.to(x.device) == 0, float("-inf"))
        return torch.softmax(x, -1)

    def run(self, machine: SecureMachine, x: Secret, visible: torch.Tensor | None = None) -> Secret:
        if visible is not None:
            visible = visible.to(x.share.device, torch.int64)
            x = machine.shift(x.times(visible), HIDDEN * (1 - visible))
        top = maximum(machine, x, x.ndim - 1, magnitude=MAGNITUDE, keep=4)
        e = decay(machine, x - top, magnitude=MAGNITUDE)
        if visible is not None:
            e = e.times(visible)
        r = reciprocal(machine, e.sum(-1, keepdim=True), float(x.shape[-1]))
        return multiply(machine, e, r)


softmax = Softmax()


def attention(
    machine: Machine,
    queries: Value,
    keys: Value,
    values: Value,
    visible: torch.Tensor | None = None,
) -> tuple[Value, Value]:
    """Softmax attention of grouped query heads over shared key/value heads.

    Args:
        queries: [kv_heads, group, queries, head_dim], rotated.
        keys, values: [kv_heads, tokens, head_dim].
        visible: public 0/1 mask, broadcast to [kv_heads, group, queries, tokens].

    Returns:
        The context [kv_heads, group, queries, head_dim] and the probabilities
        [kv_heads, group, queries, tokens].
    """
    heads, group, count, width = queries.shape
    with machine.scope("scores"):
        flat = scale(machine, queries, width**-0.5).reshape(heads, group * count, width)
        scores = matmul(machine, flat, keys.transpose(-1, -2))
        scores = scores.reshape(heads, group, count, keys.shape[-2])
    probabilities = softmax(machine, scores, visible)
    with machine.scope("values"):
        flat = probabilities.reshape(heads, group * count, keys.shape[-2])
        context = matmul(machine, flat, values)
    return context.reshape(heads, group, count, width), probabilities
