"""Sums of table columns, each turned by its own public amount: memory is passed over once."""

from __future__ import annotations

from typing import Any

import torch
from numba import njit


@njit(nogil=True, cache=True)
def _tally(table: Any, turns: Any, weights: Any, out: Any) -> None:
    """out[c, r] = sum_i weights[r, i] table[(turns[r, i] - c) mod cells, r, i]."""
    cells, rows, count = table.shape
    for cell in range(cells):
        column = table[cell]
        for r in range(rows):
            values, steps, factors = column[r], turns[r], weights[r]
            for i in range(count):
                # the entry at `cell` is what turns - (turns - cell) = cell asks for
                place = (steps[i] - cell) & (cells - 1)
                out[place, r] += factors[i] * values[i]


def tally(
    table: torch.Tensor, turns: torch.Tensor, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """For every cell c the sum over the last dimension of table[(turns - c) mod cells].

    Args:
        table: integers [cells, ..., n], cells a power of two.
        turns: int64 [..., n] in [0, cells).
        weights: integers [..., n], or None for ones.

    Returns:
        int64 [cells, ...].
    """
    cells, shape = table.shape[0], turns.shape
    rows = shape[:-1].numel()
    flat = table.reshape(cells, rows, shape[-1]).contiguous()
    ones = torch.ones((), dtype=torch.int64) if weights is None else weights
    factors = ones.expand(shape).reshape(rows, shape[-1]).contiguous()
    out = torch.zeros((cells, rows), dtype=torch.int64)
    _tally(
        flat.numpy(),
        turns.reshape(rows, shape[-1]).contiguous().numpy(),
        factors.numpy(),
        out.numpy(),
    )
    return out.reshape(cells, *shape[:-1])
