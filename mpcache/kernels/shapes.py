"""What the ring products accept: shapes, dtypes, layouts."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from mpcache.errors import UsageError

WEIGHT_BYTES = {torch.int64: 8, torch.int32: 4, torch.int16: 2}
_LINE = 64  # bytes of a cache line
_MUCH = 1 << 20


def check_operands(x: torch.Tensor, w: torch.Tensor, dims: int) -> None:
    """Check x @ w: w of `dims` dimensions, x of as many (or one fewer, where `dims` is 2).

    Raises:
        UsageError: on dtypes, shapes or devices that do not fit.
    """
    if x.dtype != torch.int64:
        raise UsageError(f"The left operand is {x.dtype}; ring elements are torch.int64.")
    if w.dtype not in WEIGHT_BYTES:
        known = ", ".join(str(dtype) for dtype in WEIGHT_BYTES)
        raise UsageError(f"The right operand is {w.dtype}; expected one of {known}.")
    fits = x.dim() == dims or (dims == 2 and x.dim() == 1)
    if not fits or w.dim() != dims or x.shape[-1] != w.shape[-2] or x.shape[:-2] != w.shape[:-2]:
        expected = "[rows, inputs] @ [inputs, outputs]"
        if dims == 3:
            expected = "[batch, rows, inputs] @ [batch, inputs, outputs]"
        raise UsageError(f"Shapes {list(x.shape)} @ {list(w.shape)}; expected {expected}.")
    if not (x.is_cpu and w.is_cpu):
        raise UsageError(
            f"Operands on {x.device} and {w.device}; this product runs on the CPU. "
            "Move both there, or both to one GPU and call ring_product."
        )


def buffer(size: int) -> np.ndarray:
    """uint8 [size] with nothing in it, on a cache line's boundary.

    Where it is much it is taken from numpy, which asks for huge pages: filling a buffer of 32 MiB
    for the first time then costs a fraction of what 8,192 page faults cost.
    """
    if size < _MUCH:
        # torch keeps to that boundary; and nothing at all would have no stride of one byte
        return torch.empty(size + 1, dtype=torch.uint8).numpy()[:size]
    room = np.empty(size + _LINE, dtype=np.uint8)
    first = -room.ctypes.data % _LINE
    return room[first : first + size]


def as_rows(x: torch.Tensor) -> torch.Tensor:
    """x [inputs] or [rows, inputs] as contiguous [rows, inputs]."""
    return (x.unsqueeze(0) if x.dim() == 1 else x).contiguous()


def stored_by_outputs(w: torch.Tensor) -> bool:
    """Whether w [..., inputs, outputs] is a view of contiguous [..., outputs, inputs]."""
    return not w.is_contiguous() and w.transpose(-1, -2).is_contiguous()


def strided(w: torch.Tensor) -> tuple[torch.Tensor, tuple[int, int, int]]:
    """w [(batch,) inputs, outputs] and its byte strides, one of the last two its itemsize.

    It is copied where neither its inputs nor its outputs lie next to each other; along a dimension
    of one, everything does.
    """
    size, (inputs, outputs) = w.element_size(), w.shape[-2:]
    if 1 not in (*w.stride()[-2:], inputs, outputs):
        w = w.contiguous()
    *batch, by_inputs, by_outputs = w.stride()
    by_inputs = size * by_inputs if inputs > 1 else size
    by_outputs = size * by_outputs if outputs > 1 else size
    return w, (size * batch[0] if batch else 0, by_inputs, by_outputs)


def in_parts(part: Callable[[int, int], None], outputs: int, threads: int, step: int) -> None:
    """Call part(first, last) for `threads` ranges of outputs at once, each of whole `step`s."""
    if threads <= 1:
        part(0, outputs)
        return
    share = -(-outputs // (threads * step)) * step
    begins = range(0, outputs, share)
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(part, begins, (min(outputs, begin + share) for begin in begins)))
