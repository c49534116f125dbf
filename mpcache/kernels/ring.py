"""The front door of ring products: x @ w mod 2^64 by the fastest exact way for its shape.

`choose` holds the crossovers that ``python benchmarks/kernels.py --crossover`` prints; every way
gives the same bits, so a wrong choice costs time only.
"""

from __future__ import annotations

from typing import Literal

import torch

from mpcache.errors import UsageError
from mpcache.kernels import digits, matvec, panels
from mpcache.kernels.digits import Prepared, prepare
from mpcache.kernels.processor import has_amx, has_int8_dot, has_wide_product
from mpcache.kernels.shapes import check_operands

Engine = Literal["matvec", "torch", "panels", "int8", "amx", "triton"]
ENGINES: tuple[str, ...] = ("matvec", "torch", "panels", "int8", "amx", "triton")

# Rows from which a way is faster than the one before it; cutting the weights into digits is
# counted, since weights that stay are given as `Prepared`.
_AMX_ROWS = {torch.int64: 64, torch.int32: 32, torch.int16: 8}
_PANELS_ROWS = {torch.int64: 12, torch.int32: 12, torch.int16: 12}
_INT8_ROWS = {torch.int64: 512, torch.int32: 128, torch.int16: 64}
_TORCH_ROWS = {torch.int64: 16, torch.int32: 128, torch.int16: 128}
_SMALL = 1 << 15  # multiply-adds below which calls cost more than sums

__all__ = ["ENGINES", "Engine", "Prepared", "bmm", "choose", "matmul", "prepare", "ring_product"]


def choose(rows: int, inputs: int, outputs: int, dtype: torch.dtype) -> Engine:
    """The fastest way on this processor for x [rows, inputs] @ w [inputs, outputs] of `dtype`."""
    if rows * inputs * outputs < _SMALL:
        return "matvec"
    if has_amx() and rows >= _AMX_ROWS[dtype]:
        return "amx"
    if has_wide_product():
        return "panels" if rows >= _PANELS_ROWS[dtype] else "matvec"
    if not has_amx() and has_int8_dot() and rows >= _INT8_ROWS[dtype]:
        return "int8"
    return "torch" if rows >= _TORCH_ROWS[dtype] else "matvec"


def matmul(
    x: torch.Tensor, w: torch.Tensor | Prepared, *, engine: Engine | None = None, threads: int = 1
) -> torch.Tensor:
    """x @ w mod 2^64 on the CPU.

    Args:
        x: int64 [inputs] or [rows, inputs].
        w: int64, int32 or int16 [inputs, outputs] in either layout, or `prepare` of it.
        engine: a way to force; by default `choose` says.
        threads: for ``matvec`` and ``panels`` only.

    Returns:
        int64 [outputs] or [rows, outputs].

    Raises:
        UsageError: on dtypes, shapes, devices or an engine that do not fit.
    """
    if isinstance(w, Prepared):
        if engine not in (None, w.engine):
            raise UsageError(f"The weights are prepared for {w.engine}, not for {engine}.")
        return digits.multiply(x, w)
    check_operands(x, w, dims=2)
    if x.dim() == 1:
        return matmul(x.unsqueeze(0), w, engine=engine, threads=threads)[0]
    engine = engine or choose(x.shape[0], w.shape[0], w.shape[1], w.dtype)
    if engine == "matvec":
        return matvec.multiply(x, w, threads)
    if engine == "panels":
        return panels.multiply(x, w, threads)
    if engine == "torch":
        return x @ w.to(torch.int64)
    if engine in ("amx", "int8"):
        return digits.multiply(x, prepare(w, engine))
    raise UsageError(f"No CPU engine is called {engine!r}; expected one of {ENGINES[:-1]}.")


def bmm(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """x [batch, rows, inputs] @ w [batch, inputs, outputs] mod 2^64 on the CPU, in one call.

    A part of a longer cache and transposed views are read as they are stored.

    Raises:
        UsageError: on dtypes, shapes or devices that do not fit.
    """
    check_operands(x, w, dims=3)
    if choose(x.shape[1], x.shape[2], w.shape[2], w.dtype) == "matvec":
        return matvec.multiply(x, w)
    if has_wide_product():
        return panels.multiply(x, w)
    return torch.matmul(x, w.to(torch.int64))


def ring_product(
    x: torch.Tensor, w: torch.Tensor | Prepared, *, engine: Engine | None = None, threads: int = 1
) -> torch.Tensor:
    """x @ w mod 2^64 for any leading dimensions, on the CPU or a GPU.

    Args:
        x: int64 [inputs] or [..., rows, inputs].
        w: int64, int32 or int16 [inputs, outputs] or [..., inputs, outputs] with the leading
            dimensions of x; or `Prepared` weights.
        engine: a way to force; by default the shape and the device decide.
        threads: for ``matvec`` and ``panels`` only.

    Returns:
        int64 [outputs] or [..., rows, outputs].

    Raises:
        UsageError: on dtypes, shapes, devices or an engine that do not fit.
    """
    if engine is not None and engine not in ENGINES:
        raise UsageError(f"No engine is called {engine!r}; expected one of {ENGINES}.")
    if isinstance(w, Prepared):
        flat = matmul(x.reshape(-1, x.shape[-1]), w, engine=engine)
        return flat.reshape(*x.shape[:-1], w.outputs)
    if engine == "triton" or x.device.type == "cuda":
        from mpcache.kernels.triton_ring import triton_product

        return triton_product(x, w)
    if w.dim() == 2:
        if x.dim() <= 2:
            return matmul(x, w, engine=engine, threads=threads)
        flat = matmul(x.reshape(-1, x.shape[-1]), w, engine=engine, threads=threads)
        return flat.reshape(*x.shape[:-1], w.shape[1])
    if w.dim() < 2 or x.dim() != w.dim() or x.shape[:-2] != w.shape[:-2]:
        raise UsageError(
            f"Shapes {list(x.shape)} @ {list(w.shape)}; expected equal leading dimensions."
        )
    out = bmm(_one_batch(x), _one_batch(w))
    return out.reshape(*x.shape[:-1], w.shape[-1])


def _one_batch(tensor: torch.Tensor) -> torch.Tensor:
    """[..., a, b] as [batch, a, b] without a copy where the strides allow; transposed stays so."""
    if tensor.dim() > 3 and tensor.transpose(-1, -2).is_contiguous():
        return tensor.transpose(-1, -2).flatten(0, -3).transpose(-1, -2)
    return tensor.flatten(0, -3) if tensor.dim() > 3 else tensor
