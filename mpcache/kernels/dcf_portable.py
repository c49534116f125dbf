"""What `dcf` computes, on processors without AES-NI: numpy, all keys one level at a time."""

from __future__ import annotations

import numpy as np

from mpcache.kernels.aes_hash import hash_blocks

_ONE = np.uint64(1)
_CLEAR = np.array([~_ONE, ~np.uint64(0)], dtype=np.uint64)  # all of a seed but its control bit


def _values(seeds: np.ndarray, side: np.ndarray, payloads: int) -> np.ndarray:
    """Value words [k, payloads] that go with the children on `side` [k] of seeds [k, 2]."""
    pairs = [hash_blocks(seeds, 2 + 2 * pair + side) for pair in range((payloads + 1) // 2)]
    return np.concatenate(pairs, axis=1)[:, :payloads]


def _leaves(seeds: np.ndarray, words: int) -> np.ndarray:
    """Value words [k, words] of leaf seeds [k, 2]."""
    blocks = [hash_blocks(seeds, block) for block in range((words + 1) // 2)]
    return np.concatenate(blocks, axis=1)[:, :words]


def _where(control: np.ndarray, correction: np.ndarray) -> np.ndarray:
    """correction [k, words] where control [k] is 1, else 0."""
    return correction * control[:, None]


def generate(
    r: np.ndarray, payload: np.ndarray, cut: int, levels: int, roots: np.ndarray, key: np.ndarray
) -> None:
    """Write key [n, key_words] for r [n], payload [n, payloads] and roots [2, n, 2], all uint64."""
    count, payloads = payload.shape
    words = 2 + payloads
    seeds = [roots[0], roots[1]]
    controls = [np.zeros(count, dtype=np.uint64), np.ones(count, dtype=np.uint64)]
    total = np.zeros_like(payload)
    right = np.zeros(count, dtype=np.uint64)
    for level in range(levels):
        line = key[:, level * words : (level + 1) * words]
        keep = (r >> np.uint64(levels + cut - 1 - level)) & _ONE
        lose = keep ^ _ONE
        kept = [hash_blocks(seed, keep) for seed in seeds]
        lost = [hash_blocks(seed, lose) for seed in seeds]
        correction = (lost[0] ^ lost[1]) & _CLEAR
        control_keep = (kept[0] ^ kept[1])[:, 0] & _ONE ^ _ONE
        control_lose = (lost[0] ^ lost[1])[:, 0] & _ONE
        left = np.where(keep, control_lose, control_keep)
        right |= (control_keep ^ control_lose ^ left) << np.uint64(level)
        sign = (_ONE - np.uint64(2) * controls[1])[:, None]
        lost_values = [_values(seed, lose, payloads) for seed in seeds]
        kept_values = [_values(seed, keep, payloads) for seed in seeds]
        value = sign * (lost_values[1] - lost_values[0] - total + _where(keep, payload))
        total = total + kept_values[0] - kept_values[1] + sign * value
        line[:, :2], line[:, 2:] = correction, value
        line[:, 0] |= left
        seeds = [
            (child & _CLEAR) ^ _where(control, correction)
            for child, control in zip(kept, controls, strict=True)
        ]
        controls = [
            (child[:, 0] & _ONE) ^ (control_keep & control)
            for child, control in zip(kept, controls, strict=True)
        ]
    if levels:
        key[:, levels * words] = right
    leaves = [_leaves(seed, payloads << cut) for seed in seeds]
    place = (r & np.uint64((1 << cut) - 1))[:, None]
    below = np.repeat(np.arange(1 << cut, dtype=np.uint64), payloads) < place
    wanted = below * np.tile(payload, 1 << cut) - np.tile(total, 1 << cut)
    sign = (_ONE - np.uint64(2) * controls[1])[:, None]
    key[:, levels * words + (levels > 0) :] = sign * (leaves[1] - leaves[0] + wanted)


def evaluate(
    rank: int,
    roots: np.ndarray,
    key: np.ndarray,
    points: np.ndarray,
    cut: int,
    levels: int,
    payloads: int,
    out: np.ndarray,
) -> None:
    """out [n m, payloads] of party `rank` for roots [n, 2], key [n, key_words], points [n, m]."""
    each, words = points.shape[1], 2 + payloads
    flat = points.reshape(-1)
    seeds = np.repeat(roots, each, axis=0)
    control = np.full(len(flat), rank, dtype=np.uint64)
    out[:] = 0
    for level in range(levels):
        line = np.repeat(key[:, level * words : (level + 1) * words], each, axis=0)
        right = np.repeat(key[:, levels * words], each) >> np.uint64(level)
        side = (flat >> np.uint64(levels + cut - 1 - level)) & _ONE
        out += _values(seeds, side, payloads) + _where(control, line[:, 2:])
        child = hash_blocks(seeds, side)
        seeds = (child & _CLEAR) ^ _where(control, line[:, :2] & _CLEAR)
        bit = np.where(side, right, line[:, 0]) & _ONE
        control = (child[:, 0] & _ONE) ^ (bit & control)
    leaf = key[:, levels * words + (levels > 0) :]
    value = _leaves(seeds, leaf.shape[1]) + _where(control, np.repeat(leaf, each, axis=0))
    place = (flat & np.uint64((1 << cut) - 1)).astype(np.int64)
    out += value.reshape(len(flat), -1, payloads)[np.arange(len(flat)), place]
    if rank:
        np.negative(out, out=out)
