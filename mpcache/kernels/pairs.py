"""All pairs i < j of a row, row by row: their differences, and what each element has won."""

from __future__ import annotations

from typing import Any

import torch
from numba import njit


@njit(nogil=True, cache=True)
def _differences(values: Any, mask: int, out: Any) -> None:
    rows, size = values.shape
    for r in range(rows):
        at = 0
        for i in range(size):
            for j in range(i + 1, size):
                out[r, at + j - i - 1] = (values[r, i] - values[r, j]) & mask
            at += size - 1 - i


@njit(nogil=True, cache=True)
def _balances(results: Any, out: Any) -> None:
    rows, size = out.shape
    for r in range(rows):
        at = 0
        for i in range(size):
            own = out[r, i]
            for j in range(i + 1, size):
                result = results[r, at + j - i - 1]
                own += result
                out[r, j] -= result
            out[r, i] = own
            at += size - 1 - i


def differences(values: torch.Tensor, bits: int) -> torch.Tensor:
    """x_i - x_j modulo 2^bits, bits < 64: int64 [..., n] -> [..., n (n - 1) / 2]."""
    rows, size = values.shape[:-1], values.shape[-1]
    out = torch.empty((rows.numel(), size * (size - 1) // 2), dtype=torch.int64)
    flat = values.reshape(rows.numel(), size).contiguous()
    _differences(flat.numpy(), (1 << bits) - 1, out.numpy())
    return out.reshape(*rows, out.shape[1])


def balances(results: torch.Tensor, size: int) -> torch.Tensor:
    """Each element's sum over pairs in which it is first, less that over those in which it is
    second: integers [..., n (n - 1) / 2] -> [..., n] in the same dtype, `size` being n."""
    rows = results.shape[:-1]
    out = torch.zeros((rows.numel(), size), dtype=results.dtype)
    flat = results.reshape(rows.numel(), results.shape[-1]).contiguous()
    _balances(flat.numpy(), out.numpy())
    return out.reshape(*rows, size)
