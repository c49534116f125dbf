"""The compiled loops of `bittree`, over blocks of elements whose digits stay in the first cache."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import carray, njit

from mpcache.kernels.memory import bits_at, pointer

_BLOCK = 4096  # elements


@njit(nogil=True, cache=True)
def _split(words: Any, at: Any, first: Any, out: Any) -> None:
    """out = the bit `at` of words, and the same bit of words ^ words << 1 ^ first above it."""
    one = np.uint8(1)
    for i in range(len(out)):
        less = bits_at(words[i], at[i])
        before = bits_at(words[i], at[i] - one) if at[i] else first
        out[i] = (less & one) | ((less ^ before) & one) << one


@njit(nogil=True, cache=True)
def _split_at(address: Any, size: Any, at: Any, first: Any, out: Any) -> None:
    count = len(out)
    if size == 1:
        _split(carray(pointer(address), count, np.uint8), at, first, out)
    elif size == 2:
        _split(carray(pointer(address), count, np.uint16), at, first, out)
    elif size == 4:
        _split(carray(pointer(address), count, np.uint32), at, first, out)
    else:
        _split(carray(pointer(address), count, np.uint64), at, first, out)


@njit(nogil=True, cache=True)
def _look(words: Any, at: Any, place: Any, out: Any) -> None:
    """out |= the bit `at` of words, at bit `place`."""
    one = np.uint8(1)
    for i in range(len(out)):
        out[i] |= (bits_at(words[i], at[i]) & one) << place


@njit(nogil=True, cache=True)
def _look_at(address: Any, size: Any, at: Any, place: Any, out: Any) -> None:
    count = len(out)
    if size == 1:
        _look(carray(pointer(address), count, np.uint8), at, place, out)
    elif size == 2:
        _look(carray(pointer(address), count, np.uint16), at, place, out)
    elif size == 4:
        _look(carray(pointer(address), count, np.uint32), at, place, out)
    else:
        _look(carray(pointer(address), count, np.uint64), at, place, out)


@njit(nogil=True, cache=True)
def _add_input(bits: Any, place: Any, out: Any) -> None:
    for i in range(len(out)):
        out[i] ^= bits[i] << place


@njit(nogil=True, cache=True)
def _add_less(bits: Any, out: Any) -> None:
    for i in range(len(out)):
        out[i] ^= bits[i] & np.uint8(1)


@njit(nogil=True, cache=True)
def _octets(address: Any, begin: Any, count: Any) -> Any:
    return carray(pointer(address + begin), count, np.uint8)


@njit(nogil=True, cache=True)
def _pack(
    state: Any, sizes: Any, masks: Any, begin: Any, total: Any, passed: Any, packed: Any
) -> None:
    """Inputs of the nodes of `sizes` XOR masks, for the elements of state [digits, block]."""
    count, digit, node = state.shape[1], 0, 0
    for group in range(len(sizes)):
        size = sizes[group]
        if size == 1 and len(sizes) > 1:
            _octets(passed, group * total + begin, count)[:] = state[digit]
        else:
            out = _octets(packed, node * total + begin, count)
            out[:] = _octets(masks[node], begin, count)
            for i in range(size):
                if group == 0 and i == 0:
                    _add_less(state[digit], out)
                else:
                    place = np.uint8(2 * i - (group == 0))
                    _add_input(state[digit + i], place, out)
            node += 1
        digit += size


@njit(nogil=True, cache=True)
def _digit(y: Any, low: Any, mask: Any, out: Any) -> None:
    for i in range(len(out)):
        out[i] = bits_at(y[i], low) & mask


@njit(nogil=True, cache=True)
def _digit_at(address: Any, size: Any, low: Any, mask: Any, out: Any) -> None:
    count = len(out)
    if size == 1:
        _digit(carray(pointer(address), count, np.uint8), low, mask, out)
    elif size == 2:
        _digit(carray(pointer(address), count, np.uint16), low, mask, out)
    elif size == 4:
        _digit(carray(pointer(address), count, np.uint32), low, mask, out)
    else:
        _digit(carray(pointer(address), count, np.uint64), low, mask, out)


@njit(nogil=True, cache=True)
def first(
    count: Any,
    y: Any,
    y_size: Any,
    widths: Any,
    tables: Any,
    whole: Any,
    sizes: Any,
    masks: Any,
    passed: Any,
    packed: Any,
) -> None:
    """See `bittree.first_inputs`; y, tables, masks and results by their addresses."""
    state = np.empty((len(widths), min(count, _BLOCK)), dtype=np.uint8)
    at = np.empty(min(count, _BLOCK), dtype=np.uint8)
    for begin in range(0, count, _BLOCK):
        here = min(_BLOCK, count - begin)
        shift = 0
        for digit in range(len(widths)):
            width, low = widths[digit], np.uint8(shift)
            mask, size = np.uint8((1 << width) - 1), max(1, (1 << width) >> 3)
            _digit_at(y + begin * y_size, y_size, low, mask, at[:here])
            where = tables[digit] + begin * size
            _split_at(where, size, at[:here], whole, state[digit, :here])
            shift += width
        _pack(state[:, :here], sizes, masks, begin, count, passed, packed)


@njit(nogil=True, cache=True)
def following(
    count: Any,
    mine: Any,
    theirs: Any,
    old: Any,
    old_sizes: Any,
    less: Any,
    equal: Any,
    sizes: Any,
    masks: Any,
    passed: Any,
    packed: Any,
) -> None:
    """See `bittree.next_inputs`; all but sizes by their addresses."""
    state = np.empty((len(old_sizes), min(count, _BLOCK)), dtype=np.uint8)
    at = np.empty(min(count, _BLOCK), dtype=np.uint8)
    for begin in range(0, count, _BLOCK):
        here, node = min(_BLOCK, count - begin), 0
        for group in range(len(old_sizes)):
            row = state[group, :here]
            if old_sizes[group] == 1:
                row[:] = _octets(old, group * count + begin, here)
                continue
            words = 1 << (2 * old_sizes[group] - (group == 0))
            mask, size = np.uint8(words - 1), max(1, words >> 3)
            own, other = (
                _octets(mine, node * count + begin, here),
                _octets(theirs, node * count + begin, here),
            )
            for i in range(here):
                at[i] = (own[i] ^ other[i]) & mask
            row[:] = np.uint8(0)
            _look_at(less[node] + begin * size, size, at[:here], np.uint8(0), row)
            if group:
                _look_at(equal[node] + begin * size, size, at[:here], np.uint8(1), row)
            node += 1
        _pack(state[:, :here], sizes, masks, begin, count, passed, packed)


@njit(nogil=True, cache=True)
def last(table: Any, mine: Any, theirs: Any, out: Any) -> None:
    """out[w, i] = table[mine[i] ^ theirs[i], w, i]."""
    mask = np.uint8(len(table) - 1)
    for word in range(table.shape[1]):
        for i in range(len(mine)):
            out[word, i] = table[np.int64((mine[i] ^ theirs[i]) & mask), word, i]


@njit(nogil=True, cache=True)
def last_turned(table: Any, mine: Any, theirs: Any, y: Any, bit: Any, one: Any, out: Any) -> None:
    """As `last`; where that bit of y is set, `one` minus it."""
    mask = np.uint8(len(table) - 1)
    for word in range(table.shape[1]):
        for i in range(len(mine)):
            value = np.int64(table[np.int64((mine[i] ^ theirs[i]) & mask), word, i])
            turn = -((np.int64(y[i]) >> bit) & 1)
            out[word, i] = (value ^ turn) - turn + (one & turn)


@njit(nogil=True, cache=True)
def near(y: Any, words: Any, shift: Any, mask: Any, places: Any, first: Any, out: Any) -> None:
    one = np.uint64(1)
    for i in range(len(out)):
        word, digit, bits = np.uint64(words[i]), np.int64(y[i]) >> shift, np.uint64(0)
        equal = word ^ word << one ^ first
        for place in range(len(places)):
            bits |= ((equal >> np.uint64((digit - places[place]) & mask)) & one) << np.uint64(place)
        out[i] = bits
