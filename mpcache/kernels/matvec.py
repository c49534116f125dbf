"""Ring products of few rows: every weight is read once, in the order in which it is stored.

Sums are taken mod 2^64, which is what int64 arithmetic does by itself. The functions with a
leading underscore are compiled; they hold no lock of the interpreter while they run. They take w
by its address and byte strides: parts of larger tensors and transposed views are read in place.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import carray, njit

from mpcache.kernels import lanes
from mpcache.kernels.memory import pointer
from mpcache.kernels.processor import has_wide_product
from mpcache.kernels.shapes import check_operands, in_parts, strided

_STEP = 8  # inputs, or outputs, that one pass takes together
_BLOCK = 4096  # outputs whose int64 sums (32 KiB) stay in the first-level cache
_BLOCK_OF_ROWS = 512  # fewer with many rows: 8 inputs of 512 weights are used by every row
_NARROW, _FEW = lanes.NARROW, 2 * lanes.NARROW  # one head's width, and at most so wide
_WIDE = has_wide_product()

_columns1, _columns2, _columns3 = (lanes.columns(rows) for rows in (1, 2, 3))
_dots1, _dots2, _dots3 = (lanes.dots(rows) for rows in (1, 2, 3))


@njit(nogil=True, cache=True)
def _row(w: Any, place: Any, stride: Any, count: Any, kind: Any) -> Any:
    return carray(pointer(w + place * stride), count, kind)


@njit(nogil=True, cache=True)
def _add_inputs(x: Any, w: Any, stride: Any, kind: Any, out: Any, first: Any, last: Any) -> None:
    """out[:, first:last] += x @ w; w [inputs, last - first], its rows `stride` bytes apart."""
    lanes.wide()
    rows, inputs = x.shape
    wide, whole = last - first, inputs - inputs % 8
    for k in range(0, whole, 8):
        w0, w1, w2, w3 = (
            _row(w, k, stride, wide, kind),
            _row(w, k + 1, stride, wide, kind),
            _row(w, k + 2, stride, wide, kind),
            _row(w, k + 3, stride, wide, kind),
        )
        w4, w5, w6, w7 = (
            _row(w, k + 4, stride, wide, kind),
            _row(w, k + 5, stride, wide, kind),
            _row(w, k + 6, stride, wide, kind),
            _row(w, k + 7, stride, wide, kind),
        )
        for r in range(rows):
            sums = out[r, first:last]
            a, b, c, d = x[r, k], x[r, k + 1], x[r, k + 2], x[r, k + 3]
            e, f, g, h = x[r, k + 4], x[r, k + 5], x[r, k + 6], x[r, k + 7]
            for n in range(wide):
                sums[n] += (a * w0[n] + b * w1[n] + c * w2[n] + d * w3[n]) + (
                    e * w4[n] + f * w5[n] + g * w6[n] + h * w7[n]
                )
    for k in range(whole, inputs):
        w0 = _row(w, k, stride, wide, kind)
        for r in range(rows):
            sums, a = out[r, first:last], x[r, k]
            for n in range(wide):
                sums[n] += a * w0[n]


@njit(nogil=True, cache=True)
def _add_dots(x: Any, w: Any, stride: Any, kind: Any, out: Any, first: Any, last: Any) -> None:
    """out[:, first:last] += x @ w.T; w [last - first, inputs], its rows `stride` bytes apart."""
    lanes.wide()
    rows, inputs = x.shape
    wide = last - first
    whole = wide // 8 * 8
    for n in range(0, whole, 8):
        w0, w1, w2, w3 = (
            _row(w, n, stride, inputs, kind),
            _row(w, n + 1, stride, inputs, kind),
            _row(w, n + 2, stride, inputs, kind),
            _row(w, n + 3, stride, inputs, kind),
        )
        w4, w5, w6, w7 = (
            _row(w, n + 4, stride, inputs, kind),
            _row(w, n + 5, stride, inputs, kind),
            _row(w, n + 6, stride, inputs, kind),
            _row(w, n + 7, stride, inputs, kind),
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
            sums = out[r, first + n : first + n + 8]
            sums[0] += a
            sums[1] += b
            sums[2] += c
            sums[3] += d
            sums[4] += e
            sums[5] += f
            sums[6] += g
            sums[7] += h
    for n in range(whole, wide):
        w0 = _row(w, n, stride, inputs, kind)
        for r in range(rows):
            a = np.int64(0)
            for k in range(inputs):
                a += x[r, k] * w0[k]
            out[r, first + n] += a


@njit(nogil=True, cache=True)
def _add_columns(x: Any, w: Any, stride: Any, out: Any, first: Any, last: Any) -> None:
    """out[:, first:last] += x @ w, with so few outputs that sums stay in registers."""
    rows, inputs = x.shape
    left, step, line = x.ctypes.data, 8 * inputs, 8 * out.shape[1]
    for begin in range(first, last, _NARROW):
        at_w, sums = w + 8 * (begin - first), out.ctypes.data + 8 * begin
        for row in range(0, rows, 3):
            at_x, at = left + row * step, sums + row * line
            if rows - row == 1:
                _columns1(inputs, at_x, at_w, at, step, stride, line)
            elif rows - row == 2:
                _columns2(inputs, at_x, at_w, at, step, stride, line)
            else:
                _columns3(inputs, at_x, at_w, at, step, stride, line)


@njit(nogil=True, cache=True)
def _add_narrow_dots(x: Any, w: Any, stride: Any, out: Any, first: Any, last: Any) -> None:
    """out[:, first:last] += x @ w.T, with so few inputs that x stays in registers."""
    rows, inputs = x.shape
    sums, step, line = out.ctypes.data + 8 * first, 8 * inputs, 8 * out.shape[1]
    for begin in range(0, inputs, _NARROW):
        at_w, left = w + 8 * begin, x.ctypes.data + 8 * begin
        for row in range(0, rows, 3):
            at_x, at = left + row * step, sums + row * line
            if rows - row == 1:
                _dots1(last - first, at_x, at_w, at, step, stride, line)
            elif rows - row == 2:
                _dots2(last - first, at_x, at_w, at, step, stride, line)
            else:
                _dots3(last - first, at_x, at_w, at, step, stride, line)


@njit(nogil=True, cache=True)
def _add_one(
    x: Any, w: Any, size: Any, strides: Any, kind: Any, out: Any, first: Any, last: Any
) -> None:
    """out[:, first:last] += x @ w; w's elements of `size` bytes are neighbours one way."""
    by_inputs, outputs, inputs = strides[1] == size, last - first, x.shape[1]
    narrow = outputs if by_inputs else inputs
    if _WIDE and size == 8 and 0 < narrow <= _FEW and narrow % _NARROW == 0 and inputs and outputs:
        if by_inputs:
            _add_columns(x, w, strides[0], out, first, last)
        else:
            _add_narrow_dots(x, w, strides[1], out, first, last)
    elif by_inputs:
        block = _BLOCK if len(x) == 1 else _BLOCK_OF_ROWS
        for begin in range(first, last, block):
            at = w + (begin - first) * size
            _add_inputs(x, at, strides[0], kind, out, begin, min(last, begin + block))
    else:
        _add_dots(x, w, strides[1], kind, out, first, last)


@njit(nogil=True, cache=True)
def _add_batch(
    x: Any, w: Any, size: Any, strides: Any, out: Any, shape: Any, first: Any, last: Any
) -> None:
    """out[b, :, first:last] += x[b] @ w[b, :, first:last]; addresses, byte strides of w."""
    batch, rows, inputs, outputs = shape
    for b in range(batch):
        left = carray(pointer(x + 8 * b * rows * inputs), (rows, inputs), np.int64)
        sums = carray(pointer(out + 8 * b * rows * outputs), (rows, outputs), np.int64)
        at = w + b * strides[0] + first * strides[2]
        if size == 8:
            _add_one(left, at, size, strides[1:], np.int64, sums, first, last)
        elif size == 4:
            _add_one(left, at, size, strides[1:], np.int32, sums, first, last)
        else:
            _add_one(left, at, size, strides[1:], np.int16, sums, first, last)


def multiply(x: torch.Tensor, w: torch.Tensor, threads: int = 1) -> torch.Tensor:
    """As `matvec` and `bmm` for operands that fit, x [(batch,) rows, inputs]."""
    *batch, rows, inputs = x.shape
    outputs = w.shape[-1]
    out = torch.zeros((*batch, rows, outputs), dtype=torch.int64)
    if not out.numel():
        return out
    w, strides = strided(w)
    left, size = x.contiguous(), w.element_size()
    shape = (batch[0] if batch else 1, rows, inputs, outputs)

    def part(first: int, last: int) -> None:
        _add_batch(left.data_ptr(), w.data_ptr(), size, strides, out.data_ptr(), shape, first, last)

    in_parts(part, outputs, threads, _STEP)
    return out


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
    return multiply(x, w, threads) if x.dim() == 2 else multiply(x.unsqueeze(0), w, threads)[0]


def bmm(x: torch.Tensor, w: torch.Tensor, *, threads: int = 1) -> torch.Tensor:
    """Batched products mod 2^64 of few rows each, such as one query against the cached keys.

    Args:
        x: int64 [batch, rows, inputs].
        w: int64, int32 or int16 [batch, inputs, outputs]; a part of a longer cache and a
            transposed view of [batch, outputs, inputs] are read as they are stored.
        threads: as for `matvec`.

    Returns:
        int64 [batch, rows, outputs].

    Raises:
        UsageError: on dtypes, shapes or devices that do not fit.
    """
    check_operands(x, w, dims=3)
    return multiply(x, w, threads)
