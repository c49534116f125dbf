"""Answers, nodes and outputs in one pass equal those element by element."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpcache.kernels.prg import Stream, storage
from mpcache.kernels.questions import answers, joined, outputs


def bit(word: int, at: int) -> int:
    return word >> at & 1


@given(
    count=st.sampled_from([1, 63, 500]),
    asked=st.lists(
        st.tuples(st.integers(0, 9), st.integers(1, 6), st.sampled_from([-1, 4]), st.booleans()),
        min_size=1,
        max_size=5,
    ),
    rank=st.integers(0, 1),
    seed=st.integers(0, 255),
)
def test_answers(count: int, asked: list[tuple[int, int, int, bool]], rank: int, seed: int) -> None:
    stream = Stream(bytes([seed]) * 16)
    y = stream.bits(count, 17, torch.int32).to(torch.int64)
    sizes = [max(1, (1 << width) // 8) for _, width, _, _ in asked]
    tables = [stream.bits(count, 1 << width, storage(1 << width)) for _, width, _, _ in asked]
    rows = np.array(
        [(b, w, low, size, eq) for (b, w, low, eq), size in zip(asked, sizes, strict=True)],
        dtype=np.int64,
    )
    bits = torch.full((len(asked) + 1, count), 0xAA, dtype=torch.uint8)
    answers(y, rows, tables, rank, bits)
    for row, (begin, width, low, equal), table in zip(bits, asked, tables, strict=False):
        for i in range(count):
            moved = int(y[i]) - (1 << low if low >= 0 else 0)
            word = int(table[i]) & ((1 << (1 << width)) - 1)
            if equal:
                word ^= word << 1 ^ (rank == 0)
            assert int(row[i]) == bit(word, moved >> begin & ((1 << width) - 1))
    assert bool((bits[-1] == 0xAA).all()), "rows behind the questions stay"


@pytest.mark.parametrize("count", [1, 63, 500])
def test_nodes_and_their_outputs(count: int) -> None:
    stream = Stream(bytes(16), 7)
    bits = stream.bits((9, count), 1, torch.uint8)
    reads = [[0, 3, 2], [5], [4, 1, 0, 2, 3, 5]]
    masks = [stream.bits(count, len(read), torch.uint8) for read in reads]
    flat = np.array([row for read in reads for row in read], dtype=np.int64)
    sent = joined(bits, flat, np.array([len(r) for r in reads], dtype=np.int64), masks)
    for row, read, mask in zip(sent, reads, masks, strict=True):
        word = sum(bits[number].long() << place for place, number in enumerate(read))
        assert torch.equal(row, (word ^ mask.long()).to(torch.uint8))
    nodes = [0, 0, 1, 2]
    widths = [1 << len(reads[node]) for node in nodes]
    words = [stream.bits(count, width, storage(width)) for width in widths]
    sizes = np.array([max(1, width // 8) for width in widths], dtype=np.int64)
    outputs(sent, np.array(nodes, dtype=np.int64), sizes, words, bits[3:])
    for row, node, table in zip(bits[3:], nodes, words, strict=False):
        for i in range(count):
            assert int(row[i]) == bit(int(table[i]) & ((1 << 64) - 1), int(sent[node, i]))
