"""Sums of table columns, each turned by its own public amount: memory is passed over once."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit


@njit(nogil=True, cache=True)
def _tally(table: Any, turns: Any, weights: Any, out: Any) -> None:
    """out[r, c] = sum_i weights[r, i] table[r, i, (c - turns[r, i]) mod cells]."""
    rows, count, cells = table.shape
    sums = np.empty(2 * cells, out.dtype)  # of turned columns, not yet folded: one loop a column
    for r in range(rows):
        sums[:] = 0
        for i in range(count):
            factor, entries = weights[r, i], table[r, i]
            if factor == 0:
                continue
            turned = sums[turns[r, i] : turns[r, i] + cells]
            for c in range(cells):
                turned[c] += factor * entries[c]
        for c in range(cells):
            out[r, c] = sums[c] + sums[cells + c]


def tally(
    table: torch.Tensor, turns: torch.Tensor, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """For every cell c the sum over n of table[.., (c - turns) mod cells].

    Args:
        table: integers [..., n, cells]; sums wrap in its dtype.
        turns: int64 [..., n] in [0, cells).
        weights: integers [..., n], or None for ones.

    Returns:
        int64 [cells, ...].
    """
    shape, cells = turns.shape, table.shape[-1]
    rows = shape[:-1].numel()
    flat = table.reshape(rows, shape[-1], cells).contiguous()
    ones = torch.ones((), dtype=table.dtype) if weights is None else weights.to(table.dtype)
    factors = ones.expand(shape).reshape(rows, shape[-1]).contiguous()
    out = torch.zeros((rows, cells), dtype=table.dtype)
    _tally(
        flat.numpy(),
        turns.reshape(rows, shape[-1]).contiguous().numpy(),
        factors.numpy(),
        out.numpy(),
    )
    return out.t().reshape(cells, *shape[:-1]).to(torch.int64)
