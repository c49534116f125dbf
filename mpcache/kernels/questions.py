"""A party's local work on digit tables: answers, nodes' inputs and outputs, in one pass each.

Bits are rows of one byte an element. Words lie in the narrowest integers that hold them, wherever
they lie: see `memory`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numba import carray, njit

from mpcache.kernels.memory import addresses, pointer


@njit(nogil=True, cache=True)
def _look(words: Any, at: Any, equal: bool, first: Any, out: Any) -> None:
    """out = bit `at` of each word, or of word ^ word << 1 ^ first."""
    one = np.uint64(1)
    for i in range(len(out)):
        word = np.uint64(words[i])
        if equal:
            word ^= word << one ^ first
        out[i] = (word >> np.uint64(at[i])) & one


@njit(nogil=True, cache=True)
def _look_at(address: Any, size: Any, at: Any, equal: bool, first: Any, out: Any) -> None:
    count = len(out)
    if size == 1:
        _look(carray(pointer(address), count, np.uint8), at, equal, first, out)
    elif size == 2:
        _look(carray(pointer(address), count, np.uint16), at, equal, first, out)
    elif size == 4:
        _look(carray(pointer(address), count, np.uint32), at, equal, first, out)
    else:
        _look(carray(pointer(address), count, np.uint64), at, equal, first, out)


@njit(nogil=True, cache=True)
def _answer(y: Any, asked: Any, tables: Any, first: Any, bits: Any) -> None:
    """Row q of `bits`: question q's answer; asked [questions, 5]: see `Asked`."""
    digit = np.empty(len(y), dtype=np.uint8)
    for q in range(len(asked)):
        begin, width, low = asked[q, 0], asked[q, 1], asked[q, 2]
        mask, less = (1 << width) - 1, (1 << low) if low >= 0 else 0
        for i in range(len(y)):
            digit[i] = ((y[i] - less) >> begin) & mask
        _look_at(tables[q], asked[q, 3], digit, asked[q, 4] != 0, first, bits[q])


@njit(nogil=True, cache=True)
def _join(bits: Any, inputs: Any, counts: Any, masks: Any, out: Any) -> None:
    """Row n of `out`: the bits that node n reads, side by side, XOR its mask."""
    at, length = 0, bits.shape[1]
    for node in range(len(counts)):
        row = out[node]
        row[:] = carray(pointer(masks[node]), length, np.uint8)
        for place in range(counts[node]):
            source, shift = bits[inputs[at]], np.uint8(place)
            for i in range(length):
                row[i] ^= source[i] << shift
            at += 1


@njit(nogil=True, cache=True)
def _output(opened: Any, nodes: Any, sizes: Any, tables: Any, bits: Any) -> None:
    """Row o of `bits`: the output that a node's word o says of the node's opened bits."""
    for o in range(len(nodes)):
        _look_at(tables[o], sizes[o], opened[nodes[o]], False, np.uint64(0), bits[o])


def answers(
    y: torch.Tensor,
    asked: np.ndarray,
    tables: Sequence[torch.Tensor],
    rank: int,
    bits: torch.Tensor,
) -> None:
    """Write the answers to questions about digits of y.

    Args:
        y: int64 [n].
        asked: int64 [questions, 5]: where the digit begins, its bits, where turned digits begin or
            -1, the bytes of a word, and 1 if the question is whether the digits are equal.
        tables: a party's share of each question's words, contiguous [n].
        bits: uint8 [questions or more, n], of which the first rows are written.
    """
    first = np.uint64(rank == 0)
    _answer(y.numpy(), asked, addresses(tables), first, bits.numpy())


def joined(
    bits: torch.Tensor, inputs: np.ndarray, counts: np.ndarray, masks: Sequence[torch.Tensor]
) -> torch.Tensor:
    """What nodes open: uint8 [nodes, n].

    Args:
        bits: uint8 [rows, n]. inputs: rows that the nodes read, one node behind the other.
        counts: how many each reads. masks: uint8 [n] of each.
    """
    out = torch.empty((len(counts), bits.shape[1]), dtype=torch.uint8)
    _join(bits.numpy(), inputs, counts, addresses(masks), out.numpy())
    return out


def outputs(
    opened: torch.Tensor,
    nodes: np.ndarray,
    sizes: np.ndarray,
    tables: Sequence[torch.Tensor],
    bits: torch.Tensor,
) -> None:
    """Write what nodes say: row o of `bits` is output o.

    Args:
        opened: uint8 [nodes, n]. nodes: of each output, its node. sizes: the bytes of its words.
        tables: a party's share of each output's words, contiguous [n].
    """
    _output(opened.numpy(), nodes, sizes, addresses(tables), bits.numpy())
