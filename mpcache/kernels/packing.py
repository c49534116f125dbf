"""Elements of any number of bits on the wire, with no bit between them.

Bits are little-endian: element i takes bits i b to (i + 1) b - 1, and bit k is bit k mod 8 of byte
k div 8. The last byte is filled up with zeros.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numba import njit

from mpcache.errors import UsageError
from mpcache.kernels.memory import load_word, store_word
from mpcache.kernels.prg import storage

_WORD = 8  # bytes of a word, which is stored whole: the memory behind a result has as many more
_PAIRS, _FOURS = 0x00FF00FF00FF00FF, 0x0000FFFF0000FFFF
_ALL = 0xFFFFFFFFFFFFFFFF


def packed_size(count: int, bits: int) -> int:
    """Bytes of `count` elements of `bits` bits.

    Raises:
        UsageError: unless 1 <= bits <= 64.
    """
    if not 1 <= bits <= 64:
        raise UsageError(f"Elements of {bits} bits are no elements; expected 1 to 64 bits.")
    return -(-count * bits // 8)


@njit(nogil=True, cache=True)
def _pack(values: Any, bits: Any, mask: Any, out: Any) -> None:
    target, word, filled = out.ctypes.data, np.uint64(0), 0
    for i in range(len(values)):
        value = np.uint64(values[i]) & mask
        word |= value << np.uint64(filled)
        filled += bits
        if filled >= 64:
            store_word(target, word)
            target += 8
            filled -= 64
            word = value >> np.uint64(bits - filled) if filled else np.uint64(0)
    store_word(target, word)


@njit(nogil=True, cache=True)
def _pack_octets(values: Any, size: Any, mask: Any, out: Any) -> None:
    """Elements of `size` whole bytes: each overwrites what the one before stored too much."""
    target = out.ctypes.data
    for i in range(len(values)):
        store_word(target + size * i, np.uint64(values[i]) & mask)


@njit(nogil=True, cache=True)
def _pack_eights(values: Any, bits: Any, mask: Any, out: Any) -> None:
    """Bytes, eight at once: every second joins the one before it, then pairs, then fours."""
    source, target = values.ctypes.data, out.ctypes.data
    gap = np.uint64(8 - bits)
    pairs, fours, low = np.uint64(_PAIRS), np.uint64(_FOURS), np.uint64(0xFFFFFFFF)
    for i in range(len(values) // 8):
        word = load_word(source + 8 * i) & mask
        word = (word & pairs) | ((word & ~pairs) >> gap)
        word = (word & fours) | ((word & ~fours) >> (np.uint64(2) * gap))
        word = (word & low) | ((word & ~low) >> (np.uint64(4) * gap))
        store_word(target + bits * i, word)


@njit(nogil=True, cache=True)
def _unpack(octets: Any, bits: Any, mask: Any, sign: Any, out: Any) -> None:
    source, size, count = octets.ctypes.data, len(octets), len(out)
    inner = min(count, max(0, ((size - 16) * 8) // bits)) if size >= 16 else 0
    for i in range(inner):
        at = i * bits
        shift = np.uint64(at & 7)
        word = load_word(source + (at >> 3)) >> shift
        if bits > 57:
            word |= (load_word(source + (at >> 3) + 8) << np.uint64(1)) << (np.uint64(63) - shift)
        out[i] = ((word & mask) ^ sign) - sign
    for i in range(inner, count):
        at, word = i * bits, np.uint64(0)
        for bit in range(bits):
            one = (octets[(at + bit) >> 3] >> np.uint8((at + bit) & 7)) & np.uint8(1)
            word |= np.uint64(one) << np.uint64(bit)
        out[i] = (word ^ sign) - sign


@njit(nogil=True, cache=True)
def _unpack_eights(octets: Any, bits: Any, mask: Any, eights: Any, out: Any) -> None:
    """The way of `_pack_eights` back, where 8 bytes can be read; `out` is made of whole eights."""
    source, target = octets.ctypes.data, out.ctypes.data
    low = ~np.uint64(0) >> np.uint64(64 - 4 * bits)
    fours = (~np.uint64(0) >> np.uint64(64 - 2 * bits)) * np.uint64(1 + (1 << 32))
    pairs = mask & np.uint64(_PAIRS)
    for i in range(eights):
        word = load_word(source + bits * i)
        word = (word & low) | ((word >> np.uint64(4 * bits) & low) << np.uint64(32))
        word = (word & fours) | ((word >> np.uint64(2 * bits) & fours) << np.uint64(16))
        word = (word & pairs) | ((word >> np.uint64(bits) & pairs) << np.uint64(8))
        store_word(target + 8 * i, word)


def pack_bits(values: torch.Tensor, bits: int) -> torch.Tensor:
    """The low `bits` bits of each element, one behind the other.

    Args:
        values: integers of any width, in any shape.
        bits: 1 to 64.

    Returns:
        uint8 [packed_size(elements, bits)].

    Raises:
        UsageError: when the values are no integers or the bits not 1 to 64.
    """
    size, count = packed_size(values.numel(), bits), values.numel()
    flat = _integers(values).reshape(-1).contiguous().numpy()
    out, mask = np.empty(size + 2 * _WORD, dtype=np.uint8), (1 << bits) - 1
    if bits % 8 == 0:
        _pack_octets(flat, bits // 8, np.uint64(mask), out)
    elif flat.itemsize == 1 and bits < 8:
        eights = count // 8 * 8
        repeated = np.uint64(mask * 0x0101010101010101)
        _pack_eights(flat[:eights], bits, repeated, out)
        _pack(flat[eights:], bits, np.uint64(mask), out[eights // 8 * bits :])
    else:
        _pack(flat, bits, np.uint64(mask), out)
    return torch.from_numpy(out[:size])


def unpack_bits(
    octets: torch.Tensor,
    bits: int,
    count: int,
    dtype: torch.dtype | None = None,
    signed: bool = False,
) -> torch.Tensor:
    """The elements that `pack_bits` packed.

    Args:
        octets: uint8 [packed_size(count, bits)].
        bits: 1 to 64.
        count: elements.
        dtype: of the result; by default the narrowest that holds them, see `prg.storage`.
        signed: whether an element's top bit is its sign.

    Returns:
        [count].

    Raises:
        UsageError: when the octets are too few, too many or none.
    """
    size = packed_size(count, bits)
    if octets.dtype != torch.uint8 or tuple(octets.shape) != (size,):
        raise UsageError(
            f"{octets.dtype} {list(octets.shape)} were to be unpacked; expected torch.uint8 "
            f"[{size}] for {count} elements of {bits} bits."
        )
    source = octets.contiguous().numpy()
    out = torch.empty(count, dtype=dtype or storage(bits))
    target, mask, sign = _integers(out).numpy(), (1 << bits) - 1, signed << (bits - 1)
    done = 0
    if target.itemsize == 1 and bits < 8 and not signed:
        done = max(0, (size - _WORD) // bits + 1) * 8 if size >= _WORD else 0
        done = min(done, count // 8 * 8)
        repeated = np.uint64(mask * 0x0101010101010101)
        _unpack_eights(source, bits, repeated, done // 8, target)
    rest = source[done // 8 * bits :]
    _unpack(rest, bits, np.uint64(mask), np.uint64(sign), target[done:])
    return out


def pack_words(values: torch.Tensor, octets: int) -> torch.Tensor:
    """The low 1 to 8 bytes of each element, the lowest first: uint8 [elements * octets].

    Raises:
        UsageError: when the values are no integers or the bytes not 1 to 8.
    """
    return pack_bits(values, 8 * octets)


def unpack_words(octets: torch.Tensor, size: int, signed: bool = True) -> torch.Tensor:
    """What `pack_words` packed in `size` bytes each, as int64, with or without its sign.

    Raises:
        UsageError: unless the octets are a multiple of 1 to 8 bytes.
    """
    packed_size(1, 8 * size)
    return unpack_bits(octets, 8 * size, octets.numel() // size, torch.int64, signed)


def _integers(values: torch.Tensor) -> torch.Tensor:
    if values.dtype.is_floating_point or values.dtype.is_complex or values.device.type != "cpu":
        raise UsageError(f"Elements are {values.dtype} on {values.device}; expected CPU integers.")
    return values.to(torch.uint8) if values.dtype == torch.bool else values
