"""Vectors of eight 64-bit lanes in LLVM's words, for kernels that numba's loops do not reach.

Each function here makes an intrinsic; memory is given by address. On a processor without
AVX-512 they compile as well, to several narrower instructions for each.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

LANES = 8
_WORD, _INDEX = ir.IntType(64), ir.IntType(32)
_VECTOR = ir.VectorType(_WORD, LANES)
_POINTER = _VECTOR.as_pointer()
_UNSET = ir.Constant(_VECTOR, ir.Undefined)
_SPREAD = ir.Constant(ir.VectorType(_INDEX, LANES), [0] * LANES)


def _wide(typing: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        set.add(builder.function.attributes, '"prefer-vector-width"="512"')  # none llvmlite knows
        return context.get_dummy_value()

    return types.void(), generate


# Says in a kernel that its loops shall have vectors of 512 bits where the processor has them: LLVM
# takes 256 on Intel's, whose 64-bit products then come half as fast.
wide: Any = intrinsic(_wide)


def _fetch(builder: Any, address: Any) -> None:
    """Ask for the cache line at an address, to be read and written soon."""
    shape = ir.FunctionType(ir.VoidType(), [cgutils.voidptr_t, _INDEX, _INDEX, _INDEX])
    fetch = cgutils.get_or_insert_function(builder.module, shape, "llvm.prefetch.p0")
    place = builder.inttoptr(address, cgutils.voidptr_t)
    builder.call(fetch, [place, _INDEX(1), _INDEX(3), _INDEX(1)])


def tile(rows: int) -> Any:
    """An intrinsic: sums [rows, 16] = x [depth, rows] times w [depth, 16], at addresses.

    Its arguments: depth, x, w, sums, the bytes from one row of sums to the next, and whether to
    add to what is there.
    """

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        depth, x, w, sums, stride, more = values
        before = builder.block
        for row in range(rows):
            for half in range(2):
                line = builder.add(builder.mul(stride, _WORD(row)), _WORD(64 * half))
                _fetch(builder, builder.add(sums, line))
        loop, after = builder.append_basic_block("inputs"), builder.append_basic_block("sums")
        builder.branch(loop)
        builder.position_at_end(loop)
        k = builder.phi(_WORD)
        totals = [builder.phi(_VECTOR) for _ in range(2 * rows)]
        at_w = builder.inttoptr(builder.add(w, builder.mul(k, _WORD(16 * LANES))), _POINTER)
        at_x = builder.inttoptr(builder.add(x, builder.mul(k, _WORD(8 * rows))), _WORD.as_pointer())
        right = [builder.load(builder.gep(at_w, [_WORD(half)]), align=8) for half in range(2)]
        sums_now = []
        for row in range(rows):
            value = builder.load(builder.gep(at_x, [_WORD(row)]), align=8)
            left = builder.insert_element(_UNSET, value, _INDEX(0))
            left = builder.shuffle_vector(left, _UNSET, _SPREAD)
            for half in range(2):
                product = builder.mul(left, right[half])
                sums_now.append(builder.add(totals[2 * row + half], product))
        following = builder.add(k, _WORD(1))
        for phi, start, value in [
            (k, _WORD(0), following),
            *(
                (total, ir.Constant(_VECTOR, None), now)
                for total, now in zip(totals, sums_now, strict=True)
            ),
        ]:
            phi.add_incoming(start, before)
            phi.add_incoming(value, loop)
        builder.cbranch(builder.icmp_signed("<", following, depth), loop, after)
        builder.position_at_end(after)
        places = []
        for row in range(rows):
            line = builder.inttoptr(builder.add(sums, builder.mul(stride, _WORD(row))), _POINTER)
            places += [builder.gep(line, [_WORD(half)]) for half in range(2)]
        with builder.if_else(builder.trunc(more, ir.IntType(1))) as (added, set_):
            with added:
                for place, value in zip(places, sums_now, strict=True):
                    builder.store(builder.add(builder.load(place, align=8), value), place, align=8)
            with set_:
                for place, value in zip(places, sums_now, strict=True):
                    builder.store(value, place, align=8)
        return context.get_dummy_value()

    def typed(typing: Any, depth: Any, x: Any, w: Any, sums: Any, stride: Any, more: Any) -> Any:
        return types.void(*[types.int64] * 6), generate

    return intrinsic(typed)


def _widen(builder: Any, address: Any, bits: int, count: int) -> Any:
    """`count` elements of `bits` bits at an address, as 64-bit lanes."""
    narrow = ir.VectorType(ir.IntType(bits), count)
    source = builder.inttoptr(address, narrow.as_pointer())
    value = builder.load(source, align=bits // 8)
    return value if bits == 64 else builder.sext(value, ir.VectorType(_WORD, count))


def copied(bits: int) -> Any:
    """An intrinsic: 16 elements from one address to another, as int64."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        source, target = values
        for half in range(2):
            value = _widen(builder, builder.add(source, _WORD(half * bits)), bits, LANES)
            place = builder.inttoptr(builder.add(target, _WORD(64 * half)), _POINTER)
            builder.store(value, place, align=8)
        return context.get_dummy_value()

    def typed(typing: Any, source: Any, target: Any) -> Any:
        return types.void(types.int64, types.int64), generate

    return intrinsic(typed)


def turned(bits: int) -> Any:
    """An intrinsic: 8 rows of 8 elements to 8 columns as int64; both by an address and a stride."""

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        source, stride, target, apart = values
        rows = []
        for row in range(LANES):
            line = builder.add(source, builder.mul(stride, _WORD(row)))
            rows.append(_widen(builder, line, bits, LANES))
        for step in (1, 2, 4):  # lanes whose number has this bit change places with rows that have
            low = [lane if not lane & step else LANES + lane - step for lane in range(LANES)]
            high = [lane + step if not lane & step else LANES + lane for lane in range(LANES)]
            picks = [
                ir.Constant(ir.VectorType(_INDEX, LANES), [_INDEX(lane) for lane in lanes])
                for lanes in (low, high)
            ]
            rows = [
                builder.shuffle_vector(rows[row & ~step], rows[row | step], picks[bool(row & step)])
                for row in range(LANES)
            ]
        for column, value in enumerate(rows):
            line = builder.add(target, builder.mul(apart, _WORD(column)))
            builder.store(value, builder.inttoptr(line, _POINTER), align=8)
        return context.get_dummy_value()

    def typed(typing: Any, source: Any, stride: Any, target: Any, apart: Any) -> Any:
        return types.void(*[types.int64] * 4), generate

    return intrinsic(typed)
