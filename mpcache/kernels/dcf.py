"""A distributed comparison function: two keys, and shares of payload * [point < r] without a word.

Boyle, Chandran, Gilboa, Gupta, Ishai, Kumar and Rathee, "Function Secret Sharing for Mixed-Mode
and Fixed-Point Secure Computation", EUROCRYPT 2021, figure 1, over Z/2^64, with seeds expanded by
`aes_hash`, all payload words on one tree, and the tree cut short as in Boyle, Gilboa and Ishai,
"Function Secret Sharing: Improvements and Extensions", CCS 2016, section 3.2.1: a leaf stands for
2^`cut` neighbouring points.

A key has a secret root seed of each party and these words that both parties hold:

- for each level, two words of seed correction, whose lowest bit corrects the control bit of the
  left child, and `payloads` words of value correction;
- one word (none where there is no level) with the control corrections of the right children, the
  root's at bit 0;
- 2^`cut` times `payloads` words of leaf correction.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numba import njit

from mpcache.errors import UsageError
from mpcache.kernels import dcf_portable
from mpcache.kernels.aes_hash import hash_words
from mpcache.kernels.processor import has_aes

SEED_WORDS = 2
_hash: Any = hash_words  # numba gives it its first argument
_LANES = 32  # points whose levels are taken in turns, so that their rounds of AES overlap


def _cut(bits: int, payloads: int) -> int:
    """Levels left out at the leaves: as many as make the key no longer."""
    return min(bits, 2 if payloads <= 2 else 1)


def key_words(bits: int, payloads: int) -> int:
    """Words of one comparison's key that both parties hold, the root seeds not counted.

    Raises:
        UsageError: unless 1 <= bits <= 64 and payloads >= 1.
    """
    if not 1 <= bits <= 64 or payloads < 1:
        raise UsageError(
            f"A comparison of {bits} bits with {payloads} payload words was asked for; "
            "expected 1 to 64 bits and at least one word."
        )
    cut = _cut(bits, payloads)
    levels = bits - cut
    return levels * (2 + payloads) + (levels > 0) + (payloads << cut)


@njit(nogil=True, cache=True)
def _generate(r: Any, payload: Any, cut: int, levels: int, roots: Any, key: Any) -> None:
    """Write key [n, key_words] for r [n], payload [n, payloads] and roots [2, n, 2], all uint64."""
    count, payloads = payload.shape
    zero, one, two = np.uint64(0), np.uint64(1), np.uint64(2)
    total = np.empty(payloads, dtype=np.uint64)
    words = 2 + payloads
    for i in range(count):
        line, right = key[i], zero
        low0, high0, low1, high1 = roots[0, i, 0], roots[0, i, 1], roots[1, i, 0], roots[1, i, 1]
        control0, control1 = zero, one
        total[:] = zero
        for level in range(levels):
            at = level * words
            keep = (r[i] >> np.uint64(levels + cut - 1 - level)) & one
            lose = keep ^ one
            a0, b0 = _hash(low0, high0, lose)
            a1, b1 = _hash(low1, high1, lose)
            seed_low, seed_high, control_lose = (a0 ^ a1) & ~one, b0 ^ b1, (a0 ^ a1) & one
            a0, b0 = _hash(low0, high0, keep)
            a1, b1 = _hash(low1, high1, keep)
            control_keep = (a0 ^ a1 ^ one) & one
            left = control_keep ^ ((control_keep ^ control_lose) & keep)
            right |= (control_keep ^ control_lose ^ left) << np.uint64(level)
            line[at], line[at + 1] = seed_low | left, seed_high
            sign = one - two * control1
            for pair in range((payloads + 1) // 2):
                number = two + two * np.uint64(pair)
                c0, d0 = _hash(low0, high0, number + lose)
                c1, d1 = _hash(low1, high1, number + lose)
                e0, f0 = _hash(low0, high0, number + keep)
                e1, f1 = _hash(low1, high1, number + keep)
                p = 2 * pair
                word = sign * (c1 - c0 - total[p] + keep * payload[i, p])
                line[at + 2 + p] = word
                total[p] += e0 - e1 + sign * word
                if p + 1 < payloads:
                    word = sign * (d1 - d0 - total[p + 1] + keep * payload[i, p + 1])
                    line[at + 3 + p] = word
                    total[p + 1] += f0 - f1 + sign * word
            low0 = (a0 & ~one) ^ (seed_low & (zero - control0))
            low1 = (a1 & ~one) ^ (seed_low & (zero - control1))
            high0 = b0 ^ (seed_high & (zero - control0))
            high1 = b1 ^ (seed_high & (zero - control1))
            control0 = (a0 & one) ^ (control_keep & control0)
            control1 = (a1 & one) ^ (control_keep & control1)
        at = levels * words
        if levels:
            line[at] = right
            at += 1
        place, sign = r[i] & ((one << np.uint64(cut)) - one), one - two * control1
        leaves = payloads << cut
        for block in range((leaves + 1) // 2):
            a0, b0 = _hash(low0, high0, np.uint64(block))
            a1, b1 = _hash(low1, high1, np.uint64(block))
            for half in range(min(2, leaves - 2 * block)):
                w = 2 * block + half
                p = w % payloads
                below = np.uint64(np.uint64(w // payloads) < place)
                step = (b1 - b0) if half else (a1 - a0)
                line[at + w] = sign * (step - total[p] + below * payload[i, p])


@njit(nogil=True, cache=True)
def _evaluate(
    rank: int, roots: Any, key: Any, points: Any, cut: int, levels: int, payloads: int, out: Any
) -> None:
    """out [n m, payloads] of party `rank` for roots [n, 2], key [n, key_words], points [n, m]."""
    each = points.shape[1]
    flat = points.reshape(-1)
    zero, one, two = np.uint64(0), np.uint64(1), np.uint64(2)
    words, pairs = 2 + payloads, (payloads + 1) // 2
    state = np.empty((_LANES, 3), dtype=np.uint64)
    rows = np.empty(_LANES, dtype=np.int64)
    rights = levels * words
    leaf = rights + (levels > 0)
    for begin in range(0, len(flat), _LANES):
        here = min(_LANES, len(flat) - begin)
        for lane in range(here):
            i = (begin + lane) // each
            rows[lane] = i
            state[lane, 0], state[lane, 1] = roots[i, 0], roots[i, 1]
            state[lane, 2] = np.uint64(rank)
            out[begin + lane] = zero
        for level in range(levels):
            at, shift = level * words, np.uint64(levels + cut - 1 - level)
            for lane in range(here):
                line, sums = key[rows[lane]], out[begin + lane]
                low, high, control = state[lane, 0], state[lane, 1], state[lane, 2]
                side, taken = (flat[begin + lane] >> shift) & one, zero - control
                a, b = _hash(low, high, side)
                left, right = line[at], line[rights] >> np.uint64(level)
                bit = (left ^ ((left ^ right) & (zero - side))) & one
                state[lane, 0] = (a & ~one) ^ (left & ~one & taken)
                state[lane, 1] = b ^ (line[at + 1] & taken)
                state[lane, 2] = (a & one) ^ (bit & control)
                for pair in range(pairs):
                    c, d = _hash(low, high, two + two * np.uint64(pair) + side)
                    p = 2 * pair
                    sums[p] += c + (line[at + 2 + p] & taken)
                    if p + 1 < payloads:
                        sums[p + 1] += d + (line[at + 3 + p] & taken)
        for lane in range(here):
            line, sums = key[rows[lane]], out[begin + lane]
            low, high, taken = state[lane, 0], state[lane, 1], zero - state[lane, 2]
            place = int(flat[begin + lane] & ((one << np.uint64(cut)) - one))
            first = place * payloads
            for block in range(first // 2, (first + payloads + 1) // 2):
                a, b = _hash(low, high, np.uint64(block))
                for half in range(2):
                    p = 2 * block + half - first
                    if 0 <= p < payloads:
                        sums[p] += (b if half else a) + (line[leaf + first + p] & taken)
            if rank:
                for p in range(payloads):
                    sums[p] = zero - sums[p]


def _words(tensor: torch.Tensor, shape: tuple[int, ...], what: str) -> np.ndarray:
    """`tensor` as contiguous uint64 on the CPU.

    Raises:
        UsageError: when it is not int64 of `shape` on the CPU.
    """
    if tensor.dtype != torch.int64 or tuple(tensor.shape) != shape or tensor.device.type != "cpu":
        raise UsageError(
            f"{what} are {tensor.dtype} {list(tensor.shape)} on {tensor.device}; "
            f"expected torch.int64 {list(shape)} on the CPU."
        )
    return tensor.contiguous().numpy().view(np.uint64)


def generate(
    r: torch.Tensor,
    payload: torch.Tensor,
    bits: int,
    seeds0: torch.Tensor,
    seeds1: torch.Tensor,
) -> torch.Tensor:
    """The words that both parties hold of keys for payload[i] * [point < r[i]].

    Args:
        r: int64 [n], taken mod 2^bits and compared without sign.
        payload: int64 [n, payloads], elements of Z/2^64.
        bits: 1 to 64.
        seeds0: fresh uniform int64 [n, 2], the root seeds that only party 0 and the dealer know.
        seeds1: the same for party 1.

    Returns:
        int64 [n, key_words(bits, payloads)]; pseudo-random to either party.

    Raises:
        UsageError: on bits, dtypes, shapes or devices that do not fit.
    """
    count, payloads = len(r), payload.shape[-1]
    width, cut = key_words(bits, payloads), _cut(bits, payloads)
    low = _words(r, (count,), "Compared numbers")
    values = _words(payload, (count, payloads), "Payloads")
    roots = np.stack([_words(s, (count, SEED_WORDS), "Root seeds") for s in (seeds0, seeds1)])
    key = np.empty((count, width), dtype=np.uint64)
    kernel: Callable[..., None] = _generate if has_aes() else dcf_portable.generate
    kernel(low, values, cut, bits - cut, roots, key)
    return torch.from_numpy(key.view(np.int64))


def evaluate(
    rank: int,
    seeds: torch.Tensor,
    key: torch.Tensor,
    points: torch.Tensor,
    bits: int,
    payloads: int,
) -> torch.Tensor:
    """Shares s with s_0 + s_1 = payload[i] mod 2^64 where points[i, j] < r[i], else 0.

    Args:
        rank: 0 or 1, which party this is.
        seeds: int64 [n, 2], this party's root seeds.
        key: int64 [n, key_words(bits, payloads)] from `generate`.
        points: int64 [n, m], public; taken mod 2^bits and compared without sign.
        bits: 1 to 64.
        payloads: words of a payload.

    Returns:
        int64 [n, m, payloads].

    Raises:
        UsageError: on a rank, bits, dtypes, shapes or devices that do not fit.
    """
    if rank not in (0, 1):
        raise UsageError(f"Rank {rank} evaluates a key; expected 0 or 1.")
    width, cut = key_words(bits, payloads), _cut(bits, payloads)
    count = len(key)
    public = _words(points, (count, points.shape[-1]), "Points")
    roots = _words(seeds, (count, SEED_WORDS), "Root seeds")
    words = _words(key, (count, width), "Keys")
    out = np.empty((public.size, payloads), dtype=np.uint64)
    kernel: Callable[..., None] = _evaluate if has_aes() else dcf_portable.evaluate
    kernel(rank, roots, words, public, cut, bits - cut, payloads, out)
    return torch.from_numpy(out.view(np.int64)).view(*points.shape, payloads)
