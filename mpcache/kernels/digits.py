"""Ring products of many rows: int64 cut into signed digits of 8 bits, multiplied as int8.

With F = 0x8080..80, the bytes of (x + F) ^ F, read as int8, are digits d_i in [-128, 127] with
x = sum_i d_i 2^(8 i) mod 2^64. A weight of b bits has b / 8 digits: the bytes of w ^ G with
G = 0x..8080 below its top byte, and w = sum_j d_j 2^(8 j) + G. So mod 2^64

    x w = sum over i + j < 8 of d_i(x) d_j(w) 2^(8 (i + j)) + G x,

36 products for 64-bit weights, 26 for 32 and 15 for 16, each exact in int32 sums: |d d'| <= 2^14.
Products of equal i + j are one longer product: [X_a .. X_b] @ [W_b .. W_a] along the inputs.
The last term needs the sum of each row of x only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from mpcache.errors import UsageError
from mpcache.kernels.processor import has_amx
from mpcache.kernels.shapes import (
    WEIGHT_BYTES,
    as_rows,
    buffer,
    check_operands,
    stored_by_outputs,
)

DIGITS = 8
FLIPS = 0x8080808080808080
SLICE = 16376  # inputs summed in int32 at once: 8 * 16,376 * 2^14 < 2^31

Engine = Literal["amx", "int8"]


@dataclass(frozen=True, repr=False)
class Prepared:
    """A right operand cut into digits once, for products to come; as large as the weights.

    Attributes:
        engine: ``amx`` (tiles) or ``int8`` (planes for torch's int8 product).
        inputs, outputs: the shape of the weights.
        digits: digits of a weight: 8, 4 or 2.
        data: the digits, laid out as the engine reads them.
    """

    engine: Engine
    inputs: int
    outputs: int
    digits: int
    data: torch.Tensor

    def __repr__(self) -> str:
        shape = f"[{self.inputs}, {self.outputs}]"
        return f"Prepared({self.engine}, {shape}, {8 * self.digits} bits)"


def prepare(w: torch.Tensor, engine: Engine | None = None) -> Prepared:
    """Cut w, int64, int32 or int16 [inputs, outputs] in either layout, into digits.

    Args:
        w: the weights.
        engine: how products will be taken; by default ``amx`` where the processor has it.

    Raises:
        UsageError: on a dtype, shape or engine that cannot be.
    """
    check_operands(torch.empty((1, w.shape[0] if w.dim() else 0), dtype=torch.int64), w, dims=2)
    engine = engine or ("amx" if has_amx() else "int8")
    inputs, outputs = w.shape
    digits = WEIGHT_BYTES[w.dtype]
    if engine == "amx":
        _require_amx()
        from mpcache.kernels import amx

        by_outputs = stored_by_outputs(w)
        stored = (w.T if by_outputs else w.contiguous()).numpy()
        data = torch.from_numpy(buffer(amx.packed_bytes(inputs, outputs, digits)))
        amx.pack(stored, by_outputs, digits, weight_flips(digits), data.numpy())
        return Prepared("amx", inputs, outputs, digits, data)
    return Prepared("int8", inputs, outputs, digits, _planes(w, digits))


def multiply(x: torch.Tensor, w: Prepared) -> torch.Tensor:
    """x @ w mod 2^64.

    Args:
        x: int64 [inputs] or [rows, inputs] on the CPU.
        w: the prepared weights.

    Returns:
        int64 [outputs] or [rows, outputs].

    Raises:
        UsageError: when x is no int64 of that many inputs.
    """
    if x.dtype != torch.int64 or x.dim() not in (1, 2) or x.shape[-1] != w.inputs:
        raise UsageError(
            f"The left operand is {x.dtype} {list(x.shape)}; expected torch.int64 "
            f"[rows, {w.inputs}] for {w!r}."
        )
    rows = as_rows(x)
    out = torch.from_numpy(buffer(8 * rows.shape[0] * w.outputs)).view(torch.int64)
    out = out.view(rows.shape[0], w.outputs)
    out.copy_(rows.sum(1, keepdim=True) * weight_flips(w.digits))
    if w.engine == "amx":
        _require_amx()
        from mpcache.kernels import amx

        amx.multiply(rows.numpy(), w.data.numpy(), w.digits, FLIPS, out.numpy())
    else:
        _multiply_planes(rows, w, out)
    return out.reshape(*x.shape[:-1], w.outputs)


def _require_amx() -> None:
    if not has_amx():
        raise UsageError(
            "This processor or system has no AMX tiles; prepare the weights with engine 'int8'."
        )


def weight_flips(digits: int) -> int:
    """Bits of a weight of `digits` bytes that are turned over: the top one of each lower byte."""
    return FLIPS & ((1 << (8 * (digits - 1))) - 1)


def _planes(w: torch.Tensor, digits: int) -> torch.Tensor:
    """Digits of w [inputs, outputs] as int8 [outputs, digits * inputs], the highest digit first.

    Stored by outputs, so that a run of digits is a run of columns and int8 products, which are
    faster on a transposed right operand, read it as it lies.
    """
    inputs, outputs = w.shape
    octets = w.T.contiguous().numpy().view(np.uint8).reshape(outputs, inputs, digits)
    planes = torch.empty((outputs, digits, inputs), dtype=torch.int8)
    for digit in range(digits):
        flip = 0x80 if digit < digits - 1 else 0
        np.bitwise_xor(octets[:, :, digit], flip, out=planes.numpy().view(np.uint8)[:, -1 - digit])
    return planes.reshape(outputs, digits * inputs)


def _left_planes(rows: torch.Tensor) -> torch.Tensor:
    """Digits of x [rows, inputs] as int8 [rows, 8 * inputs], the lowest digit first."""
    count, inputs = rows.shape
    flipped = (rows.numpy().view(np.uint64) + np.uint64(FLIPS)) ^ np.uint64(FLIPS)
    octets = torch.from_numpy(flipped.view(np.int8).reshape(count, inputs, DIGITS))
    return octets.transpose(1, 2).reshape(count, DIGITS * inputs)


def _multiply_planes(rows: torch.Tensor, w: Prepared, out: torch.Tensor) -> None:
    """out += rows @ w through int8 products of joined digits."""
    if 0 in (*rows.shape, w.outputs):
        return
    left = _left_planes(rows)
    for total in range(DIGITS):
        last = min(
            total, w.digits - 1
        )  # weight digits last .. 0 meet left digits total-last .. total
        a = left[:, (total - last) * w.inputs : (total + 1) * w.inputs]
        b = w.data[:, (w.digits - 1 - last) * w.inputs :]
        for begin in range(0, a.shape[1], DIGITS * SLICE):
            end = begin + DIGITS * SLICE
            part = torch._int_mm(a[:, begin:end], b[:, begin:end].T)
            out.add_(part.to(torch.int64).bitwise_left_shift_(8 * total))
