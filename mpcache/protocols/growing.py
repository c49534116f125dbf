"""Tokens that are added one by one, with room for those to come: nothing is copied each time."""

from __future__ import annotations

import torch

from mpcache.protocols.operation import Value
from mpcache.protocols.secret import Kept, Secret

LEAST_ROOM = 32


def _tensors(value: Value) -> list[torch.Tensor]:
    if isinstance(value, Kept):
        return [value.opened] if value.mask is None else [value.opened, value.mask]
    return [value.share] if isinstance(value, Secret) else [value]


def _like(value: Value, tensors: list[torch.Tensor]) -> Value:
    if isinstance(value, Kept):
        mask = tensors[1] if value.mask is not None else None
        return Kept(tensors[0], mask, value.frac, value.rank, value.width)
    return Secret(tensors[0], value.frac, value.width) if isinstance(value, Secret) else tensors[0]


class Growing:
    """A value [rows, tokens, ...] that takes more tokens; `value` is what is there.

    The first addition moves it to memory of its own, a quarter larger.
    """

    def __init__(self, value: Value) -> None:
        self.value = value
        self._room: list[torch.Tensor] = []

    def add(self, fresh: Value) -> Value:
        """Append `fresh` [rows, more, ...] of the same kind, and return the whole."""
        held, more = _tensors(self.value), _tensors(fresh)
        if len(held) != len(more) or type(self.value) is not type(fresh):
            raise TypeError("tokens of another kind cannot be appended")
        if isinstance(fresh, Secret):
            fresh._match(self.value)
        begin, count = held[0].shape[1], more[0].shape[1]
        if not self._room or self._room[0].shape[1] < begin + count:
            size = begin + count + max(LEAST_ROOM, begin // 4)
            self._room = [t.new_empty((t.shape[0], size, *t.shape[2:])) for t in held]
            for room, tensor in zip(self._room, held, strict=True):
                room[:, :begin] = tensor
        for room, tensor in zip(self._room, more, strict=True):
            room[:, begin : begin + count] = tensor
        width = min(fresh.width, self.value.width) if isinstance(fresh, Secret) else 0
        self.value = _like(fresh, [room[:, : begin + count] for room in self._room])
        if width:
            self.value = self.value.modulo(width)
        return self.value
