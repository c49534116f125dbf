"""Memory by its address, for compiled kernels that take many tables of different widths at once.

Tables of one call may have words of 1, 2, 4 or 8 bytes each. A kernel that took them as arrays
would be compiled anew for every combination; one that takes their addresses is compiled once.
Who calls such a kernel keeps the tensors until it returns.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_WORD, _OCTET = ir.IntType(64), ir.IntType(8)


def _pointer(typing: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.inttoptr(values[0], cgutils.voidptr_t)

    return types.voidptr(types.int64), generate


def _load(typing: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return builder.load(builder.inttoptr(values[0], _WORD.as_pointer()), align=1)

    return types.uint64(types.int64), generate


def _store(typing: Any, address: Any, word: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        builder.store(values[1], builder.inttoptr(values[0], _WORD.as_pointer()), align=1)
        return context.get_dummy_value()

    return types.void(types.int64, types.uint64), generate


def _bits_at(typing: Any, word: Any, at: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        value, place = values
        if value.type.width == _OCTET.width:
            return builder.lshr(value, place)
        return builder.trunc(builder.lshr(value, builder.zext(place, value.type)), _OCTET)

    return types.uint8(word, types.uint8), generate


bits_at: Any = intrinsic(_bits_at)  # 8 bits of a word from bit `at` on, at the word's own width
pointer: Any = intrinsic(_pointer)  # of an address, for numba.carray
load_word: Any = intrinsic(_load)  # 8 bytes at any address
store_word: Any = intrinsic(_store)  # 8 bytes to any address


def addresses(tensors: Sequence[torch.Tensor | None]) -> np.ndarray:
    """Where the data of contiguous CPU tensors begin, int64; 0 for None."""
    found = [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
    return np.array(found, dtype=np.int64)
