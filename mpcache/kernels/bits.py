"""Products of a matrix of bits with ring elements: rows that are chosen are added, none multiplied.

Few rows of bits add what they choose, eight at a time. Many rows share tables: the 16 sums of
every four rows of the right side are made once, and each row of bits adds one of them for four of
its bits (Arlazarov et al., Soviet Math. Dokl. 11, 1970). Both pass over the right side once.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit

from mpcache.errors import UsageError
from mpcache.kernels.shapes import WEIGHT_BYTES

_BLOCK = 128  # rows of the right side that stay in the second-level cache for all rows of bits
_TOGETHER = 32  # rows whose tables are made together: 8 tables of 16 sums
_COLUMNS = 640  # columns that tables are made for at once: 640 KiB
_TABLE_ROWS = 32  # rows of bits from which tables are faster, for 64-bit words; else they are not


def packed_bytes(count: int) -> int:
    """Bytes that hold `count` bits: bit v is bit v mod 8 of byte v // 8."""
    return -(-count // 8)


@njit(nogil=True, cache=True)
def _add_chosen(bits: Any, w: Any, out: Any, first: int, last: int, block: int) -> None:
    """out[t] += the rows of w [inputs, outputs] from `first` to `last` that bits[t] choose."""
    places = np.empty(block, dtype=np.int64)
    for begin in range(first, last, block):
        end = min(last, begin + block)
        for t in range(bits.shape[0]):
            found = 0
            for v in range(begin, end):
                places[found] = v
                found += (bits[t, v >> 3] >> (v & 7)) & 1
            sums = out[t]
            whole = found - found % 8
            for k in range(0, whole, 8):
                w0, w1 = w[places[k]], w[places[k + 1]]
                w2, w3 = w[places[k + 2]], w[places[k + 3]]
                w4, w5 = w[places[k + 4]], w[places[k + 5]]
                w6, w7 = w[places[k + 6]], w[places[k + 7]]
                for n in range(w.shape[1]):
                    sums[n] += (np.int64(w0[n]) + w1[n] + w2[n] + w3[n]) + (
                        np.int64(w4[n]) + w5[n] + w6[n] + w7[n]
                    )
            for k in range(whole, found):
                w0 = w[places[k]]
                for n in range(w.shape[1]):
                    sums[n] += w0[n]


@njit(nogil=True, cache=True)
def _add_by_tables(bits: Any, w: Any, out: Any, rows: int, columns: int) -> None:
    """As `_add_chosen` for the first `rows` rows of w, a multiple of 32."""
    width = w.shape[1]
    tables = np.empty((8, 16, min(columns, width)), dtype=np.int64)
    for first in range(0, width, columns):
        last = min(width, first + columns)
        size = last - first
        for byte in range(0, rows // 8, 4):
            for g in range(8):
                sums = tables[g]
                for n in range(size):
                    sums[0, n] = 0
                for k in range(4):
                    row, step = w[8 * byte + 4 * g + k, first:last], 1 << k
                    for s in range(step):
                        without, with_row = sums[s], sums[s + step]
                        for n in range(size):
                            with_row[n] = without[n] + row[n]
            for t in range(bits.shape[0]):
                a, b, c, d = (
                    bits[t, byte],
                    bits[t, byte + 1],
                    bits[t, byte + 2],
                    bits[t, byte + 3],
                )
                t0, t1 = tables[0, a & 15], tables[1, a >> 4]
                t2, t3 = tables[2, b & 15], tables[3, b >> 4]
                t4, t5 = tables[4, c & 15], tables[5, c >> 4]
                t6, t7 = tables[6, d & 15], tables[7, d >> 4]
                total = out[t, first:last]
                for n in range(size):
                    total[n] += (t0[n] + t1[n] + t2[n] + t3[n]) + (t4[n] + t5[n] + t6[n] + t7[n])


def bit_product(bits: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """bits @ w mod 2^64 for packed bits.

    Args:
        bits: uint8 [rows, bytes], packed as `packed_bytes` says; bits past the inputs count
            nothing.
        w: int64, int32 or int16 [inputs, outputs], stored by inputs.

    Returns:
        int64 [rows, outputs].

    Raises:
        UsageError: on dtypes or shapes that do not fit.
    """
    if bits.dtype != torch.uint8 or w.dtype not in WEIGHT_BYTES:
        raise UsageError(
            f"Bits of {bits.dtype} times {w.dtype}; expected torch.uint8 times ring elements."
        )
    if bits.dim() != 2 or w.dim() != 2 or 8 * bits.shape[1] < w.shape[0]:
        raise UsageError(
            f"Shapes {list(bits.shape)} and {list(w.shape)}; expected [rows, bytes] and"
            " [inputs, outputs] with a bit for each input."
        )
    inputs, outputs = w.shape
    out = torch.zeros((bits.shape[0], outputs), dtype=torch.int64)
    left, right = bits.contiguous().numpy(), w.contiguous().numpy()
    tabled = 0
    if w.dtype == torch.int64 and bits.shape[0] >= _TABLE_ROWS:
        tabled = inputs - inputs % _TOGETHER
        _add_by_tables(left, right, out.numpy(), tabled, _COLUMNS)
    _add_chosen(left, right, out.numpy(), tabled, inputs, _BLOCK)
    return out
