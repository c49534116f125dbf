"""Run the Triton ring product against torch's int64; says ``exact`` at the end.

A program of its own, since Triton reads ``TRITON_INTERPRET`` when it is first imported.

    python -m tests.kernels.triton_cases cpu|cuda
"""

from __future__ import annotations

import sys

import torch

from mpcache.kernels.ring import ring_product
from mpcache.kernels.triton_ring import triton_product
from tests.kernels.operands import WEIGHTS, by_outputs, extremes, operand

SHAPES = [(1, 63, 500), (63, 100, 70), (20, 130, 63), (16, 64, 64), (3, 1, 1)]
POISON = 0x5A5A5A5A5A5A5A5A


def check(x: torch.Tensor, w: torch.Tensor, device: str) -> None:
    """One product into a poisoned buffer with guards on either side."""
    expected = x @ w.to(torch.int64)
    guarded = torch.full((expected.numel() + 32,), POISON, device=device)
    out = guarded[16 : 16 + expected.numel()].view(expected.shape)
    triton_product(x.to(device), w.to(device), out)
    assert torch.equal(out.cpu(), expected), (x.shape, w.shape, w.dtype)
    assert (guarded[:16] == POISON).all() and (guarded[-16:] == POISON).all()


def main(device: str) -> None:
    """Odd shapes, every dtype, both layouts, batches, extreme values."""
    for dtype in WEIGHTS:
        for rows, inputs, outputs in SHAPES:
            x, w = operand((rows, inputs), torch.int64, 1), operand((inputs, outputs), dtype, 2)
            check(x, w, device)
        check(x, by_outputs(w), device)
        check(operand((2, 3, 5, 63), torch.int64, 3), operand((2, 3, 63, 20), dtype, 4), device)
        check(extremes(torch.int64).unsqueeze(1), extremes(dtype).unsqueeze(0), device)
    one = operand((63,), torch.int64, 5)
    product = ring_product(one.to(device), w[:1].expand(63, -1).to(device), engine="triton")
    assert torch.equal(product.cpu(), one @ w[:1].expand(63, -1).to(torch.int64))
    print("exact")


if __name__ == "__main__":
    main(sys.argv[1])
