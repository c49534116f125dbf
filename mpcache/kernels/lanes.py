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


def _broadcast(builder: Any, value: Any) -> Any:
    """One value in all lanes."""
    return builder.shuffle_vector(builder.insert_element(_UNSET, value, _INDEX(0)), _UNSET, _SPREAD)


class _Loop:
    """A loop that numba does not see: `k` counts, `totals` are carried from turn to turn."""

    def __init__(self, builder: Any, count: Any, totals: int) -> None:
        self.builder, self.count, self.before = builder, count, builder.block
        self.body = builder.append_basic_block("turn")
        self.after = builder.append_basic_block("after")
        builder.branch(self.body)
        builder.position_at_end(self.body)
        self.k = builder.phi(_WORD)
        self.totals = [builder.phi(_VECTOR) for _ in range(totals)]

    def end(self, sums: list[Any]) -> None:
        """Close it; `sums` are the totals after a turn. It takes one turn at least."""
        builder, following = self.builder, self.builder.add(self.k, _WORD(1))
        zero = ir.Constant(_VECTOR, None)
        starts = [(self.k, _WORD(0), following)]
        starts += [(total, zero, now) for total, now in zip(self.totals, sums, strict=True)]
        for phi, start, value in starts:
            phi.add_incoming(start, self.before)
            phi.add_incoming(value, self.body)
        more = builder.icmp_signed("<", following, self.count)
        builder.cbranch(more, self.body, self.after)
        builder.position_at_end(self.after)


def _line(builder: Any, start: Any, stride: Any, number: Any) -> Any:
    """The address `number` strides after `start`."""
    return builder.add(start, builder.mul(stride, number))


def tile(rows: int) -> Any:
    """An intrinsic: sums [rows, 16] = x [depth, rows] times w [depth, 16], at addresses.

    Its arguments: depth, x, w, sums, the bytes from one row of sums to the next, and whether to
    add to what is there.
    """

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        depth, x, w, sums, stride, more = values
        for row in range(rows):
            for half in range(2):
                line = _line(builder, sums, stride, _WORD(row))
                _fetch(builder, builder.add(line, _WORD(64 * half)))
        loop = _Loop(builder, depth, 2 * rows)
        k, totals = loop.k, loop.totals
        at_w = builder.inttoptr(builder.add(w, builder.mul(k, _WORD(16 * LANES))), _POINTER)
        at_x = builder.inttoptr(builder.add(x, builder.mul(k, _WORD(8 * rows))), _WORD.as_pointer())
        right = [builder.load(builder.gep(at_w, [_WORD(half)]), align=8) for half in range(2)]
        sums_now = []
        for row in range(rows):
            left = _broadcast(builder, builder.load(builder.gep(at_x, [_WORD(row)]), align=8))
            for half in range(2):
                product = builder.mul(left, right[half])
                sums_now.append(builder.add(totals[2 * row + half], product))
        loop.end(sums_now)
        places = []
        for row in range(rows):
            line = builder.inttoptr(_line(builder, sums, stride, _WORD(row)), _POINTER)
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


NARROW = 8 * LANES  # columns of `columns` and `dots`: eight vectors


def _vectors(builder: Any, address: Any) -> list[Any]:
    """Eight vectors that lie next to each other."""
    place = builder.inttoptr(address, _POINTER)
    return [builder.load(builder.gep(place, [_WORD(part)]), align=8) for part in range(8)]


def columns(rows: int) -> Any:
    """An intrinsic: sums [rows, 64] += x [rows, inputs] times w [inputs, 64], at addresses.

    w is read in the order in which it lies, and the sums stay in registers meanwhile. Its
    arguments: inputs, x, w, sums, and the bytes from one row to the next of each of the three.
    """

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        inputs, x, w, sums, x_stride, w_stride, stride = values
        loop = _Loop(builder, inputs, 8 * rows)
        right = _vectors(builder, _line(builder, w, w_stride, loop.k))
        now = []
        for row in range(rows):
            at = _line(builder, _line(builder, x, x_stride, _WORD(row)), _WORD(8), loop.k)
            value = builder.load(builder.inttoptr(at, _WORD.as_pointer()), align=8)
            left = _broadcast(builder, value)
            for part in range(8):
                product = builder.mul(left, right[part])
                now.append(builder.add(loop.totals[8 * row + part], product))
        loop.end(now)
        for row in range(rows):
            line = builder.inttoptr(_line(builder, sums, stride, _WORD(row)), _POINTER)
            for part in range(8):
                place = builder.gep(line, [_WORD(part)])
                total = builder.add(builder.load(place, align=8), now[8 * row + part])
                builder.store(total, place, align=8)
        return context.get_dummy_value()

    return _narrow(generate)


def dots(rows: int) -> Any:
    """An intrinsic: sums [rows, count] += x [rows, 64] times w [count, 64] transposed.

    w is read in the order in which it lies, and x stays in registers meanwhile. Its arguments:
    count, x, w, sums, and the bytes from one row to the next of each of the three.
    """

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        count, x, w, sums, x_stride, w_stride, stride = values
        left = [_vectors(builder, _line(builder, x, x_stride, _WORD(row))) for row in range(rows)]
        shape = ir.FunctionType(_WORD, [_VECTOR])
        name = f"llvm.vector.reduce.add.v{LANES}i64"
        added = cgutils.get_or_insert_function(builder.module, shape, name)
        loop = _Loop(builder, count, 0)
        right = _vectors(builder, _line(builder, w, w_stride, loop.k))
        for row in range(rows):
            products = [builder.mul(a, b) for a, b in zip(left[row], right, strict=True)]
            while len(products) > 1:
                products = [builder.add(*products[i : i + 2]) for i in range(0, len(products), 2)]
            at = _line(builder, _line(builder, sums, stride, _WORD(row)), _WORD(8), loop.k)
            place = builder.inttoptr(at, _WORD.as_pointer())
            total = builder.add(builder.load(place, align=8), builder.call(added, products))
            builder.store(total, place, align=8)
        loop.end([])
        return context.get_dummy_value()

    return _narrow(generate)


def _narrow(generate: Any) -> Any:
    def typed(
        typing: Any, count: Any, x: Any, w: Any, sums: Any, x_stride: Any, w_stride: Any, s: Any
    ) -> Any:
        return types.void(*[types.int64] * 7), generate

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
            line = _line(builder, source, stride, _WORD(row))
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
            line = _line(builder, target, apart, _WORD(column))
            builder.store(value, builder.inttoptr(line, _POINTER), align=8)
        return context.get_dummy_value()

    def typed(typing: Any, source: Any, stride: Any, target: Any, apart: Any) -> Any:
        return types.void(*[types.int64] * 4), generate

    return intrinsic(typed)
