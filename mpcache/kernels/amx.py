"""Ring products on AMX: digits of int8, multiplied in tiles.

Both operands are cut into signed digits of 8 bits (`digits` says how) and packed into tiles, laid
out in the order in which the kernel reads them. Of all digit products only those with i + j < 8
reach a sum mod 2^64; products of equal i + j share one int32 accumulator. A slice of at most
2,048 inputs is summed before its 8 accumulators are joined in int64, so that |sum| <=
8 * 2,048 * 2^14 < 2^31, and small enough for the second-level cache.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from mpcache.kernels import tiles
from mpcache.kernels.shapes import buffer
from mpcache.kernels.tiles import (
    configure,
    dot0,
    dot1,
    dot2,
    dot3,
    load4,
    load5,
    load6,
    load7,
    release,
    store0,
    store1,
    store2,
    store3,
    zero0,
    zero1,
    zero2,
    zero3,
)

DIGITS = 8
_CACHE_TILES = 1024  # tiles of 1 KiB of the right operand that stay in the second-level cache
_CONFIGURATION = tiles.configuration()


def slice_tiles(digits: int) -> int:
    """Tiles of 64 inputs in one slice: 1,024 inputs for 8 digits, 2,048 for fewer."""
    return 16 if digits == 8 else 32


def packed_bytes(inputs: int, outputs: int, digits: int) -> int:
    """Size of a packed right operand: padded to 64 inputs and 32 outputs."""
    return digits * (-(-outputs // 32) * 2) * -(-inputs // 64) * tiles.TILE_BYTES


@njit(nogil=True, cache=True)
def _pack_right(w: Any, by_outputs: bool, flips: Any, words: Any, digits: int, depth: int) -> None:
    """Cut w into digits and lay them out as [slice, 32 outputs, digit, tile, 2, 16, 16] words.

    A word holds one digit of 4 neighbouring inputs; `depth` is the tiles in a slice.
    """
    inputs, outputs = (w.shape[1], w.shape[0]) if by_outputs else w.shape
    tall, wide = -(-inputs // 64), -(-outputs // 32) * 2
    part = np.zeros((64, 16), dtype=np.uint64)
    for slab in range(0, tall, depth):
        here = min(depth, tall - slab)
        for column in range(wide):
            base = (slab * wide + (column & ~1) * here) * digits + (column & 1)
            for t in range(here):
                k0, n0 = (slab + t) * 64, column * 16
                rows, columns = min(64, inputs - k0), max(0, min(16, outputs - n0))
                if rows < 64 or columns < 16:
                    part[:] = 0
                if by_outputs:
                    for n in range(columns):
                        for k in range(rows):
                            part[k, n] = np.uint64(w[n0 + n, k0 + k]) ^ flips
                else:
                    for k in range(rows):
                        for n in range(columns):
                            part[k, n] = np.uint64(w[k0 + k, n0 + n]) ^ flips
                for digit in range(digits):
                    shift = np.uint64(8 * digit)
                    tile = words[base + 2 * (digit * here + t)]
                    for q in range(16):
                        for n in range(16):
                            a = np.uint32(part[4 * q, n] >> shift) & np.uint32(255)
                            b = np.uint32(part[4 * q + 1, n] >> shift) & np.uint32(255)
                            c = np.uint32(part[4 * q + 2, n] >> shift) & np.uint32(255)
                            d = np.uint32(part[4 * q + 3, n] >> shift)
                            tile[q, n] = (
                                a | b << np.uint32(8) | c << np.uint32(16) | d << np.uint32(24)
                            )


@njit(nogil=True, cache=True)
def _pack_left(x: Any, flips: Any, out: Any, depth: int) -> None:
    """Cut x [rows, inputs] into 8 digits, laid out as [slice, 32 rows, digit, tile, 2, 16, 64]."""
    rows, inputs = x.shape
    tall, high = -(-inputs // 64), -(-rows // 32) * 2
    for slab in range(0, tall, depth):
        here = min(depth, tall - slab)
        for block in range(high):
            base = (slab * high + (block & ~1) * here) * 8 + (block & 1)
            for t in range(here):
                k0 = (slab + t) * 64
                for r in range(min(16, rows - block * 16)):
                    values = x[block * 16 + r, k0 : min(inputs, k0 + 64)]
                    for digit in range(8):
                        shift, line = (
                            np.uint64(8 * digit),
                            out[base + 2 * ((7 - digit) * here + t), r],
                        )
                        for k in range(len(values)):
                            line[k] = np.uint8(((np.uint64(values[k]) + flips) ^ flips) >> shift)


@njit(nogil=True, cache=True)
def _multiply(
    left: int, right: int, depth: int, tall: int, digits: int, setup: int, out: Any
) -> None:
    """out += left @ right; `left` and `right` are addresses of packed operands."""
    rows, outputs = out.shape
    high, wide = -(-rows // 32) * 2, -(-outputs // 32) * 2
    group = _CACHE_TILES // (depth * digits)  # even
    room = np.empty(8 * 32 * 32 + 16, dtype=np.int32)
    skipped = (-room.ctypes.data % 64) // 4
    sums = room[skipped : skipped + 8 * 32 * 32].reshape(8, 32, 32)
    at = sums.ctypes.data
    configure(setup)
    for slab in range(0, tall, depth):
        here = min(depth, tall - slab)
        for begin in range(0, wide, group):
            for block in range(0, high, 2):
                a = left + (slab * high + block * here) * 8 * 1024
                for column in range(begin, min(wide, begin + group), 2):
                    b = right + (slab * wide + column * here) * digits * 1024
                    _tile_sums(a, b, here, digits, at)
                    _join(sums, out, block * 16, column * 16)
    release()


@njit(nogil=True, cache=True)
def _tile_sums(left: int, right: int, here: int, digits: int, at: int) -> None:
    """Sums of all digit products for 32 rows and 32 outputs, one [32, 32] for each i + j."""
    for total in range(8):
        zero0()
        zero1()
        zero2()
        zero3()
        a, b = left + (7 - total) * here * 2048, right
        for _ in range(min(total + 1, digits) * here):
            load4(a, 64)
            load6(b, 64)
            dot0()
            load7(b + 1024, 64)
            dot1()
            load5(a + 1024, 64)
            dot2()
            dot3()
            a += 2048
            b += 2048
        store0(at + total * 4096, 128)
        store1(at + total * 4096 + 64, 128)
        store2(at + total * 4096 + 2048, 128)
        store3(at + total * 4096 + 2112, 128)


@njit(nogil=True, cache=True)
def _join(sums: Any, out: Any, row: int, column: int) -> None:
    """out += sum over i of sums[i] 2^(8 i), from out[row, column] on, as far as out goes."""
    width = min(32, out.shape[1] - column)
    for r in range(min(32, out.shape[0] - row)):
        line = out[row + r, column : column + width]
        s0, s1, s2, s3 = (
            sums[0, r, :width],
            sums[1, r, :width],
            sums[2, r, :width],
            sums[3, r, :width],
        )
        s4, s5, s6, s7 = (
            sums[4, r, :width],
            sums[5, r, :width],
            sums[6, r, :width],
            sums[7, r, :width],
        )
        for n in range(width):
            low = np.int64(s0[n]) + (np.int64(s1[n]) << 8) + (np.int64(s2[n]) << 16)
            low += np.int64(s3[n]) << 24
            high = s4[n] + (s5[n] << 8) + (s6[n] << 16) + (s7[n] << 24)
            line[n] += low + (np.int64(high) << 32)


@njit(nogil=True, cache=True)
def _pack_few(x: Any, flips: Any, out: Any) -> None:
    """Cut x [rows <= 2, inputs] into digits, laid out as [tile, 8 digits of a row, 64 inputs]."""
    rows, inputs = x.shape
    for t in range(out.shape[0]):
        for r in range(rows):
            values = x[r, t * 64 : min(inputs, t * 64 + 64)]
            for digit in range(8):
                shift, line = np.uint64(8 * digit), out[t, 8 * r + digit]
                for k in range(len(values)):
                    line[k] = np.uint8(((np.uint64(values[k]) + flips) ^ flips) >> shift)


@njit(nogil=True, cache=True)
def _multiply_few(
    left: int, right: int, depth: int, tall: int, digits: int, setup: int, out: Any
) -> None:
    """out [rows <= 2, outputs] += left @ right: every tile of the right operand is read once."""
    rows, outputs = out.shape
    wide = -(-outputs // 32) * 2
    sums = np.empty((digits, 16, 32), dtype=np.int32)
    at = sums.ctypes.data
    configure(setup)
    for slab in range(0, tall, depth):
        here = min(depth, tall - slab)
        for column in range(0, wide, 2):
            b = right + (slab * wide + column * here) * digits * 1024
            for digit in range(digits):
                a = left + slab * 1024
                zero0()
                zero1()
                for _ in range(here):
                    load4(a, 64)
                    load6(b, 64)
                    dot0()
                    load7(b + 1024, 64)
                    dot1()
                    a += 1024
                    b += 2048
                store0(at + digit * 2048, 128)
                store1(at + digit * 2048 + 64, 128)
            for r in range(rows):
                _join_few(sums, 8 * r, out[r, column * 16 :])
    release()


@njit(nogil=True, cache=True)
def _join_few(sums: Any, row: int, out: Any) -> None:
    """out[n] += sum over i + j < 8 of sums[j, row + i, n] 2^(8 (i + j)), for up to 32 outputs."""
    total = np.zeros(32, dtype=np.int64)
    for digit in range(sums.shape[0]):
        for i in range(8 - digit):
            line = sums[digit, row + i]
            for n in range(32):
                total[n] += np.int64(line[n]) << (8 * (i + digit))
    for n in range(min(32, len(out))):
        out[n] += total[n]


def pack(w: np.ndarray, by_outputs: bool, digits: int, flips: int, out: np.ndarray) -> None:
    """Pack w into `out`, uint8 of `packed_bytes`.

    Args:
        w: integers [inputs, outputs], or [outputs, inputs] with `by_outputs`.
        flips: bits to turn over in every weight before it is cut into digits.
    """
    words = out.view(np.uint32).reshape(-1, 16, 16)
    _pack_right(w, by_outputs, np.uint64(flips), words, digits, slice_tiles(digits))


def _zeros(count: int) -> np.ndarray:
    """`count` empty tiles, uint8 [count, 16, 64]."""
    out = buffer(count * tiles.TILE_BYTES)
    out[:] = 0
    return out.reshape(count, 16, 64)


def multiply(x: np.ndarray, packed: np.ndarray, digits: int, flips: int, out: np.ndarray) -> None:
    """out += x @ (the packed operand, its bits turned over), mod 2^64.

    Args:
        x: int64 [rows, inputs], C-contiguous.
        packed: what `pack` wrote.
        flips: the bits that turn an int64 plus this number into signed digits.
        out: int64 [rows, outputs], C-contiguous.
    """
    rows, inputs = x.shape
    tall, depth = -(-inputs // 64), slice_tiles(digits)
    if rows <= 2:
        left = _zeros(tall)
        _pack_few(x, np.uint64(flips), left)
        kernel = _multiply_few
    else:
        left = _zeros(-(-rows // 32) * 2 * tall * DIGITS)
        _pack_left(x, np.uint64(flips), left, depth)
        kernel = _multiply
    addresses = (left.ctypes.data, packed.ctypes.data)
    kernel(*addresses, depth, tall, digits, _CONFIGURATION.ctypes.data, out)
