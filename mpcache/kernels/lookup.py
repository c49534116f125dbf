"""Tables turned by a hidden number, dealt and read in one pass over their memory.

For y = x + r mod 2^bits, opened, the entry y of a table turned by r is the table's entry x.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit

from mpcache.errors import UsageError
from mpcache.kernels.shapes import buffer


@njit(nogil=True, cache=True)
def _turned(tables: Any, r: Any, own: Any, out: Any) -> None:
    """out[v, t, i] = tables[t, v - r[i]] - own[v, t, i]."""
    size, words, count = out.shape
    for v in range(size):
        for t in range(words):
            entries, less, result = tables[t], own[v, t], out[v, t]
            for i in range(count):
                result[i] = entries[(v - np.int64(r[i])) & (size - 1)] - less[i]


@njit(nogil=True, cache=True)
def _units(r: Any, own: Any, out: Any) -> None:
    """out[i, v] = [v == -r[i]] - own[i, v]."""
    count, size = out.shape
    for i in range(count):
        less, result = own[i], out[i]
        for v in range(size):
            result[v] = -less[v]
        result[-np.int64(r[i]) & (size - 1)] += 1


@njit(nogil=True, cache=True)
def _read(table: Any, y: Any, out: Any) -> None:
    """out[t, i] = table[y[i], t, i]."""
    size, words, count = table.shape
    for t in range(words):
        for i in range(count):
            out[t, i] = table[np.int64(y[i]) & (size - 1), t, i]


def turned_tables(tables: torch.Tensor, r: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """Party 1's share of public tables, turned by each r.

    Args:
        tables: int64 [tables, 2^bits].
        r: integers [n], taken mod 2^bits.
        own: party 0's share, integers [2^bits, tables, n]; sums wrap in its dtype.

    Returns:
        As `own`.

    Raises:
        UsageError: on shapes that do not fit.
    """
    words, size = tables.shape
    _check(own, (size, words, r.numel()), size)
    out = _like(own)
    held = tables.contiguous().numpy(), r.contiguous().numpy(), own.contiguous().numpy()
    _turned(*held, out.numpy())
    return out


def unit_rows(r: torch.Tensor, own: torch.Tensor) -> torch.Tensor:
    """Party 1's share of the unit vector of -r, for each r.

    Args:
        r: integers [n], taken mod 2^bits.
        own: party 0's share, integers [n, 2^bits]; sums wrap in its dtype.

    Returns:
        As `own`.

    Raises:
        UsageError: on shapes that do not fit.
    """
    size = own.shape[-1]
    _check(own, (r.numel(), size), size)
    out = _like(own)
    _units(r.contiguous().numpy(), own.contiguous().numpy(), out.numpy())
    return out


def table_words(table: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """A party's share of the entries at an opened y.

    Args:
        table: its share of the turned tables, integers [2^bits, tables, n].
        y: integers [n], taken mod 2^bits.

    Returns:
        int64 [tables, n].

    Raises:
        UsageError: on shapes that do not fit.
    """
    size = table.shape[0]
    _check(table, (size, *table.shape[1:2], y.numel()), size)
    out = torch.empty(tuple(table.shape[1:]), dtype=torch.int64)
    _read(table.contiguous().numpy(), y.contiguous().numpy(), out.numpy())
    return out


def _like(own: torch.Tensor) -> torch.Tensor:
    octets = torch.from_numpy(buffer(own.numel() * own.element_size()))
    return octets.view(own.dtype).view(own.shape)


def _check(table: torch.Tensor, expected: tuple[int, ...], size: int) -> None:
    if tuple(table.shape) != expected or size < 1 or size & (size - 1):
        raise UsageError(
            f"A share of a table has shape {list(table.shape)}; expected {list(expected)}, "
            "with a power of two of entries."
        )
