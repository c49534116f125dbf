"""Digit tables read and dealt by compiled kernels, bit for bit what plain torch says."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcache.errors import UsageError
from mpcache.kernels import bittree, bittree_dealer
from mpcache.kernels.prg import Stream, storage
from tests.kernels.operands import seeds

COUNTS = st.sampled_from([0, 1, 63, 500, 5000])  # 5,000 is more than a block


class Drawn:
    """Uniform shares of what a tree reads: digits' words, and masks and words of its nodes."""

    def __init__(self, count: int, widths: Sequence[int], levels: Sequence[list[int]], seed: int):
        self.stream = Stream(seed.to_bytes(16, "big"))
        self.count = count
        self.digits = [self.word(width) for width in widths]
        self.masks, self.words = [], []
        for sizes in levels:
            inputs = [
                (bittree.inputs_of(sizes[place], place == 0), place)
                for place in bittree.joined(sizes)
            ]
            self.masks.append([self.stream.bits(count, bits, torch.uint8) for bits, _ in inputs])
            less = [self.word(bits) for bits, _ in inputs]
            equal = [self.word(bits) for bits, place in inputs if place]
            self.words.append((less, equal))

    def word(self, inputs: int) -> torch.Tensor:
        return self.stream.bits(self.count, 1 << inputs, storage(1 << inputs))


def bit(words: torch.Tensor, at: torch.Tensor) -> torch.Tensor:
    return words.to(torch.int64) >> at & 1


def read(
    y: torch.Tensor, tables: Sequence[torch.Tensor], widths: Sequence[int], rank: int
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Bit shares of less and equal of every digit."""
    less, equal, shift = [], [], 0
    for words, width in zip(tables, widths, strict=True):
        digit = y >> shift & ((1 << width) - 1)
        turned = words.to(torch.int64) ^ words.to(torch.int64) << 1 ^ (rank == 0)
        less.append(bit(words, digit))
        equal.append(bit(turned, digit))
        shift += width
    return less, equal


def packed(
    less: Sequence[torch.Tensor],
    equal: Sequence[torch.Tensor],
    sizes: Sequence[int],
    masks: Sequence[torch.Tensor],
) -> list[torch.Tensor]:
    """The masked inputs of the nodes of a level."""
    out, digit = [], 0
    for place, size in enumerate(sizes):
        parts = []
        for i in range(digit, digit + size):
            parts += [less[i]] if i == 0 else [less[i], equal[i]]
        if place in bittree.joined(sizes):
            word = sum(part << at for at, part in enumerate(parts)) ^ masks[len(out)]
            out.append(word.to(torch.uint8))
        digit += size
    return out


def opened(
    v: torch.Tensor,
    less: Sequence[torch.Tensor],
    equal: Sequence[torch.Tensor],
    sizes: Sequence[int],
    words: tuple[list[torch.Tensor], list[torch.Tensor]],
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Bit shares of less and equal of every group, from the opened inputs v [nodes, n]."""
    lesses, equals, digit, node = [], [], 0, 0
    lowest = 0 in bittree.joined(sizes)
    for place, size in enumerate(sizes):
        if place in bittree.joined(sizes):
            at = v[node].to(torch.int64)
            lesses.append(bit(words[0][node], at))
            equals.append(bit(words[1][node - lowest], at) if place else equal[0])
            node += 1
        else:
            lesses.append(less[digit])
            equals.append(equal[digit])
        digit += size
    return lesses, equals


@st.composite
def trees(draw: st.DrawFn) -> tuple[list[int], list[list[int]]]:
    """Widths of digits, and levels of groups with at most 6 inputs, down to one group."""
    widths = draw(st.lists(st.integers(1, 6), min_size=1, max_size=10))
    levels, left = [], len(widths)
    while not levels or left > 1:
        sizes: list[int] = []
        while sum(sizes) < left:
            sizes.append(min(draw(st.integers(1, 3)), left - sum(sizes)))
        if len(sizes) == left > 1:
            sizes = [*sizes[:-2], 2]
        levels.append(sizes)
        left = len(sizes)
    return widths, levels


@settings(max_examples=60)
@given(tree=trees(), count=COUNTS, rank=st.integers(0, 1), seed=seeds, narrow=st.booleans())
def test_a_party_reads_every_step_as_torch_does(
    tree: tuple[list[int], list[list[int]]], count: int, rank: int, seed: int, narrow: bool
) -> None:
    widths, levels = tree
    held, other = (Drawn(count, widths, levels, seed + i) for i in range(2))
    y = other.stream.bits(count, min(63, sum(widths) + 3), torch.int64)
    if narrow and sum(widths) <= 16:
        y = y.to(torch.int16)
    less, equal = read(y.to(torch.int64), held.digits, widths, rank)
    passed, got = bittree.first_inputs(y, held.digits, widths, rank, levels[0], held.masks[0])
    assert list(got) == [] or torch.equal(
        got, torch.stack(packed(less, equal, levels[0], held.masks[0]))
    )
    for level in range(1, len(levels)):
        sizes = levels[level - 1]
        theirs = torch.stack(
            [
                other.stream.bits(count, bittree.inputs_of(sizes[place], place == 0), torch.uint8)
                for place in bittree.joined(sizes)
            ]
        )
        less, equal = opened(got ^ theirs, less, equal, sizes, held.words[level - 1])
        passed, got = bittree.next_inputs(
            got, theirs, passed, sizes, *held.words[level - 1], levels[level], held.masks[level]
        )
        expected = packed(less, equal, levels[level], held.masks[level])
        assert torch.equal(got, torch.stack(expected))


@settings(max_examples=40)
@given(tree=trees(), count=st.sampled_from([1, 63, 500]), seed=seeds)
def test_dealt_tables_find_the_borrow(
    tree: tuple[list[int], list[list[int]]], count: int, seed: int
) -> None:
    """Dealer and both parties together: [y < r], for r beside y as well as far from it."""
    widths, levels = tree
    bits = sum(widths)
    zero, mine = (Drawn(count, widths, levels, seed + i) for i in range(2))
    r = zero.stream.bits(count, min(bits, 63), torch.int64)
    low = (1 << bits) - 1 if bits < 64 else -1
    near = mine.stream.bits(count, 2, torch.int64)
    y = torch.where(near < 3, (r + near - 1) & low, mine.stream.bits(count, 63, torch.int64))
    one_digits = bittree_dealer.below_words(r, widths, zero.digits)
    state = [
        bittree.first_inputs(y, zero.digits, widths, 0, levels[0], zero.masks[0]),
        bittree.first_inputs(y, one_digits, widths, 1, levels[0], mine.masks[0]),
    ]
    for level, sizes in enumerate(levels):
        dealt: tuple[list[torch.Tensor], list[torch.Tensor]] = ([], [])
        own = [iter(words) for words in zero.words[level]]
        for node, place in enumerate(bittree.joined(sizes)):
            mask = zero.masks[level][node] ^ mine.masks[level][node]
            shares = [next(words) for words in own[: 1 + (place > 0)]]
            words = bittree_dealer.node_words(mask, sizes[place], place == 0, shares)
            for rows, word in zip(dealt, words, strict=False):
                rows.append(word)
        (passed0, sent0), (passed1, sent1) = state
        if len(sizes) == 1:
            v = (sent0 ^ sent1)[0].to(torch.int64)
            borrow = bit(zero.words[level][0][0], v) ^ bit(dealt[0][0], v)
            wanted = (y & low) < r if bits < 64 else (y ^ -(2**63)) < (r ^ -(2**63))
            assert torch.equal(borrow == 1, wanted)
            return
        following = levels[level + 1]
        state = [
            bittree.next_inputs(
                sent0, sent1, passed0, sizes, *zero.words[level], following, zero.masks[level + 1]
            ),
            bittree.next_inputs(
                sent1, sent0, passed1, sizes, *dealt, following, mine.masks[level + 1]
            ),
        ]


@given(count=COUNTS, width=st.integers(1, 6), rank=st.integers(0, 1), seed=seeds)
def test_digits_nearby(count: int, width: int, rank: int, seed: int) -> None:
    stream = Stream(seed.to_bytes(16, "big"))
    table = stream.bits(count, 1 << width, storage(1 << width))
    y, near = stream.bits(count, 30, torch.int32), (0, 1, 5)
    got = bittree.near_inputs(y, table, 9, width, near, rank)
    word = table.to(torch.int64)
    equal = word ^ word << 1 ^ (rank == 0)
    digit = y.to(torch.int64) >> 9
    bits = [(equal >> ((digit - t) & ((1 << width) - 1))) & 1 for t in near]
    assert torch.equal(got, sum(b << i for i, b in enumerate(bits)).to(torch.uint8))


@settings(max_examples=40)
@given(
    count=st.sampled_from([1, 63, 500, 5000]),
    inputs=st.integers(1, 5),
    words=st.integers(1, 3),
    dtype=st.sampled_from([torch.uint8, torch.int16, torch.int32, torch.int64]),
    seed=seeds,
)
def test_last_tables(count: int, inputs: int, words: int, dtype: torch.dtype, seed: int) -> None:
    stream = Stream(seed.to_bytes(16, "big"))
    shown = stream.ring((3, words, count))
    case_of = stream.bits(1 << inputs, 8, torch.int64).remainder(3).tolist()
    mask, mine, theirs = (stream.bits(count, inputs, torch.uint8) for _ in range(3))
    own = stream.bits((1 << inputs, words, count), 8 * dtype.itemsize, dtype)
    table = bittree_dealer.last_table(shown, case_of, mask, own)
    index = torch.tensor(case_of)[torch.arange(1 << inputs)[:, None] ^ mask]
    spread = index.unsqueeze(1).expand(-1, words, -1)
    assert torch.equal(table, (shown.gather(0, spread) - own).to(dtype))
    v = (mine ^ theirs).to(torch.int64).expand(1, words, -1)
    read_here = table.gather(0, v).squeeze(0).to(torch.int64)
    assert torch.equal(bittree.last_words(table, mine, theirs), read_here)
    y = stream.bits(count, 32, torch.int32)
    for one in (0, 1):
        turned = torch.where(y >> 7 & 1 == 1, one - read_here, read_here)
        assert torch.equal(bittree.last_words(table, mine, theirs, (y, 7, one)), turned)


def test_results_lie_in_memory_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buffers are full of ones before a kernel writes: nothing of them may show."""
    empty = torch.empty

    def poisoned(*shape: object, **options: object) -> torch.Tensor:
        return empty(*shape, **options).fill_(-1 if options["dtype"] != torch.uint8 else 255)

    held = Drawn(500, [6, 6, 4, 3], [[3, 1], [2]], 7)
    y = held.stream.bits(500, 19, torch.int64)
    before = bittree.first_inputs(y, held.digits, [6, 6, 4, 3], 0, [3, 1], held.masks[0])
    words = bittree_dealer.below_words(y, [6, 6, 4, 3], held.digits)
    monkeypatch.setattr(torch, "empty", poisoned)
    after = bittree.first_inputs(y, held.digits, [6, 6, 4, 3], 0, [3, 1], held.masks[0])
    assert torch.equal(before[1], after[1])
    assert torch.equal(before[0][1], after[0][1])  # group 0 has a node: its row is not written
    again = bittree_dealer.below_words(y, [6, 6, 4, 3], held.digits)
    assert all(torch.equal(a, b) for a, b in zip(words, again, strict=True))


def test_what_does_not_fit_is_refused() -> None:
    held = Drawn(5, [4, 4], [[2]], 1)
    y = torch.zeros(5, dtype=torch.int64)
    with pytest.raises(UsageError, match="Words of digits"):
        bittree.first_inputs(y, held.digits, [4, 5], 0, [2], held.masks[0])
    with pytest.raises(UsageError, match=r"Groups of \[3\]"):
        bittree.first_inputs(y, held.digits, [4, 4], 0, [3], held.masks[0])
    with pytest.raises(UsageError, match="Digits of"):
        bittree.first_inputs(y.to(torch.uint8), held.digits, [4, 5], 0, [2], held.masks[0])
    with pytest.raises(UsageError, match="Masks are"):
        bittree.first_inputs(y, held.digits, [4, 4], 0, [2], [])
    with pytest.raises(UsageError, match="of two groups or more"):
        sent = torch.zeros((1, 5), dtype=torch.uint8)
        bittree.next_inputs(sent, sent, sent, [2], *held.words[0], [1], held.masks[0])
    with pytest.raises(UsageError, match="2\\^7 bits"):
        bittree_dealer.below_words(y, [7], held.digits[:1])
    with pytest.raises(UsageError, match="Party 0's words"):
        bittree_dealer.node_words(held.masks[0][0], 3, True, held.digits[:1])
    with pytest.raises(UsageError, match="3 inputs"):
        own = torch.zeros((3, 1, 5), dtype=torch.int64)
        bittree_dealer.last_table(own[:1], [0, 0, 0], held.masks[0][0], own)
    with pytest.raises(UsageError, match=r"expected \[2\^inputs"):
        bittree.last_words(torch.zeros(3, 1, 5), held.masks[0][0], held.masks[0][0])
