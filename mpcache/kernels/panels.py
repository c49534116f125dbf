"""Ring products of many rows in registers: 64-bit multiplications of eight lanes.

AVX-512DQ multiplies eight int64 at once and keeps their low halves, which is the ring. A tile of
up to 14 rows and 16 outputs stays in registers while the inputs go by, so that a multiplication
costs a sixteenth of a load of x and a fourteenth of one of w. Both operands are copied into the
order in which tiles read them, a slice of inputs at a time, into the second-level cache (Goto and
van de Geijn, "Anatomy of High-Performance Matrix Multiplication", ACM TOMS 2008); narrower weights
become int64 on the way. Operands are read where they lie, with any strides.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import carray, njit

from mpcache.kernels import lanes
from mpcache.kernels.memory import pointer
from mpcache.kernels.shapes import buffer, in_parts, strided

ROWS = 14  # of a tile: with 2 vectors of outputs 28 sums, 2 of w, 1 of x and 1 product
WIDE = 2 * lanes.LANES  # outputs of a tile, of a panel of w
_DEPTH = 512  # inputs of a slice
_PANELS = 4  # panels copied together: 512 bytes that lie next to each other, for 64-bit weights
_HIGH = 252  # rows of 18 whole tiles; their slice (1 MiB) stays about the second-level cache

_t1, _t2, _t3, _t4, _t5, _t6, _t7 = (lanes.tile(rows) for rows in range(1, 8))
_t8, _t9, _t10, _t11, _t12, _t13, _t14 = (lanes.tile(rows) for rows in range(8, 15))


@njit(nogil=True, cache=True)
def _multiply_tile(
    rows: Any, depth: Any, x: Any, w: Any, sums: Any, stride: Any, more: Any
) -> None:
    if rows == 14:
        _t14(depth, x, w, sums, stride, more)
    elif rows == 13:
        _t13(depth, x, w, sums, stride, more)
    elif rows == 12:
        _t12(depth, x, w, sums, stride, more)
    elif rows == 11:
        _t11(depth, x, w, sums, stride, more)
    elif rows == 10:
        _t10(depth, x, w, sums, stride, more)
    elif rows == 9:
        _t9(depth, x, w, sums, stride, more)
    elif rows == 8:
        _t8(depth, x, w, sums, stride, more)
    elif rows == 7:
        _t7(depth, x, w, sums, stride, more)
    elif rows == 6:
        _t6(depth, x, w, sums, stride, more)
    elif rows == 5:
        _t5(depth, x, w, sums, stride, more)
    elif rows == 4:
        _t4(depth, x, w, sums, stride, more)
    elif rows == 3:
        _t3(depth, x, w, sums, stride, more)
    elif rows == 2:
        _t2(depth, x, w, sums, stride, more)
    else:
        _t1(depth, x, w, sums, stride, more)


_copy64, _copy32, _copy16 = (lanes.copied(bits) for bits in (64, 32, 16))
_turn64, _turn32, _turn16 = (lanes.turned(bits) for bits in (64, 32, 16))


@njit(nogil=True, cache=True)
def _element(address: Any, size: Any) -> Any:
    if size == 8:
        return carray(pointer(address), 1, np.int64)[0]
    if size == 4:
        return np.int64(carray(pointer(address), 1, np.int32)[0])
    return np.int64(carray(pointer(address), 1, np.int16)[0])


@njit(nogil=True, cache=True)
def _pack_tile(x: Any, row: Any, column: Any, high: Any, depth: Any, out: Any) -> None:
    """x [high, depth] at an address with byte strides, as [depth, high] at another."""
    whole = depth // 8 * 8 if column == 8 and high >= 8 else 0
    for k in range(0, whole, 8):
        target = out + 8 * k * high
        _turn64(x + 8 * k, row, target, 8 * high)
        if high > 8:  # the last 8 rows, some of them again
            _turn64(x + (high - 8) * row + 8 * k, row, target + 8 * (high - 8), 8 * high)
    for k in range(whole, depth):
        line = carray(pointer(out + 8 * k * high), high, np.int64)
        for r in range(high):
            line[r] = _element(x + r * row + k * column, 8)


@njit(nogil=True, cache=True)
def _pack_left(x: Any, row: Any, column: Any, rows: Any, depth: Any, tiles: Any, out: Any) -> None:
    """x [rows, depth] at an address with byte strides, as tiles of [depth, rows of the tile]."""
    target = out.ctypes.data
    for tile in range(tiles):
        first, last = tile * rows // tiles, (tile + 1) * rows // tiles
        high = last - first
        _pack_tile(x + first * row, row, column, high, depth, target)
        target += 8 * high * depth


@njit(nogil=True, cache=True)
def _pack_rows(w: Any, size: Any, stride: Any, depth: Any, panels: Any, out: Any) -> None:
    for k in range(depth):
        line = w + k * stride
        for panel in range(panels):
            source, target = line + 16 * size * panel, out + 128 * (panel * depth + k)
            if size == 8:
                _copy64(source, target)
            elif size == 4:
                _copy32(source, target)
            else:
                _copy16(source, target)


@njit(nogil=True, cache=True)
def _pack_columns(w: Any, size: Any, stride: Any, depth: Any, panels: Any, out: Any) -> None:
    whole = depth // 8 * 8
    for eight in range(2 * panels):
        line = w + 8 * eight * stride
        target = out + 128 * (eight // 2) * depth + 64 * (eight % 2)
        for k in range(0, whole, 8):
            if size == 8:
                _turn64(line + 8 * k, stride, target + 128 * k, 128)
            elif size == 4:
                _turn32(line + 4 * k, stride, target + 128 * k, 128)
            else:
                _turn16(line + 2 * k, stride, target + 128 * k, 128)
        for k in range(whole, depth):
            place = carray(pointer(target + 128 * k), 8, np.int64)
            for n in range(8):
                place[n] = _element(line + size * k + n * stride, size)


@njit(nogil=True, cache=True)
def _pack_right(
    w: Any, size: Any, inputs: Any, outputs: Any, depth: Any, wide: Any, out: Any
) -> None:
    """w [depth, wide] at an address with byte strides, as panels of [depth, 16], zeros behind.

    Elements have `size` bytes and lie next to each other in one of the dimensions.
    """
    whole, target = wide // WIDE, out.ctypes.data
    if outputs == size:
        _pack_rows(w, size, inputs, depth, whole, target)
    else:
        _pack_columns(w, size, outputs, depth, whole, target)
    if wide % WIDE:
        last = out[whole * WIDE * depth :]
        for k in range(depth):
            for n in range(WIDE):
                inside = whole * WIDE + n
                value = np.int64(0)
                if inside < wide:
                    value = _element(w + k * inputs + inside * outputs, size)
                last[k * WIDE + n] = value


@njit(nogil=True, cache=True)
def _aligned(count: Any) -> Any:
    """int64 [count] with nothing in it, on a cache line's boundary."""
    room = np.empty(count + 8, dtype=np.int64)
    first = (-room.ctypes.data % 64) // 8
    return room[first : first + count]


@njit(nogil=True, cache=True)
def _add_tiles(
    left: Any,
    panel: Any,
    edge: Any,
    rows: Any,
    depth: Any,
    wide: Any,
    sums: Any,
    stride: Any,
    more: Any,
) -> None:
    """sums [rows, wide] = packed left times one panel, wide <= 16, and what was there if `more`."""
    tiles, x, w = -(-rows // ROWS), left.ctypes.data, panel.ctypes.data
    for tile in range(tiles):
        first = tile * rows // tiles
        high = (tile + 1) * rows // tiles - first
        target, step = sums + first * stride, stride
        if wide < WIDE:
            target, step = edge.ctypes.data, 8 * WIDE
        _multiply_tile(high, depth, x, w, target, step, more & (wide == WIDE))
        if wide < WIDE:
            for r in range(high):
                line = carray(pointer(sums + (first + r) * stride), wide, np.int64)
                for n in range(wide):
                    line[n] = edge[r * WIDE + n] + (line[n] if more else 0)
        x += 8 * high * depth


@njit(nogil=True, cache=True)
def _multiply(
    x: Any, w: Any, size: Any, out: Any, shape: Any, x_strides: Any, w_strides: Any, part: Any
) -> None:
    """out [batch, rows, outputs] = x @ w in the outputs of `part`; addresses and byte strides."""
    batch, rows, inputs, outputs = shape
    left = _aligned(min(rows, _HIGH) * _DEPTH)
    edge = _aligned(ROWS * WIDE)
    right = _aligned(_PANELS * WIDE * _DEPTH)
    for b in range(batch):
        for low in range(0, rows, _HIGH):
            high = min(_HIGH, rows - low)
            tiles = -(-high // ROWS)
            sums = out + 8 * (b * rows + low) * outputs
            for slab in range(0, inputs, _DEPTH):
                depth = min(_DEPTH, inputs - slab)
                at_x = x + b * x_strides[0] + low * x_strides[1] + slab * x_strides[2]
                _pack_left(at_x, x_strides[1], x_strides[2], high, depth, tiles, left)
                for begin in range(part[0], part[1], _PANELS * WIDE):
                    wide = min(_PANELS * WIDE, part[1] - begin)
                    at_w = w + b * w_strides[0] + slab * w_strides[1] + begin * w_strides[2]
                    _pack_right(at_w, size, w_strides[1], w_strides[2], depth, wide, right)
                    for n in range(0, wide, WIDE):
                        _add_tiles(
                            left,
                            right[n * depth :],
                            edge,
                            high,
                            depth,
                            min(WIDE, wide - n),
                            sums + 8 * (begin + n),
                            8 * outputs,
                            slab > 0,
                        )


def multiply(x: torch.Tensor, w: torch.Tensor, threads: int = 1) -> torch.Tensor:
    """x [(batch,) rows, inputs] @ w [(batch,) inputs, outputs] mod 2^64 on the CPU.

    Args:
        x: int64, of any strides.
        w: int64, int32 or int16, of any strides; read in place by inputs or by outputs, and copied
            first where neither lie next to each other.
        threads: threads that share the outputs; the interpreter's lock is not held meanwhile.

    Returns:
        int64 [(batch,) rows, outputs].
    """
    *batch, rows, inputs = x.shape
    outputs = w.shape[-1]
    shape = (batch[0] if batch else 1, rows, inputs, outputs)
    if 0 in shape:
        return torch.zeros((*batch, rows, outputs), dtype=torch.int64)
    out = torch.from_numpy(buffer(8 * shape[0] * rows * outputs)).view(torch.int64)
    w, strides = strided(w)
    size = w.element_size()
    x_strides = tuple(8 * stride for stride in (0, *x.stride())[-3:])

    def part(*ends: int) -> None:
        _multiply(x.data_ptr(), w.data_ptr(), size, out.data_ptr(), shape, x_strides, strides, ends)

    in_parts(part, outputs, threads, WIDE)
    return out.view(*batch, rows, outputs)


@njit(nogil=True, cache=True)
def repeated_tile(turns: Any, depth: Any, x: Any, w: Any, sums: Any) -> None:
    """One tile again and again, for benchmarks: x [depth, 14] and w [depth, 16] at addresses."""
    for _ in range(turns):
        _multiply_tile(ROWS, depth, x, w, sums, 8 * WIDE, False)
