"""A party's local work on digit tables: every step passes over its memory once.

A borrow [y < r], with y public and r hidden in tables, is found digit by digit (DESIGN: digit
tables). `widths` are the bits of y's digits, the lowest first. For a digit of w bits each party
holds a share of the word of 2^w bits whose bit v is [v < r's digit]; that of [v == r's digit]
follows from it. Nodes join the digits of a group: their input bits, XOR a mask, are opened, and
index two dealt words, for the less and for the equal of the group. A level is the sizes of its
groups, the lowest first; a group of one passes through, unless it is alone. The lowest group has
no equality, since nothing is below it.

Between steps a digit or a group is one byte an element: its bit share of less, and of equal above
it. Input bits of a node, from bit 0: less_0, equal_0, less_1, equal_1, ..., without equal_0 in
the lowest group. Words lie in the narrowest integers that hold them, signed or not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numba import carray, njit

from mpcache.errors import UsageError
from mpcache.kernels.memory import addresses, bits_at, pointer

_BLOCK = 4096  # elements whose digits stay in the first-level cache


def word_bytes(inputs: int) -> int:
    """Bytes in which a table of 2^inputs bits lies.

    Raises:
        UsageError: unless 1 <= inputs <= 6.
    """
    if not 1 <= inputs <= 6:
        raise UsageError(f"A table of 2^{inputs} bits was asked for; expected 2^1 to 2^6.")
    return max(1, (1 << inputs) // 8)


def inputs_of(size: int, lowest: bool) -> int:
    """Input bits of a node that joins `size` digits."""
    return 2 * size - lowest


def joined(sizes: Sequence[int]) -> list[int]:
    """The places of a level's groups that have a node."""
    return [place for place, size in enumerate(sizes) if size > 1 or len(sizes) == 1]


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
def _pack(state: Any, sizes: Any, masks: Any, begin: Any, passed: Any, packed: Any) -> None:
    """Inputs of the nodes of `sizes` XOR masks, for the elements of state [digits, block]."""
    count, digit, node = state.shape[1], 0, 0
    for group in range(len(sizes)):
        size = sizes[group]
        if size == 1 and len(sizes) > 1:
            passed[group, begin : begin + count] = state[digit]
        else:
            out = packed[node, begin : begin + count]
            out[:] = carray(pointer(masks[node] + begin), count, np.uint8)
            for i in range(size):
                if group == 0 and i == 0:
                    _add_less(state[digit], out)
                else:
                    place = np.uint8(2 * i - (group == 0))
                    _add_input(state[digit + i], place, out)
            node += 1
        digit += size


@njit(nogil=True, cache=True)
def _first(
    y: Any, widths: Any, tables: Any, first: Any, sizes: Any, masks: Any, passed: Any, packed: Any
) -> None:
    count = len(y)
    state = np.empty((len(widths), min(count, _BLOCK)), dtype=np.uint8)
    at = np.empty(min(count, _BLOCK), dtype=np.uint8)
    for begin in range(0, count, _BLOCK):
        here = min(_BLOCK, count - begin)
        shift = 0
        for digit in range(len(widths)):
            width, low = widths[digit], np.uint8(shift)
            mask, part = np.uint8((1 << width) - 1), y[begin : begin + here]
            for i in range(here):
                at[i] = bits_at(part[i], low) & mask
            size = max(1, (1 << width) >> 3)
            where = tables[digit] + begin * size
            _split_at(where, size, at[:here], first, state[digit, :here])
            shift += width
        _pack(state[:, :here], sizes, masks, begin, passed, packed)


@njit(nogil=True, cache=True)
def _next(
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
    count = mine.shape[1]
    state = np.empty((len(old_sizes), min(count, _BLOCK)), dtype=np.uint8)
    at = np.empty(min(count, _BLOCK), dtype=np.uint8)
    for begin in range(0, count, _BLOCK):
        here, node = min(_BLOCK, count - begin), 0
        for group in range(len(old_sizes)):
            row = state[group, :here]
            if old_sizes[group] == 1:
                row[:] = old[group, begin : begin + here]
                continue
            words = 1 << (2 * old_sizes[group] - (group == 0))
            mask, size = np.uint8(words - 1), max(1, words >> 3)
            for i in range(here):
                at[i] = (mine[node, begin + i] ^ theirs[node, begin + i]) & mask
            row[:] = np.uint8(0)
            _look_at(less[node] + begin * size, size, at[:here], np.uint8(0), row)
            if group:
                _look_at(equal[node] + begin * size, size, at[:here], np.uint8(1), row)
            node += 1
        _pack(state[:, :here], sizes, masks, begin, passed, packed)


@njit(nogil=True, cache=True)
def _last(table: Any, mine: Any, theirs: Any, out: Any) -> None:
    """out[w, i] = table[mine[i] ^ theirs[i], w, i]."""
    mask = np.uint8(len(table) - 1)
    for word in range(table.shape[1]):
        for i in range(len(mine)):
            out[word, i] = table[np.int64((mine[i] ^ theirs[i]) & mask), word, i]


@njit(nogil=True, cache=True)
def _last_turned(table: Any, mine: Any, theirs: Any, y: Any, bit: Any, one: Any, out: Any) -> None:
    """As `_last`; where that bit of y is set, `one` minus it."""
    mask = np.uint8(len(table) - 1)
    for word in range(table.shape[1]):
        for i in range(len(mine)):
            value = np.int64(table[np.int64((mine[i] ^ theirs[i]) & mask), word, i])
            turn = -((np.int64(y[i]) >> bit) & 1)
            out[word, i] = (value ^ turn) - turn + (one & turn)


def _tables(tables: Sequence[torch.Tensor], inputs: Sequence[int], count: int, what: str) -> Any:
    """Contiguous words [count] for each number of inputs.

    Raises:
        UsageError: where there are others.
    """
    sizes = [word_bytes(bits) for bits in inputs]
    found = [(tuple(t.shape), t.dtype.itemsize, t.device.type) for t in tables]
    if found != [((count,), size, "cpu") for size in sizes]:
        raise UsageError(
            f"{what} have shapes, bytes a word and devices {found}; expected [{count}] "
            f"and {sizes} bytes on the CPU."
        )
    return [table.contiguous() for table in tables]


def _masks(masks: Sequence[torch.Tensor], nodes: int, count: int) -> list[torch.Tensor]:
    found = [(tuple(mask.shape), mask.dtype) for mask in masks]
    if found != [((count,), torch.uint8)] * nodes:
        raise UsageError(f"Masks are {found}; expected {nodes} of [{count}] in torch.uint8.")
    return [mask.contiguous() for mask in masks]


def _room(sizes: Sequence[int], digits: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Space for what passes through [groups, count], and for the inputs [nodes, count]."""
    if sum(sizes) != digits or not sizes or min(sizes) < 1:
        raise UsageError(f"Groups of {list(sizes)} were asked for; expected {digits} in all.")
    passed = torch.empty((len(sizes), count), dtype=torch.uint8)
    return passed, torch.empty((len(joined(sizes)), count), dtype=torch.uint8)


def first_inputs(
    y: torch.Tensor,
    tables: Sequence[torch.Tensor],
    widths: Sequence[int],
    rank: int,
    sizes: Sequence[int],
    masks: Sequence[torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:
    """From an opened y to the masked inputs of the first level's nodes.

    Args:
        y: integers [n]; only the low sum(widths) bits are read.
        tables: for each digit this party's share of its words [n], of 2^width bits.
        widths: bits of each digit, 1 to 6.
        rank: 0 or 1, which party this is.
        sizes: digits of each group.
        masks: for each node this party's share of its mask, uint8 [n].

    Returns:
        What passes through, uint8 [groups, n] (for `next_inputs`; rows of nodes are not written),
        and the inputs to open by XOR, uint8 [nodes, n].

    Raises:
        UsageError: on shapes or dtypes that do not fit.
    """
    flat, count = y.contiguous(), y.numel()
    if y.dim() != 1 or y.dtype.is_floating_point:
        raise UsageError(f"y is {y.dtype} {list(y.shape)}; expected integers [n].")
    if sum(widths) > 8 * y.dtype.itemsize:
        raise UsageError(f"Digits of {list(widths)} bits are more than {y.dtype} has.")
    words = _tables(tables, widths, count, "Words of digits")
    passed, packed = _room(sizes, len(widths), count)
    hidden = _masks(masks, len(packed), count)
    _first(
        flat.numpy(),
        np.array(widths, dtype=np.int64),
        addresses(words),
        np.uint8(rank == 0),
        np.array(sizes, dtype=np.int64),
        addresses(hidden),
        passed.numpy(),
        packed.numpy(),
    )
    return passed, packed


def next_inputs(
    mine: torch.Tensor,
    theirs: torch.Tensor,
    passed: torch.Tensor,
    old_sizes: Sequence[int],
    less: Sequence[torch.Tensor],
    equal: Sequence[torch.Tensor],
    sizes: Sequence[int],
    masks: Sequence[torch.Tensor],
) -> tuple[torch.Tensor, torch.Tensor]:
    """From the opened inputs of one level to the masked inputs of the next one's nodes.

    Args:
        mine, theirs: uint8 [nodes, n], what each party sent; their XOR is what is opened.
        passed: as the step before returned it.
        old_sizes: digits of each group of the level that was opened.
        less: for each of its nodes this party's share of its words [n], of 2^inputs bits.
        equal: the same for equality, without the lowest group's.
        sizes: how the old groups are grouped now.
        masks: for each new node this party's share of its mask, uint8 [n].

    Returns:
        As `first_inputs`.

    Raises:
        UsageError: on shapes or dtypes that do not fit.
    """
    nodes, count = joined(old_sizes), passed.shape[1]
    if not tuple(mine.shape) == tuple(theirs.shape) == (len(nodes), count):
        raise UsageError(
            f"Opened inputs are {list(mine.shape)} and {list(theirs.shape)}; "
            f"expected {[len(nodes), count]}."
        )
    inputs = [inputs_of(old_sizes[place], place == 0) for place in nodes]
    lowest = bool(nodes) and nodes[0] == 0
    lesses = _tables(less, inputs, count, "Words of less")
    equals = _tables(equal, inputs[lowest:], count, "Words of equal")
    new, packed = _room(sizes, len(old_sizes), count)
    hidden = _masks(masks, len(packed), count)
    _next(
        mine.contiguous().numpy(),
        theirs.contiguous().numpy(),
        passed.numpy(),
        np.array(old_sizes, dtype=np.int64),
        addresses(lesses),
        addresses([None] * lowest + equals),
        np.array(sizes, dtype=np.int64),
        addresses(hidden),
        new.numpy(),
        packed.numpy(),
    )
    return new, packed


def near_inputs(
    y: torch.Tensor, table: torch.Tensor, shift: int, width: int, near: Sequence[int], rank: int
) -> torch.Tensor:
    """Bit shares of [r's digit == y's digit - t mod 2^width], for each t of `near` from bit 0.

    Args:
        y: integers [n].
        table: this party's share of the digit's words [n], of 2^width bits.
        shift: y's bits below the digit.
        near: at most 8 of them.
        rank: 0 or 1, which party this is.

    Returns:
        uint8 [n].

    Raises:
        UsageError: on shapes or dtypes that do not fit.
    """
    (words,) = _tables([table], [width], y.numel(), "Words of digits")
    out = torch.empty(y.numel(), dtype=torch.uint8)
    _near(
        y.contiguous().numpy(),
        words.numpy(),
        shift,
        np.int64((1 << width) - 1),
        np.array(near, dtype=np.int64),
        np.uint64(rank == 0),
        out.numpy(),
    )
    return out


@njit(nogil=True, cache=True)
def _near(y: Any, words: Any, shift: Any, mask: Any, near: Any, first: Any, out: Any) -> None:
    one = np.uint64(1)
    for i in range(len(out)):
        word, digit, bits = np.uint64(words[i]), np.int64(y[i]) >> shift, np.uint64(0)
        equal = word ^ word << one ^ first
        for place in range(len(near)):
            bits |= ((equal >> np.uint64((digit - near[place]) & mask)) & one) << np.uint64(place)
        out[i] = bits


def last_words(
    table: torch.Tensor,
    mine: torch.Tensor,
    theirs: torch.Tensor,
    turn: tuple[torch.Tensor, int, int] | None = None,
) -> torch.Tensor:
    """The last table at the opened inputs.

    Args:
        table: this party's share, integers [2^inputs, words, n].
        mine, theirs: uint8 [n], what each party sent; their XOR is what is opened.
        turn: (y, bit, one): where that bit of y [n] is set, the results are `one` minus the
            words: [x < 0] from [low bits' borrow], with `one` 1 at party 0 and 0 at party 1.

    Returns:
        int64 [words, n].

    Raises:
        UsageError: on shapes that do not fit.
    """
    count = table.shape[-1] if table.dim() == 3 else -1
    whole = table.dim() == 3 and table.shape[0] in (1 << bits for bits in range(9))
    if not whole or not tuple(mine.shape) == tuple(theirs.shape) == (count,):
        raise UsageError(
            f"A table {list(table.shape)} at inputs {list(mine.shape)} and {list(theirs.shape)}; "
            "expected [2^inputs, words, n] at [n] and [n]."
        )
    out = torch.empty(tuple(table.shape[1:]), dtype=torch.int64)
    held = (table.contiguous().numpy(), mine.contiguous().numpy(), theirs.contiguous().numpy())
    if turn is None:
        _last(*held, out.numpy())
    else:
        y, bit, one = turn
        _last_turned(*held, y.contiguous().numpy(), bit, one, out.numpy())
    return out
