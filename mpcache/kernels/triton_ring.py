"""Ring products on a GPU: int8 digits on tensor cores, joined in the kernel.

The digits are those of `digits`; here both operands are cut inside the kernel, from registers, so
that nothing but the operands and the result crosses memory. An int32 sum holds at most
`_INPUTS` inputs of 8 digit products each before it joins the int64 sum: 8 * 64 * 2^14 < 2^31.
"""

from __future__ import annotations

from typing import Any

import torch

from mpcache.errors import UsageError
from mpcache.kernels.digits import FLIPS, weight_flips
from mpcache.kernels.shapes import WEIGHT_BYTES

_INPUTS = 64
_OUTPUTS = 64

try:
    import triton
    import triton.language as tl
except ImportError:  # only the GPU way is then closed
    triton = None

if triton is not None:

    @triton.jit
    def _ring_kernel(
        x_at: Any,
        w_at: Any,
        out_at: Any,
        rows: Any,
        inputs: Any,
        outputs: Any,
        x_batch: Any,
        x_row: Any,
        x_input: Any,
        w_batch: Any,
        w_input: Any,
        w_output: Any,
        DIGITS: tl.constexpr,
        X_FLIPS: tl.constexpr,
        W_FLIPS: tl.constexpr,
        ROWS: tl.constexpr,
        INPUTS: tl.constexpr,
        OUTPUTS: tl.constexpr,
    ) -> None:
        """One [ROWS, OUTPUTS] block of out [batch, rows, outputs] = x @ w."""
        batch = tl.program_id(2).to(tl.int64)
        r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        n = tl.program_id(1) * OUTPUTS + tl.arange(0, OUTPUTS)
        x_flips = tl.full((1, 1), X_FLIPS, tl.int64)
        w_flips = tl.full((1, 1), W_FLIPS, tl.int64)
        x_line = x_at + batch * x_batch + r[:, None].to(tl.int64) * x_row
        w_line = w_at + batch * w_batch + n[None, :].to(tl.int64) * w_output
        total = tl.zeros((ROWS, OUTPUTS), tl.int64)
        row_sums = tl.zeros((ROWS,), tl.int64)
        for begin in range(0, inputs, INPUTS):
            k = begin + tl.arange(0, INPUTS)
            x_here = (r[:, None] < rows) & (k[None, :] < inputs)
            w_here = (k[:, None] < inputs) & (n[None, :] < outputs)
            x = tl.load(x_line + k[None, :].to(tl.int64) * x_input, mask=x_here, other=0)
            w = tl.load(w_line + k[:, None].to(tl.int64) * w_input, mask=w_here, other=0)
            row_sums += tl.sum(x, axis=1)
            x = (x + x_flips) ^ x_flips
            w = w.to(tl.int64) ^ w_flips
            for s in tl.static_range(8):
                part = tl.zeros((ROWS, OUTPUTS), tl.int32)
                for j in tl.static_range(DIGITS):
                    if j <= s:
                        left = (x >> (8 * (s - j))).to(tl.int8)
                        right = (w >> (8 * j)).to(tl.int8)
                        part = tl.dot(left, right, part, out_dtype=tl.int32)
                total += part.to(tl.int64) << (8 * s)
        total += row_sums[:, None] * w_flips
        here = (r[:, None] < rows) & (n[None, :] < outputs)
        place = (batch * rows + r[:, None]) * outputs + n[None, :]
        tl.store(out_at + place, total, mask=here)


def triton_product(
    x: torch.Tensor, w: torch.Tensor, out: torch.Tensor | None = None
) -> torch.Tensor:
    """x @ w mod 2^64 on one GPU (or on the CPU under ``TRITON_INTERPRET=1``).

    Args:
        x: int64 [inputs] or [..., rows, inputs], any strides.
        w: int64, int32 or int16 [inputs, outputs] or [..., inputs, outputs] with the leading
            dimensions of x, any strides.
        out: where to write, int64, contiguous, of the result's shape; by default new.

    Returns:
        int64 [outputs] or [..., rows, outputs].

    Raises:
        UsageError: without Triton, or on dtypes, shapes or devices that do not fit.
    """
    if triton is None:
        raise UsageError(
            "Ring products on a GPU need Triton, which is not installed; "
            "install mpcache[cuda], or keep the tensors on the CPU."
        )
    if x.dtype != torch.int64 or w.dtype not in WEIGHT_BYTES or x.device != w.device:
        raise UsageError(
            f"Operands {x.dtype} on {x.device} and {w.dtype} on {w.device}; expected torch.int64 "
            "and torch.int64, int32 or int16 on one device."
        )
    lead = w.shape[:-2]
    if w.dim() < 2 or x.shape[-1:] != w.shape[-2:-1] or (lead and x.shape[:-2] != lead):
        raise UsageError(
            f"Shapes {list(x.shape)} @ {list(w.shape)}; expected [..., rows, inputs] @ "
            "[..., inputs, outputs] with equal leading dimensions, or one matrix on the right."
        )
    shape = (*x.shape[:-1], w.shape[-1])
    if out is None:
        out = torch.empty(shape, dtype=torch.int64, device=x.device)
    elif out.shape != shape or out.dtype != torch.int64 or not out.is_contiguous():
        raise UsageError(f"The result needs a contiguous int64 tensor of {list(shape)}.")
    w3 = w.reshape(-1, *w.shape[-2:])
    x3 = x.reshape(w3.shape[0], -1, x.shape[-1])
    batch, rows, inputs = x3.shape
    outputs, digits = w.shape[-1], WEIGHT_BYTES[w.dtype]
    if out.numel():
        block = 16 if rows <= 16 else 64
        grid = (triton.cdiv(rows, block), triton.cdiv(outputs, _OUTPUTS), batch)
        _ring_kernel[grid](
            x3, w3, out, rows, inputs, outputs, *x3.stride(), *w3.stride(), DIGITS=digits,
            X_FLIPS=FLIPS - (1 << 64), W_FLIPS=weight_flips(digits), ROWS=block, INPUTS=_INPUTS,
            OUTPUTS=_OUTPUTS,
        )  # fmt: skip
    return out
