"""The tile instructions of AMX (Intel SDM volume 1, chapter 18) for numba kernels.

Each name below is one instruction on fixed tile registers. Tiles 0 to 3 hold int32 sums
[16, 16]; tiles 4 and 5 hold left operands [16 rows, 64 inputs] of int8; tiles 6 and 7 hold right
operands [16 groups of 4 inputs, 16 outputs, 4] of int8. `configure` comes first in a kernel,
`release` last. Call `processor.has_amx` before compiling a kernel that uses them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_BYTE = ir.IntType(8)
_POINTER = ir.PointerType(_BYTE)

TILE_BYTES = 1024
TILE_ROWS = 16
TILE_INPUTS = 64


def configuration() -> np.ndarray:
    """The 64 bytes that `configure` reads: palette 1, eight tiles of 16 rows of 64 bytes."""
    layout = np.zeros(64, dtype=np.uint8)
    layout[0] = 1
    layout[16:32].view(np.uint16)[:] = 64
    layout[48:56] = 16
    return layout


def _instruction(name: str, tiles: tuple[int, ...], arguments: tuple[str, ...]) -> Any:
    """A numba function of `arguments` (``address`` or ``stride``, in bytes) for one instruction."""
    numba_types = tuple(types.int64 for _ in arguments)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        operands = [_BYTE(tile) for tile in tiles]
        for kind, value in zip(arguments, values, strict=True):
            operands.append(builder.inttoptr(value, _POINTER) if kind == "address" else value)
        shape = ir.FunctionType(ir.VoidType(), [operand.type for operand in operands])
        builder.call(cgutils.get_or_insert_function(builder.module, shape, name), operands)
        return context.get_dummy_value()

    if len(arguments) == 2:

        @intrinsic
        def two(typing: Any, address: Any, stride: Any) -> Any:
            return types.void(*numba_types), generate

        return two
    if len(arguments) == 1:

        @intrinsic
        def one(typing: Any, address: Any) -> Any:
            return types.void(*numba_types), generate

        return one

    @intrinsic
    def none(typing: Any) -> Any:
        return types.void(), generate

    return none


_MEMORY = ("address", "stride")

configure = _instruction("llvm.x86.ldtilecfg", (), ("address",))
release = _instruction("llvm.x86.tilerelease", (), ())

zero0, zero1, zero2, zero3 = (_instruction("llvm.x86.tilezero", (t,), ()) for t in range(4))
load4, load5, load6, load7 = (
    _instruction("llvm.x86.tileloadd64", (t,), _MEMORY) for t in (4, 5, 6, 7)
)
store0, store1, store2, store3 = (
    _instruction("llvm.x86.tilestored64", (t,), _MEMORY) for t in range(4)
)
# sums 0..3 += left (4 or 5) times right (6 or 7)
dot0, dot1, dot2, dot3 = (
    _instruction("llvm.x86.tdpbssd", tiles, ())
    for tiles in ((0, 4, 6), (1, 4, 7), (2, 5, 6), (3, 5, 7))
)
