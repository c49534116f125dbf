"""Ring products of few rows: every weight is read once, in the order in which it is stored.

Sums are taken mod 2^64, which is what int64 arithmetic does by itself. The functions with a
leading underscore are compiled; they hold no lock of the interpreter while they run.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numba import njit

from mpcache.kernels.shapes import as_rows, check_operands, stored_by_outputs

_STEP = 8  # inputs, or outputs, that one pass takes together
_BLOCK = 4096  # outputs whose int64 sums (32 KiB) stay in the first-level cache
_BLOCK_OF_ROWS = 512  # fewer with many rows: 8 inputs of 512 weights are used by every row


@njit(nogil=True, cache=True)
def _add_inputs(x: Any, w: Any, out: Any, first: int, last: int, block: int) -> None:
    """out[:, first:last] += x @ w[:, first:last]; w [inputs, outputs] row by row."""
    rows, inputs = x.shape
    whole = inputs - inputs % 8
    for begin in range(first, last, block):
        end = min(last, begin + block)
        for k in range(0, whole, 8):
            w0, w1, w2, w3 = (
                w[k, begin:end],
                w[k + 1, begin:end],
                w[k + 2, begin:end],
                w[k + 3, begin:end],
            )
            w4, w5, w6, w7 = (
                w[k + 4, begin:end],
                w[k + 5, begin:end],
                w[k + 6, begin:end],
                w[k + 7, begin:end],
            )
            for r in range(rows):
                sums = out[r, begin:end]
                a, b, c, d = x[r, k], x[r, k + 1], x[r, k + 2], x[r, k + 3]
                e, f, g, h = x[r, k + 4], x[r, k + 5], x[r, k + 6], x[r, k + 7]
                for n in range(end - begin):
                    sums[n] += (a * w0[n] + b * w1[n] + c * w2[n] + d * w3[n]) + (
                        e * w4[n] + f * w5[n] + g * w6[n] + h * w7[n]
                    )
        for k in range(whole, inputs):
            for r in range(rows):
                sums, a, w0 = out[r, begin:end], x[r, k], w[k, begin:end]
                for n in range(end - begin):
                    sums[n] += a * w0[n]


@njit(nogil=True, cache=True)
def _add_dots(x: Any, w: Any, out: Any, first: int, last: int) -> None:
    """out[:, first:last] += x @ w[first:last].T; w [outputs, inputs] row by row."""
    rows, inputs = x.shape
    whole = first + (last - first) // 8 * 8
    for n in range(first, whole, 8):
        w0, w1, w2, w3, w4, w5, w6, w7 = (
            w[n],
            w[n + 1],
            w[n + 2],
            w[n + 3],
            w[n + 4],
            w[n + 5],
            w[n + 6],
            w[n + 7],
        )
        for r in range(rows):
            values = x[r]
            a = b = c = d = e = f = g = h = np.int64(0)
            for k in range(inputs):
                v = values[k]
                a += v * w0[k]
                b += v * w1[k]
                c += v * w2[k]
                d += v * w3[k]
                e += v * w4[k]
                f += v * w5[k]
                g += v * w6[k]
                h += v * w7[k]
            sums = out[r, n : n + 8]
            sums[0] += a
            sums[1] += b
            sums[2] += c
            sums[3] += d
            sums[4] += e
            sums[5] += f
            sums[6] += g
            sums[7] += h
    for n in range(whole, last):
        for r in range(rows):
            a = np.int64(0)
            for k in range(inputs):
                a += x[r, k] * w[n, k]
            out[r, n] += a


@njit(nogil=True, cache=True)
def _add_batch(x: Any, w: Any, out: Any, block: int) -> None:
    """out[b] += x[b] @ w[b]; w [batch, inputs, outputs]."""
    for b in range(x.shape[0]):
        _add_inputs(x[b], w[b], out[b], 0, w.shape[2], block)


@njit(nogil=True, cache=True)
def _add_batch_dots(x: Any, w: Any, out: Any) -> None:
    """out[b] += x[b] @ w[b].T; w [batch, outputs, inputs]."""
    for b in range(x.shape[0]):
        _add_dots(x[b], w[b], out[b], 0, w.shape[1])


def _block(rows: int) -> int:
    return _BLOCK if rows == 1 else _BLOCK_OF_ROWS


def matvec(x: torch.Tensor, w: torch.Tensor, *, threads: int = 1) -> torch.Tensor:
    """x @ w mod 2^64 for few rows, at the speed of reading w once.

    Args:
        x: int64 [inputs] or [rows, inputs]; more than about 8 rows are better off with `matmul`.
        w: int64, int32 or int16 [inputs, outputs], stored by inputs or (a transposed view) by
            outputs; any other layout is copied first. Negative weights are negative integers.
        threads: threads that share the outputs; the interpreter's lock is not held meanwhile.

    Returns:
        int64 [outputs] or [rows, outputs].

    Raises:
        UsageError: on dtypes, shapes or devices that do not fit.
    """
    check_operands(x, w, dims=2)
    rows = as_rows(x)
    outputs = w.shape[1]
    out = torch.zeros((rows.shape[0], outputs), dtype=torch.int64)
    by_outputs = stored_by_outputs(w)
    left, total = rows.numpy(), out.numpy()
    right = w.T.numpy() if by_outputs else w.contiguous().numpy()

    def part(first: int, last: int) -> None:
        if by_outputs:
            _add_dots(left, right, total, first, last)
        else:
            _add_inputs(left, right, total, first, last, _block(left.shape[0]))

    share = -(-outputs // max(1, threads))
    share += -share % _STEP
    parts = [(first, min(outputs, first + share)) for first in range(0, outputs, max(1, share))]
    if len(parts) > 1:
        with ThreadPoolExecutor(len(parts)) as pool:
            list(pool.map(part, *zip(*parts, strict=True)))
    else:
        part(0, outputs)
    return out.reshape(*x.shape[:-1], outputs)


def bmm(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """Batched products mod 2^64 of few rows each, such as one query against the cached keys.

    Args:
        x: int64 [batch, rows, inputs].
        w: int64, int32 or int16 [batch, inputs, outputs]; a transposed view of
            [batch, outputs, inputs] is read as it is stored.

    Returns:
        int64 [batch, rows, outputs].

    Raises:
        UsageError: on dtypes, shapes or devices that do not fit.
    """
    check_operands(x, w, dims=3)
    out = torch.zeros((x.shape[0], x.shape[1], w.shape[2]), dtype=torch.int64)
    left = x.contiguous().numpy()
    total = out.numpy()
    if stored_by_outputs(w):
        _add_batch_dots(left, w.transpose(1, 2).numpy(), total)
    elif w.is_contiguous():
        _add_batch(left, w.numpy(), total, _block(x.shape[1]))
    elif w.shape[0] and w[0].is_contiguous():  # the first of a longer row of inputs
        for one, part, sums in zip(left, w, total, strict=True):
            _add_inputs(one, part.numpy(), sums, 0, w.shape[2], _block(x.shape[1]))
    elif w.shape[0] and w[0].T.is_contiguous():
        for one, part, sums in zip(left, w, total, strict=True):
            _add_dots(one, part.T.numpy(), sums, 0, w.shape[2])
    else:
        _add_batch(left, w.contiguous().numpy(), total, _block(x.shape[1]))
    return out
