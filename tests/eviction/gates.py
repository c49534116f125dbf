"""Drawn gates, for models that none were trained for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch

from mpcache.eviction.attention_gate import AttentionGateCache

LAYERS = 4


def gates(heads: int, width: int) -> tuple[torch.Tensor, ...]:
    """Random gates: for each layer [heads * 2 * width, heads], exact in fixed point."""
    generator = torch.Generator().manual_seed(7)
    shape = (LAYERS, heads * 2 * width, heads)
    return tuple(torch.round(torch.randn(shape, generator=generator) * 2**12) / 2**12)


@contextmanager
def drawn() -> Iterator[None]:
    """Caches use them where there are no trained ones."""
    inner = AttentionGateCache._gate

    def gate(self: Any, layer: int, shape: tuple[int, int]) -> torch.Tensor:
        inputs, heads = shape
        trained = inner(self, layer, shape)
        return gates(heads, inputs // 2 // heads)[layer] if trained is None else trained

    with mock.patch.object(AttentionGateCache, "_gate", gate):
        yield
