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
from llvmlite import ir
from numba import carray, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from mpcache.kernels.memory import pointer
from mpcache.kernels.shapes import in_parts, strided

ROWS = 14  # of a tile: with 2 vectors of outputs 28 sums, 2 of w, 1 of x and 1 product
LANES = 8
WIDE = 2 * LANES  # outputs of a tile, of a panel of w
_DEPTH = 512  # inputs of a slice
_PANELS = 4  # panels copied together: 512 bytes that lie next to each other, for 64-bit weights
_HIGH = 252  # rows of 18 whole tiles; their slice (1 MiB) stays about the second-level cache

_WORD, _INDEX = ir.IntType(64), ir.IntType(32)
_VECTOR = ir.VectorType(_WORD, LANES)
_POINTER = _VECTOR.as_pointer()
_UNSET = ir.Constant(_VECTOR, ir.Undefined)
_SPREAD = ir.Constant(ir.VectorType(_INDEX, LANES), [0] * LANES)


def _fetch(builder: Any, address: Any) -> None:
    """Ask for the cache line at an address, to be read and written soon."""
    shape = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, _INDEX, _INDEX, _INDEX])
    fetch = cgutils.get_or_insert_function(builder.module, shape, "llvm.prefetch.p0")
    place = builder.inttoptr(address, cgutils.voidptr_t)
    builder.call(fetch, [place, _INDEX(1), _INDEX(3), _INDEX(1)])


def _tile(rows: int) -> Any:
    """An intrinsic: sums [rows, 16] += x [depth, rows] times w [depth, 16], at addresses.

    Its arguments: depth, x, w, sums, and the bytes from one row of sums to the next.
    """

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        depth, x, w, sums, stride = values
        before = builder.block
        for row in range(rows):
            for half in range(2):
                line = builder.add(builder.mul(stride, _WORD(row)), _WORD(64 * half))
                _fetch(builder, builder.add(sums, line))
        loop, after = builder.append_basic_block("inputs"), builder.append_basic_block("sums")
        builder.branch(loop)
        builder.position_at_end(loop)
        k = builder.phi(_WORD)
        totals = [builder.phi(_VECTOR) for _ in range(2 * rows)]
        at_w = builder.inttoptr(builder.add(w, builder.mul(k, _WORD(8 * WIDE))), _POINTER)
        at_x = builder.inttoptr(builder.add(x, builder.mul(k, _WORD(8 * rows))), _WORD.as_pointer())
        right = [builder.load(builder.gep(at_w, [_WORD(half)]), align=8) for half in range(2)]
        sums_now = []
        for row in range(rows):
            value = builder.load(builder.gep(at_x, [_WORD(row)]), align=8)
            left = builder.insert_element(_UNSET, value, _INDEX(0))
            left = builder.shuffle_vector(left, _UNSET, _SPREAD)
            for half in range(2):
                product = builder.mul(left, right[half])
                sums_now.append(builder.add(totals[2 * row + half], product))
        following = builder.add(k, _WORD(1))
        for phi, start, value in [
            (k, _WORD(0), following),
            *(
                (total, ir.Constant(_VECTOR, None), now)
                for total, now in zip(totals, sums_now, strict=True)
            ),
        ]:
            phi.add_incoming(start, before)
            phi.add_incoming(value, loop)
        builder.cbranch(builder.icmp_signed("<", following, depth), loop, after)
        builder.position_at_end(after)
        for row in range(rows):
            line = builder.add(sums, builder.mul(stride, _WORD(row)))
            for half in range(2):
                place = builder.gep(builder.inttoptr(line, _POINTER), [_WORD(half)])
                old = builder.load(place, align=8)
                builder.store(builder.add(old, sums_now[2 * row + half]), place, align=8)
        return context.get_dummy_value()

    def tile(typing: Any, depth: Any, x: Any, w: Any, sums: Any, stride: Any) -> Any:
        return types.void(*[types.int64] * 5), generate

    return intrinsic(tile)


_t1, _t2, _t3, _t4, _t5, _t6, _t7 = (_tile(rows) for rows in range(1, 8))
_t8, _t9, _t10, _t11, _t12, _t13, _t14 = (_tile(rows) for rows in range(8, 15))


@njit(nogil=True, cache=True)
def _multiply_tile(rows: Any, depth: Any, x: Any, w: Any, sums: Any, stride: Any) -> None:
    if rows == 14:
        _t14(depth, x, w, sums, stride)
    elif rows == 13:
        _t13(depth, x, w, sums, stride)
    elif rows == 12:
        _t12(depth, x, w, sums, stride)
    elif rows == 11:
        _t11(depth, x, w, sums, stride)
    elif rows == 10:
        _t10(depth, x, w, sums, stride)
    elif rows == 9:
        _t9(depth, x, w, sums, stride)
    elif rows == 8:
        _t8(depth, x, w, sums, stride)
    elif rows == 7:
        _t7(depth, x, w, sums, stride)
    elif rows == 6:
        _t6(depth, x, w, sums, stride)
    elif rows == 5:
        _t5(depth, x, w, sums, stride)
    elif rows == 4:
        _t4(depth, x, w, sums, stride)
    elif rows == 3:
        _t3(depth, x, w, sums, stride)
    elif rows == 2:
        _t2(depth, x, w, sums, stride)
    else:
        _t1(depth, x, w, sums, stride)


@njit(nogil=True, cache=True)
def _pack_left(x: Any, row: Any, column: Any, rows: Any, depth: Any, tiles: Any, out: Any) -> None:
    """x [rows, depth] at an address with byte strides, as tiles of [depth, rows of the tile]."""
    at = 0
    for tile in range(tiles):
        first, last = tile * rows // tiles, (tile + 1) * rows // tiles
        high = last - first
        for r in range(high):
            line = x + (first + r) * row
            if column == 8:
                values = carray(pointer(line), depth, np.int64)
                for k in range(depth):
                    out[at + k * high + r] = values[k]
            else:
                for k in range(depth):
                    out[at + k * high + r] = carray(pointer(line + k * column), 1, np.int64)[0]
        at += high * depth


def _widen(builder: Any, address: Any, bits: int, count: int) -> Any:
    """`count` elements of `bits` bits at an address, as 64-bit lanes."""
    narrow = ir.VectorType(ir.IntType(bits), count)
    source = builder.inttoptr(address, narrow.as_pointer())
    value = builder.load(source, align=bits // 8)
    return value if bits == 64 else builder.sext(value, ir.VectorType(_WORD, count))


def _copied(bits: int) -> Any:
    """An intrinsic: 16 elements from one address to another, as int64."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        source, target = values
        for half in range(2):
            value = _widen(builder, builder.add(source, _WORD(half * bits)), bits, LANES)
            place = builder.inttoptr(builder.add(target, _WORD(64 * half)), _POINTER)
            builder.store(value, place, align=8)
        return context.get_dummy_value()

    def copied(typing: Any, source: Any, target: Any) -> Any:
        return types.void(types.int64, types.int64), generate

    return intrinsic(copied)


def _turned(bits: int) -> Any:
    """An intrinsic: 8 rows of 8 elements, `stride` bytes apart, to 8 columns 128 bytes apart."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        source, stride, target = values
        rows = []
        for row in range(LANES):
            line = builder.add(source, builder.mul(stride, _WORD(row)))
            rows.append(_widen(builder, line, bits, LANES))
        for step in (1, 2, 4):  # lanes whose number has this bit change places with rows that have
            low = [lane if not lane & step else LANES + lane - step for lane in range(LANES)]
            high = [lane + step if not lane & step else LANES + lane for lane in range(LANES)]
            picks = [
                ir.Constant(ir.VectorType(_INDEX, LANES), [_INDEX(lane) for lane in lanes])
                for lanes in (low, high)
            ]
            rows = [
                builder.shuffle_vector(rows[row & ~step], rows[row | step], picks[bool(row & step)])
                for row in range(LANES)
            ]
        for column, value in enumerate(rows):
            place = builder.inttoptr(builder.add(target, _WORD(128 * column)), _POINTER)
            builder.store(value, place, align=8)
        return context.get_dummy_value()

    def turned(typing: Any, source: Any, stride: Any, target: Any) -> Any:
        return types.void(*[types.int64] * 3), generate

    return intrinsic(turned)


_copy64, _copy32, _copy16 = (_copied(bits) for bits in (64, 32, 16))
_turn64, _turn32, _turn16 = (_turned(bits) for bits in (64, 32, 16))


@njit(nogil=True, cache=True)
def _element(address: Any, size: Any) -> Any:
    if size == 8:
        return carray(pointer(address), 1, np.int64)[0]
    if size == 4:
        return np.int64(carray(pointer(address), 1, np.int32)[0])
    return np.int64(carray(pointer(address), 1, np.int16)[0])


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
                _turn64(line + 8 * k, stride, target + 128 * k)
            elif size == 4:
                _turn32(line + 4 * k, stride, target + 128 * k)
            else:
                _turn16(line + 2 * k, stride, target + 128 * k)
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
    room = np.empty(count + LANES, dtype=np.int64)
    first = (-room.ctypes.data % 64) // 8
    return room[first : first + count]


@njit(nogil=True, cache=True)
def _add_tiles(
    left: Any, panel: Any, rows: Any, depth: Any, wide: Any, sums: Any, stride: Any
) -> None:
    """sums [rows, wide] += packed left times one panel, wide <= 16."""
    tiles, x, w = -(-rows // ROWS), left.ctypes.data, panel.ctypes.data
    edge = _aligned(ROWS * WIDE)
    for tile in range(tiles):
        first = tile * rows // tiles
        high = (tile + 1) * rows // tiles - first
        target, step = sums + first * stride, stride
        if wide < WIDE:
            edge[:] = 0
            target, step = edge.ctypes.data, 8 * WIDE
        _multiply_tile(high, depth, x, w, target, step)
        if wide < WIDE:
            for r in range(high):
                line = carray(pointer(sums + (first + r) * stride), wide, np.int64)
                for n in range(wide):
                    line[n] += edge[r * WIDE + n]
        x += 8 * high * depth


@njit(nogil=True, cache=True)
def _multiply(
    x: Any, w: Any, size: Any, out: Any, shape: Any, x_strides: Any, w_strides: Any, part: Any
) -> None:
    """out [batch, rows, outputs] += x @ w in the outputs of `part`; addresses and byte strides."""
    batch, rows, inputs, outputs = shape
    left = _aligned(min(rows, _HIGH) * _DEPTH)
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
                            high,
                            depth,
                            min(WIDE, wide - n),
                            sums + 8 * (begin + n),
                            8 * outputs,
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
    out = torch.zeros((*batch, rows, outputs), dtype=torch.int64)
    if not out.numel() or not inputs:
        return out
    w, strides = strided(w)
    size, shape = w.element_size(), (batch[0] if batch else 1, rows, inputs, outputs)
    x_strides = tuple(8 * stride for stride in (0, *x.stride())[-3:])

    def part(*ends: int) -> None:
        _multiply(x.data_ptr(), w.data_ptr(), size, out.data_ptr(), shape, x_strides, strides, ends)

    in_parts(part, outputs, threads, WIDE)
    return out
