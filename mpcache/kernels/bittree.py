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

import numpy as np
import torch

from mpcache.errors import UsageError
from mpcache.kernels import bittree_loops as loops
from mpcache.kernels.memory import addresses


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


def _held(
    tensors: Sequence[torch.Tensor], inputs: Sequence[int], count: int, what: str
) -> list[torch.Tensor]:
    """Contiguous words [count] for each number of inputs.

    Raises:
        UsageError: where there are others.
    """
    sizes = [word_bytes(bits) for bits in inputs]
    fits = len(tensors) == len(sizes) and all(
        tensor.element_size() == size and tensor.shape == (count,) and tensor.is_cpu
        for tensor, size in zip(tensors, sizes, strict=True)
    )
    if not fits:
        found = [(list(tensor.shape), tensor.dtype) for tensor in tensors]
        raise UsageError(f"{what} are {found}; expected [{count}] with {sizes} bytes a word.")
    return [tensor if tensor.is_contiguous() else tensor.contiguous() for tensor in tensors]


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
    if y.dim() != 1 or y.dtype.is_floating_point or not y.is_cpu:
        raise UsageError(f"y is {y.dtype} {list(y.shape)}; expected integers [n].")
    if sum(widths) > 8 * y.dtype.itemsize:
        raise UsageError(f"Digits of {list(widths)} bits are more than {y.dtype} has.")
    words = _held(tables, widths, count, "Words of digits")
    passed, packed = _room(sizes, len(widths), count)
    hidden = _held(masks, [1] * packed.shape[0], count, "Masks")
    loops.first(
        count,
        flat.data_ptr(),
        flat.element_size(),
        np.array(widths, dtype=np.int64),
        addresses(words),
        np.uint8(rank == 0),
        np.array(sizes, dtype=np.int64),
        addresses(hidden),
        passed.data_ptr(),
        packed.data_ptr(),
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
    nodes, count, groups = joined(old_sizes), passed.shape[-1], len(old_sizes)
    given = [mine, theirs, passed]
    expected = [(len(nodes), count), (len(nodes), count), (groups, count)]
    if groups < 2 or [tuple(t.shape) for t in given if t.dtype == torch.uint8] != expected:
        raise UsageError(
            f"Opened inputs and what passed are {[(list(t.shape), t.dtype) for t in given]}; "
            f"expected {expected} in torch.uint8, of two groups or more."
        )
    inputs = [inputs_of(old_sizes[place], place == 0) for place in nodes]
    lowest = bool(nodes) and nodes[0] == 0
    lesses = _held(less, inputs, count, "Words of less")
    equals = _held(equal, inputs[lowest:], count, "Words of equal")
    new, packed = _room(sizes, groups, count)
    hidden = _held(masks, [1] * packed.shape[0], count, "Masks")
    mine, theirs, passed = (tensor.contiguous() for tensor in given)
    loops.following(
        count,
        mine.data_ptr(),
        theirs.data_ptr(),
        passed.data_ptr(),
        np.array(old_sizes, dtype=np.int64),
        addresses(lesses),
        addresses([*([None] * lowest), *equals]),
        np.array(sizes, dtype=np.int64),
        addresses(hidden),
        new.data_ptr(),
        packed.data_ptr(),
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
    (words,) = _held([table], [width], y.numel(), "Words of digits")
    out = torch.empty(y.numel(), dtype=torch.uint8)
    loops.near(
        y.contiguous().numpy(),
        words.numpy(),
        shift,
        np.int64((1 << width) - 1),
        np.array(near, dtype=np.int64),
        np.uint64(rank == 0),
        out.numpy(),
    )
    return out


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
        loops.last(*held, out.numpy())
    else:
        y, bit, one = turn
        loops.last_turned(*held, y.contiguous().numpy(), bit, one, out.numpy())
    return out
