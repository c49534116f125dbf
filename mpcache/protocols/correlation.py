"""Correlated randomness of the suite `dealer`: what each party draws, and what the dealer corrects.

A correlation is a list of pieces. Party 0 draws all of its pieces from its own seed; party 1 draws
its own too, but those that depend on the others arrive as corrections: the dealer knows both
seeds, and sends party 1 the share that makes the correlation hold. So 16 bytes reach party 0, and
party 1 receives only what cannot be random.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch

from mpcache.kernels import dcf

Shape = tuple[int, ...]
Pieces = dict[str, torch.Tensor]


class Randomness(Protocol):
    """A party's seed, expanded: equal calls give equal tensors to all that know the seed."""

    def ring(self, shape: Sequence[int]) -> torch.Tensor:
        """Uniform int64 [shape]."""
        ...

    def bits(self, shape: Sequence[int], bits: int) -> torch.Tensor:
        """Uniform on `bits` bits, integers of any width [shape]."""
        ...

    def branch(self, number: int) -> Randomness:
        """Other randomness of the same seed, which can be had again by its number, 1 or more."""
        ...


def storage(bits: int) -> torch.dtype:
    """The narrowest integers that hold `bits` bits."""
    return next(dtype for width, dtype in _STORAGE if bits <= width)


_STORAGE = ((8, torch.uint8), (16, torch.int16), (32, torch.int32), (64, torch.int64))


@dataclass(frozen=True)
class Piece:
    """A tensor of a correlation.

    Args:
        bits: elements are uniform on so many low bits, and count modulo 2^bits.
        holder: the one party that holds it, or None where both hold a share.
        corrected: party 1's share comes from the dealer.
        exclusive: shares join by XOR instead of by addition.
        given: nobody draws it; party 1 receives it whole, and may pass it on.
        narrow: stays in the integers that it travels in.
    """

    name: str
    shape: Shape
    bits: int = 64
    holder: int | None = None
    corrected: bool = False
    exclusive: bool = False
    given: bool = False
    narrow: bool = False

    @property
    def dealt(self) -> bool:
        """Whether party 1 receives it from the dealer."""
        return self.corrected or self.given

    @property
    def dtype(self) -> torch.dtype:
        """How a correction travels."""
        return storage(self.bits)

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def draw(self, source: Randomness) -> torch.Tensor:
        if self.bits == 64:
            return source.ring(self.shape)
        return self.held(source.bits(self.shape, self.bits))

    def held(self, drawn: torch.Tensor) -> torch.Tensor:
        """As a party works with it."""
        return drawn if self.narrow else drawn.to(torch.int64)


class Correlation(ABC):
    """Pieces that belong together. `complete` is the dealer's part."""

    pieces: tuple[Piece, ...]

    @property
    def dealt_bytes(self) -> int:
        """Bytes of corrections that party 1 receives."""
        return sum(piece.nbytes for piece in self.pieces if piece.dealt)

    def draw(self, rank: int, source: Randomness) -> Pieces:
        """What party `rank` takes from its own seed, in the order of `pieces`."""
        return {
            piece.name: piece.draw(source)
            for piece in self.pieces
            if piece.holder in (None, rank)
            and not piece.given
            and not (rank == 1 and piece.corrected)
        }

    def corrections(self, zero: Pieces, one: Pieces) -> Pieces:
        """Party 1's corrected shares, from what both parties drew."""
        joined = {}
        for piece in self.pieces:
            if piece.dealt:
                continue
            held = [part[piece.name] for part in (zero, one) if piece.name in part]
            whole = held[0] if len(held) == 1 else _join(piece, *held)
            joined[piece.name] = whole & ((1 << piece.bits) - 1) if piece.bits < 64 else whole
        wanted = self.complete(joined)
        fixed = {}
        for piece in self.pieces:
            if piece.given:
                fixed[piece.name] = wanted[piece.name]
            elif piece.corrected:
                own = zero[piece.name]
                value = wanted[piece.name]
                share = value ^ own if piece.exclusive else value - own
                fixed[piece.name] = share.to(piece.dtype)
        return fixed

    @abstractmethod
    def complete(self, whole: Pieces) -> Pieces:
        """The values of the corrected pieces, from the joined values of the random ones."""


def _join(piece: Piece, zero: torch.Tensor, one: torch.Tensor) -> torch.Tensor:
    return zero ^ one if piece.exclusive else zero + one


class Triple(Correlation):
    """a, b and c = a * b for one product (Beaver 1991).

    Args:
        x, y, z: shapes of the operands and of the product.
        a, b: the masks of operands that were masked before, known to the dealer alone; such an
            operand (`kept`, x or y) draws none.
        width: all count modulo 2^width.
    """

    def __init__(
        self,
        product: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        x: Shape,
        y: Shape,
        z: Shape,
        kept: str = "",
        a: torch.Tensor | None = None,
        b: torch.Tensor | None = None,
        width: int = 64,
    ) -> None:
        self.product, self.a, self.b = product, a, b
        fresh = [("a", x)] * ("x" not in kept) + [("b", y)] * ("y" not in kept)
        drawn = [Piece(name, shape, width) for name, shape in fresh]
        self.pieces = (*drawn, Piece("c", z, width, corrected=True))

    def complete(self, whole: Pieces) -> Pieces:
        masks = {"a": self.a, "b": self.b} | whole
        a, b = masks["a"], masks["b"]
        assert a is not None and b is not None
        return {"c": self.product(a, b)}


class Squared(Correlation):
    """a and a^2."""

    def __init__(self, shape: Shape) -> None:
        self.pieces = (Piece("a", shape), Piece("c", shape, corrected=True))

    def complete(self, whole: Pieces) -> Pieces:
        return {"c": whole["a"] * whole["a"]}


class Truncated(Correlation):
    """r, its high part r >> bits, and its top bit, which counts modulo 2^bits."""

    def __init__(self, shape: Shape, bits: int) -> None:
        self.bits = bits
        self.pieces = (
            Piece("r", shape),
            Piece("high", shape, corrected=True),
            Piece("top", shape, bits, corrected=True),
        )

    def complete(self, whole: Pieces) -> Pieces:
        return {"high": logical_shift(whole["r"], self.bits), "top": logical_shift(whole["r"], 63)}


class MaskedProduct(Correlation):
    """a at party 1, and shares of a @ B for a weight mask B."""

    def __init__(
        self,
        x: Shape,
        z: Shape,
        mask: Callable[[], torch.Tensor],
        product: Callable[..., torch.Tensor],
    ) -> None:
        self.mask, self.product = mask, product
        self.pieces = (Piece("a", x, holder=1), Piece("c", z, corrected=True))

    def complete(self, whole: Pieces) -> Pieces:
        return {"c": self.product(whole["a"], self.mask())}


# --- comparison ----------------------------------------------------------------------------------

DIGIT = 6  # bits of a digit: 64 table entries, one machine word
NODE = 3  # digits that one node joins: 6 bits, again one word


@dataclass(frozen=True)
class Group:
    """Neighbouring inputs that one node joins; the `lowest` group needs no equality."""

    size: int
    lowest: bool

    @property
    def inputs(self) -> int:
        """Bits: less of each, and equal of each but the lowest digit of all."""
        return 2 * self.size - self.lowest


@dataclass(frozen=True)
class Layout:
    """How a borrow over `bits` bits is cut into digits and nodes.

    `levels` are the groups of each level of nodes; a group of one passes through. At most two
    inputs reach the last table.
    """

    bits: int
    digits: int
    levels: tuple[tuple[Group, ...], ...] = field(default=())

    @property
    def last(self) -> Group:
        return Group(len(self.levels[-1]) if self.levels else self.digits, True)


@functools.cache
def layout(bits: int, last: int = 2) -> Layout:
    """The cut for a borrow over `bits` bits; `last` inputs at most reach the last table."""
    digits = max(1, -(-bits // DIGIT))
    levels, left = [], digits
    while left > last:
        groups = -(-left // NODE)
        sizes = [left // groups + (i < left % groups) for i in range(groups)]
        levels.append(tuple(Group(size, i == 0) for i, size in enumerate(sizes)))
        left = groups
    return Layout(bits, digits, tuple(levels))


def joined(groups: Sequence[Group]) -> list[tuple[int, Group]]:
    """The groups of a level that have a node, with their places."""
    return [(place, group) for place, group in enumerate(groups) if group.size > 1]


class Borrow(Correlation):
    """Values that depend on r and on the borrow [y < r] over the low `low` bits.

    * r, uniform on `bits` bits, hides x; y = x + r is opened.
    * For each digit of r the word whose bit v is [v < digit]: 2^digit - 1. The word of
      [v == digit] is that word, XOR itself shifted by one, XOR 1: free.
    * For each node a mask of its input bits and the words of the joined less and equal.
    * Where `near` is told, the digit above the low bits, for [r's digit == y's digit - t].
    * A mask and a table of ring elements for the last step, `words` for every masked input.

    Args:
        words: results of an element; each is a ring element modulo 2^width.
        near: the values of t.
        last: see `layout`.
    """

    def __init__(
        self,
        shape: Shape,
        bits: int,
        low: int,
        words: int = 1,
        near: tuple[int, ...] = (),
        last: int = 2,
        width: int = 64,
    ) -> None:
        self.shape, self.cut, self.words, self.near = shape, layout(low, last), words, near
        pieces = [Piece("r", shape, bits=bits)]
        digits = (self.cut.digits, *shape)
        pieces.append(Piece("less", digits, corrected=True, exclusive=True))
        if near:
            pieces.append(Piece("above", shape, corrected=True, exclusive=True))
        for level, groups in enumerate(self.cut.levels):
            for place, group in joined(groups):
                at, word = f"{level}.{place}", 1 << group.inputs
                pieces.append(Piece(f"mask{at}", shape, bits=group.inputs, exclusive=True))
                for name in ("less", "equal")[: 2 - group.lowest]:
                    pieces.append(Piece(f"{name}{at}", shape, word, None, True, True))
        self.inputs = self.cut.last.inputs + len(near)
        pieces.append(Piece("mask", shape, bits=self.inputs, exclusive=True))
        table = (1 << self.inputs, words, *shape)
        pieces.append(Piece("last", table, bits=width, corrected=True))
        self.pieces = tuple(pieces)

    @abstractmethod
    def payload(self, r: torch.Tensor, borrow: int, near: Sequence[bool]) -> list[torch.Tensor]:
        """The `words` for each r, with or without a borrow, and with these digits near."""

    def complete(self, whole: Pieces) -> Pieces:
        cut, r = self.cut, whole["r"]
        low = r & ((1 << cut.bits) - 1)
        digits = torch.stack([(low >> (DIGIT * d)) & (2**DIGIT - 1) for d in range(cut.digits)])
        wanted = {"less": _below(digits)}
        if self.near:
            wanted["above"] = _below((r >> cut.bits) & (2**DIGIT - 1))
        for level, groups in enumerate(cut.levels):
            for place, group in joined(groups):
                at = f"{level}.{place}"
                for name in ("less", "equal")[: 2 - group.lowest]:
                    words = _node_words(group, name)
                    wanted[f"{name}{at}"] = words[whole[f"mask{at}"]]
        wanted["last"] = self._last(r, whole["mask"])
        return wanted

    def _last(self, r: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        cases, places = 1 << (1 + len(self.near)), range(len(self.near))
        shown = [
            torch.stack(self.payload(r, case & 1, [bool(case >> 1 + i & 1) for i in places]))
            for case in range(cases)
        ]
        inputs = torch.arange(1 << self.inputs)
        two = self.cut.last.size == 2
        borrow = (inputs >> 1 & 1) | (inputs >> 2 & inputs & 1) if two else inputs & 1
        case = borrow | inputs >> self.cut.last.inputs << 1
        index = case[inputs.reshape(-1, *([1] * r.ndim)) ^ mask]
        raw = torch.stack(shown)
        return raw.gather(0, index.unsqueeze(1).expand(-1, raw.shape[1], *index.shape[1:]))


def _below(digit: torch.Tensor) -> torch.Tensor:
    """The word whose bit v is [v < digit]."""
    return (torch.ones_like(digit) << digit) - 1


class Signs(Borrow):
    """For sign tests on `bits` bits: the payload is [x < 0] when the top bit of y is 0."""

    def __init__(self, shape: Shape, bits: int, width: int = 64) -> None:
        super().__init__(shape, bits, bits - 1, width=width)

    def payload(self, r: torch.Tensor, borrow: int, near: Sequence[bool]) -> list[torch.Tensor]:
        return [(r >> self.cut.bits) & 1 ^ borrow]


class PairSigns(Signs):
    """Sign tests of x_i - x_j for all pairs i < j of the last dimension [n], row by row.

    r hides each x once; the difference of two hides the difference of theirs. So only n elements
    are opened, however many pairs there are.
    """

    def __init__(self, shape: Shape, bits: int, width: int = 64) -> None:
        super().__init__((*shape[:-1], math.comb(shape[-1], 2)), bits, width)
        self.bits = bits
        self.pieces = (Piece("r", shape, bits=bits), *self.pieces[1:])

    def differences(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., n] -> [..., pairs], on the correlation's bits."""
        size = hidden.shape[-1]
        first, second = torch.triu_indices(size, size, 1)
        between = hidden.index_select(-1, first) - hidden.index_select(-1, second)
        return between & ((1 << self.bits) - 1)

    def complete(self, whole: Pieces) -> Pieces:
        return super().complete({**whole, "r": self.differences(whole["r"])})


class Positive(Borrow):
    """For max(x, 0) on `bits` bits: [x >= 0] and [x >= 0] m for a clear top bit of y, and m.

    m = -r + 2^(bits - 1) borrow, over the low bits: with y's low bits it is x or x + 2^(bits - 1).
    """

    def __init__(self, shape: Shape, bits: int) -> None:
        super().__init__(shape, bits, bits - 1, words=3, last=1)

    def payload(self, r: torch.Tensor, borrow: int, near: Sequence[bool]) -> list[torch.Tensor]:
        half = 1 << self.cut.bits
        moved = borrow * half - (r & (half - 1))
        shown = 1 - ((r >> self.cut.bits) & 1 ^ borrow)
        return [shown, shown * moved, moved]


class Exponents(Borrow):
    """For exp(u) with u on `window` bits, `frac` of them fractional, inside 6 more bits.

    The payload is exp(-r), and exp(-r) times the exp of the whole window where y wrapped, with
    `precision` fractional bits; 0 where x is outside its window.
    """

    def __init__(self, shape: Shape, window: int, frac: int, precision: int) -> None:
        super().__init__(shape, window + DIGIT, window, near=(0, 1))
        self.frac, self.precision = frac, precision

    def payload(self, r: torch.Tensor, borrow: int, near: Sequence[bool]) -> list[torch.Tensor]:
        if not near[borrow]:
            return [torch.zeros_like(r)]
        low = (r & ((1 << self.cut.bits) - 1)).to(torch.float64) / 2.0**self.frac
        whole = math.exp(2.0 ** (self.cut.bits - self.frac)) if borrow else 1.0
        return [torch.round(torch.exp(-low) * (whole * 2.0**self.precision)).to(torch.int64)]


class Lookup(Correlation):
    """r on `bits` bits, and public tables [tables, 2^bits] turned by it.

    The corrected table holds, for every opened y = x + r, the tables' entries at x, modulo
    2^width.
    """

    def __init__(self, shape: Shape, bits: int, tables: torch.Tensor, width: int = 64) -> None:
        self.bits, self.tables = bits, tables
        turned = (1 << bits, tables.shape[0], *shape)
        self.pieces = (Piece("r", shape, bits=bits), Piece("turned", turned, width, corrected=True))

    def complete(self, whole: Pieces) -> Pieces:
        r, size = whole["r"], 1 << self.bits
        y = torch.arange(size).reshape(-1, *([1] * r.ndim))
        return {"turned": self.tables[:, (y - r) & (size - 1)].transpose(0, 1)}


class Steps(Correlation):
    """For [x >= t] and [x >= t] x at many public t, in one round: a distributed comparison.

    r hides x, [top] and [top r] are its bit above the low `bits` and that times r; the key
    compares those low bits with any public point, and pays 1 - 2 top and (1 - 2 top) r: see
    `kernels.dcf`. Its size grows with `bits`.
    """

    WORDS = 2

    def __init__(self, shape: Shape, bits: int = 63) -> None:
        self.bits = bits
        roots = (*shape, dcf.SEED_WORDS)
        self.pieces = (
            Piece("r", shape),
            Piece("root0", roots, holder=0),
            Piece("root1", roots, holder=1),
            Piece("top", shape, corrected=True),
            Piece("topped", shape, corrected=True),
            Piece("key", (*shape, dcf.key_words(bits, self.WORDS)), given=True),
        )

    def complete(self, whole: Pieces) -> Pieces:
        r = whole["r"]
        top = (r >> self.bits) & 1
        paid = torch.stack([1 - 2 * top, (1 - 2 * top) * r], -1).reshape(-1, self.WORDS)
        low = r & ((1 << self.bits) - 1)
        roots = [whole[name].reshape(-1, dcf.SEED_WORDS) for name in ("root0", "root1")]
        key = dcf.generate(low.reshape(-1), paid, self.bits, *roots)
        return {"top": top, "topped": top * r, "key": key.reshape(*r.shape, -1)}


class OneHot(Correlation):
    """r on `bits` bits, and the unit vector of -r, modulo 2^width.

    Turned by an opened y = x + r it is that of x; its entries lie next to each other.
    """

    def __init__(self, shape: Shape, bits: int, width: int) -> None:
        self.bits = bits
        row = (*shape, 1 << bits)
        self.pieces = (
            Piece("r", shape, bits=bits),
            Piece("row", row, width, corrected=True, narrow=True),
        )

    def complete(self, whole: Pieces) -> Pieces:
        row = torch.zeros(self.pieces[1].shape, dtype=self.pieces[1].dtype)
        place = -whole["r"] & ((1 << self.bits) - 1)
        return {"row": row.scatter_(-1, place.unsqueeze(-1), 1)}


@functools.cache
def _node_words(group: Group, name: str) -> torch.Tensor:
    """For every mask of a node's inputs the word whose bit v is its output on input v ^ mask.

    Input bits, least significant digit first: less_0, equal_0, less_1, equal_1, ..., without
    equal_0 in the lowest group.
    """
    count = 1 << group.inputs
    outputs = []
    for value in range(count):
        bits = value << 1 & ~3 | value & 1 if group.lowest else value
        less, equal = False, True
        for digit in range(group.size):
            below, same = bits >> (2 * digit) & 1, bits >> (2 * digit + 1) & 1
            less = bool(below) or (bool(same) and less)
            equal = equal and bool(same)
        outputs.append(less if name == "less" else equal)
    words = []
    for mask in range(count):
        word = sum(1 << v for v in range(count) if outputs[v ^ mask])
        words.append(word - (1 << 64) if word >> 63 else word)
    return torch.tensor(words, dtype=torch.int64)


def logical_shift(value: torch.Tensor, bits: int) -> torch.Tensor:
    """Unsigned right shift of int64 by 1 <= bits <= 63."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)
