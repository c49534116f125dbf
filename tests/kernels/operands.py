"""Operands for ring products, and the product that all others are held against."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

WEIGHTS = (torch.int64, torch.int32, torch.int16)
RING = torch.iinfo(torch.int64)


def extremes(dtype: torch.dtype) -> torch.Tensor:
    """Values whose bytes carry, borrow or sit at an end of a digit's range."""
    info = torch.iinfo(dtype)
    values = {info.min, info.max, info.min + 1, 0, 1, -1, 127, 128, -128, -129, 255, 256}
    for repeated in (0x7F, 0x80, 0x81, 0xFF):
        word = int.from_bytes(bytes([repeated]) * (info.bits // 8), "little")
        values.add(word - (1 << info.bits) if word > info.max else word)
    return torch.tensor(sorted(values), dtype=dtype)


def operand(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    """Half uniform over the whole dtype, half extremes."""
    draw = torch.Generator().manual_seed(seed)
    info = torch.iinfo(dtype)
    words = torch.randint(RING.min, RING.max, shape, generator=draw)
    uniform = (words >> (64 - info.bits)).to(dtype)
    ends = extremes(dtype)
    picked = ends[torch.randint(len(ends), shape, generator=draw)]
    return torch.where(torch.rand(shape, generator=draw) < 0.5, uniform, picked)


def reference(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """x [rows, inputs] @ w [inputs, outputs] mod 2^64 in Python's integers; slow."""
    left, right = x.tolist(), w.T.tolist()
    sums = [[sum(a * b for a, b in zip(r, c, strict=True)) for c in right] for r in left]
    wrapped = [[(s + (1 << 63)) % (1 << 64) - (1 << 63) for s in row] for row in sums]
    return torch.tensor(wrapped, dtype=torch.int64).reshape(x.shape[0], w.shape[1])


def by_outputs(w: torch.Tensor) -> torch.Tensor:
    """The same matrix, stored by outputs."""
    return w.transpose(-1, -2).contiguous().transpose(-1, -2)


dtypes = st.sampled_from(WEIGHTS)
seeds = st.integers(0, 2**31)
