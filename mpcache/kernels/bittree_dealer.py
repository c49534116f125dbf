"""The dealer's words for `bittree`, each table written once: what is wanted XOR party 0's share."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numba import carray, njit

from mpcache.errors import UsageError
from mpcache.kernels.bittree import inputs_of, word_bytes
from mpcache.kernels.memory import addresses, pointer
from mpcache.kernels.shapes import buffer

_STORAGE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_BLOCK = 4096  # elements whose digits stay in the first-level cache


@njit(nogil=True, cache=True)
def _below(r: Any, shift: Any, mask: Any, source: Any, target: Any, kind: Any) -> None:
    one = np.uint64(1)
    own, out = carray(pointer(source), len(r), kind), carray(pointer(target), len(r), kind)
    for i in range(len(r)):
        digit = (np.uint64(r[i]) >> shift) & mask
        out[i] = ((one << digit) - one) ^ np.uint64(own[i])


@njit(nogil=True, cache=True)
def _below_all(r: Any, widths: Any, own: Any, out: Any) -> None:
    for begin in range(0, len(r), _BLOCK):
        part, shift = r[begin : begin + _BLOCK], np.uint64(0)
        for digit in range(len(widths)):
            mask = np.uint64((1 << widths[digit]) - 1)
            size = max(1, (1 << widths[digit]) >> 3)
            source, target = own[digit] + begin * size, out[digit] + begin * size
            if size == 1:
                _below(part, shift, mask, source, target, np.uint8)
            elif size == 2:
                _below(part, shift, mask, source, target, np.uint16)
            elif size == 4:
                _below(part, shift, mask, source, target, np.uint32)
            else:
                _below(part, shift, mask, source, target, np.uint64)
            shift += np.uint64(widths[digit])


@njit(nogil=True, cache=True)
def _gather(words: Any, mask: Any, own: Any, out: Any) -> None:
    """out[k, i] = words[k, mask[i]] ^ own[k, i]."""
    last = np.uint8(words.shape[1] - 1)
    for k in range(len(words)):
        for i in range(len(mask)):
            out[k, i] = words[k, mask[i] & last] ^ own[k, i]


@njit(nogil=True, cache=True)
def _turned(shown: Any, case_of: Any, mask: Any, own: Any, out: Any) -> None:
    """out[v, w, i] = shown[case_of[v ^ mask[i]], w, i] - own[v, w, i]."""
    inputs, words, count = out.shape
    for begin in range(0, count, _BLOCK):
        end = min(count, begin + _BLOCK)
        for word in range(words):
            for v in range(inputs):
                for i in range(begin, end):
                    case = case_of[(v ^ mask[i]) & (inputs - 1)]
                    out[v, word, i] = shown[case, word, i] - own[v, word, i]


@njit(nogil=True, cache=True)
def _turned_of_two(shown: Any, case_of: Any, mask: Any, own: Any, out: Any) -> None:
    """As `_turned` for two cases and up to 64 inputs, whose cases are the bits of a word."""
    inputs, words, count = out.shape
    cases = np.uint64(0)
    for v in range(inputs):
        cases |= np.uint64(case_of[v]) << np.uint64(v)
    last = np.uint8(inputs - 1)
    for begin in range(0, count, _BLOCK):
        end = min(count, begin + _BLOCK)
        for word in range(words):
            no, yes, hidden = shown[0, word, begin:end], shown[1, word, begin:end], mask[begin:end]
            for v in range(inputs):
                less, result, input_ = own[v, word, begin:end], out[v, word, begin:end], np.uint8(v)
                for i in range(end - begin):
                    chosen = (cases >> np.uint64((input_ ^ hidden[i]) & last)) & np.uint64(1)
                    result[i] = (yes[i] if chosen else no[i]) - less[i]


def below_words(
    r: torch.Tensor, widths: Sequence[int], own: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """For each digit of r the words whose bit v is [v < digit], XOR party 0's share.

    Args:
        r: integers [n]; its lowest sum(widths) bits are the digits.
        widths: bits of each digit, the lowest first, 1 to 6.
        own: party 0's share of each digit's words [n], in the narrowest integers for 2^width bits.

    Returns:
        Party 1's shares, as `own`; for zeros in `own`, the words.

    Raises:
        UsageError: on shapes or dtypes that do not fit.
    """
    count, sizes = r.numel(), [word_bytes(width) for width in widths]
    _check(own, sizes, count)
    out = [torch.empty(count, dtype=_STORAGE[size]) for size in sizes]
    held = [words.contiguous() for words in own]
    _below_all(
        r.reshape(-1).contiguous().numpy(),
        np.array(widths, dtype=np.int64),
        addresses(held),
        addresses(out),
    )
    return out


def node_words(
    mask: torch.Tensor, size: int, lowest: bool, own: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """For each mask of a node's inputs the words whose bit v is its output on input v ^ mask.

    Args:
        mask: uint8 [n], of 2 size - lowest bits.
        size: digits that the node joins.
        lowest: whether its lowest digit has no equality; it then has no word for equal.
        own: party 0's share of the words of less [n], and of equal unless `lowest`.

    Returns:
        Party 1's shares, as `own`.

    Raises:
        UsageError: on shapes or dtypes that do not fit.
    """
    count, kinds = mask.numel(), 2 - lowest
    width = word_bytes(inputs_of(size, lowest))
    _check(own, [width] * kinds, count)
    stacked = torch.stack(list(own))
    out = torch.empty((kinds, count), dtype=_STORAGE[width])
    _gather(outputs_of(size, lowest), mask.contiguous().numpy(), _bits(stacked), _bits(out))
    return list(out)


def last_table(
    shown: torch.Tensor, case_of: Sequence[int], mask: torch.Tensor, own: torch.Tensor
) -> torch.Tensor:
    """For every opened input v the payload of the case that v ^ mask stands for, less `own`.

    Args:
        shown: int64 [cases, words, n], the payload of each element in each case.
        case_of: the case of each of the 2^inputs inputs.
        mask: uint8 [n], of `inputs` bits.
        own: party 0's share of the table, integers [2^inputs, words, n]; sums wrap in its dtype.

    Returns:
        Party 1's share, as `own`.

    Raises:
        UsageError: on shapes or dtypes that do not fit.
    """
    cases, words, count = shown.shape
    inputs = len(case_of)
    if tuple(own.shape) != (inputs, words, count) or tuple(mask.shape) != (count,):
        raise UsageError(
            f"Party 0's table is {list(own.shape)} and the mask {list(mask.shape)}; "
            f"expected {[inputs, words, count]} and {[count]}."
        )
    if inputs & (inputs - 1) or not inputs or not 0 <= min(case_of) <= max(case_of) < cases:
        raise UsageError(f"{inputs} inputs stand for {cases} cases; expected 2^bits of them.")
    out = torch.from_numpy(buffer(own.numel() * own.dtype.itemsize)).view(own.dtype)
    out = out.view(own.shape)
    kernel = _turned_of_two if cases == 2 and inputs <= 64 else _turned
    kernel(
        shown.contiguous().numpy(),
        np.array(case_of, dtype=np.int64),
        mask.contiguous().numpy(),
        own.contiguous().numpy(),
        out.numpy(),
    )
    return out


@functools.cache
def outputs_of(size: int, lowest: bool) -> np.ndarray:
    """For less, and equal unless `lowest`, the words of every mask: unsigned [1 or 2, 2^inputs]."""
    inputs = inputs_of(size, lowest)
    value = np.arange(1 << inputs)
    bits = (value << 1 & ~3 | value & 1) if lowest else value
    less, equal = np.zeros_like(value), np.ones_like(value)
    for digit in range(size):
        below, same = bits >> (2 * digit) & 1, bits >> (2 * digit + 1) & 1
        less, equal = below | same & less, equal & same
    place = np.uint64(1) << value.astype(np.uint64)
    turned = value[:, None] ^ value  # [mask, v]
    rows = [(output[turned].astype(np.uint64) * place).sum(1) for output in (less, equal)]
    return np.stack(rows[: 2 - lowest]).astype(f"u{word_bytes(inputs)}")


def _bits(tensor: torch.Tensor) -> np.ndarray:
    """The same memory as unsigned words."""
    return tensor.numpy().view(f"u{tensor.dtype.itemsize}")


def _check(own: Sequence[torch.Tensor], sizes: Sequence[int], count: int) -> None:
    found = [(tuple(words.shape), words.dtype.itemsize) for words in own]
    if found != [((count,), size) for size in sizes]:
        raise UsageError(
            f"Party 0's words have shapes and bytes {found}; expected [{count}] and {list(sizes)}."
        )
