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

Shape = tuple[int, ...]
Pieces = dict[str, torch.Tensor]


class Randomness(Protocol):
    """A party's seed, expanded: equal calls give equal tensors to all that know the seed."""

    def ring(self, shape: Sequence[int]) -> torch.Tensor:
        """Uniform int64 [shape]."""
        ...

    def branch(self, number: int) -> Randomness:
        """Other randomness of the same seed, which can be had again by its number, 1 or more."""
        ...


@dataclass(frozen=True)
class Piece:
    """A tensor of a correlation.

    Args:
        bits: elements are uniform on so many low bits.
        holder: the one party that holds it, or None where both hold a share.
        corrected: party 1's share comes from the dealer.
        exclusive: shares join by XOR instead of by addition.
    """

    name: str
    shape: Shape
    bits: int = 64
    holder: int | None = None
    corrected: bool = False
    exclusive: bool = False

    @property
    def elements(self) -> int:
        total = 1
        for size in self.shape:
            total *= size
        return total

    def draw(self, source: Randomness) -> torch.Tensor:
        drawn = source.ring(self.shape)
        return drawn if self.bits == 64 else drawn & ((1 << self.bits) - 1)


class Correlation(ABC):
    """Pieces that belong together. `complete` is the dealer's part."""

    pieces: tuple[Piece, ...]

    @property
    def dealt_bytes(self) -> int:
        """Bytes of corrections that party 1 receives."""
        return sum(8 * piece.elements for piece in self.pieces if piece.corrected)

    def draw(self, rank: int, source: Randomness) -> Pieces:
        """What party `rank` takes from its own seed, in the order of `pieces`."""
        return {
            piece.name: piece.draw(source)
            for piece in self.pieces
            if piece.holder in (None, rank) and not (rank == 1 and piece.corrected)
        }

    def corrections(self, zero: Pieces, one: Pieces) -> Pieces:
        """Party 1's corrected shares, from what both parties drew."""
        joined = {}
        for piece in self.pieces:
            if piece.corrected:
                continue
            held = [part[piece.name] for part in (zero, one) if piece.name in part]
            whole = held[0] if len(held) == 1 else _join(piece, *held)
            joined[piece.name] = whole & ((1 << piece.bits) - 1) if piece.bits < 64 else whole
        wanted = self.complete(joined)
        fixed = {}
        for piece in self.pieces:
            if piece.corrected:
                own = zero[piece.name]
                value = wanted[piece.name]
                fixed[piece.name] = value ^ own if piece.exclusive else value - own
        return fixed

    @abstractmethod
    def complete(self, whole: Pieces) -> Pieces:
        """The values of the corrected pieces, from the joined values of the random ones."""


def _join(piece: Piece, zero: torch.Tensor, one: torch.Tensor) -> torch.Tensor:
    return zero ^ one if piece.exclusive else zero + one


class Triple(Correlation):
    """a, b and c = a * b for one product (Beaver 1991)."""

    def __init__(
        self,
        product: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
        x: Shape,
        y: Shape,
        z: Shape,
    ) -> None:
        self.product = product
        self.pieces = (Piece("a", x), Piece("b", y), Piece("c", z, corrected=True))

    def complete(self, whole: Pieces) -> Pieces:
        return {"c": self.product(whole["a"], whole["b"])}


class Squared(Correlation):
    """a and a^2."""

    def __init__(self, shape: Shape) -> None:
        self.pieces = (Piece("a", shape), Piece("c", shape, corrected=True))

    def complete(self, whole: Pieces) -> Pieces:
        return {"c": whole["a"] * whole["a"]}


class Truncated(Correlation):
    """r, its high part r >> bits, and its top bit, all as ring shares."""

    def __init__(self, shape: Shape, bits: int) -> None:
        self.bits = bits
        self.pieces = (
            Piece("r", shape),
            Piece("high", shape, corrected=True),
            Piece("top", shape, corrected=True),
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
class Layout:
    """How a borrow over `bits` bits is cut into digits and nodes.

    `levels` are the groups of each level of nodes, as numbers of joined inputs; a group of one
    passes through. At most two inputs reach the last table.
    """

    bits: int
    digits: int
    levels: tuple[tuple[int, ...], ...] = field(default=())

    @property
    def last(self) -> int:
        return len(self.levels[-1]) if self.levels else self.digits


@functools.cache
def layout(bits: int) -> Layout:
    """The cut for a borrow over `bits` bits."""
    digits = max(1, -(-bits // DIGIT))
    levels, left = [], digits
    while left > 2:
        groups = -(-left // NODE)
        sizes = tuple(left // groups + (i < left % groups) for i in range(groups))
        levels.append(sizes)
        left = groups
    return Layout(bits, digits, tuple(levels))


class Borrow(Correlation):
    """A value that depends on r and on the borrow [y < r] over the low `cut.bits` bits.

    * r, uniform on `bits` bits, hides x; y = x + r is opened.
    * For each digit of r a word whose bit v is [v < digit] and one whose bit v is [v == digit].
    * For each node a mask of its input bits and two words: the joined (less, equal) for every
      masked input.
    * A mask and a table of ring elements for the last step: `payload` for every masked input.
    """

    def __init__(self, shape: Shape, bits: int, low: int) -> None:
        self.cut = layout(low)
        pieces = [Piece("r", shape, bits=bits)]
        for name in ("less", "equal"):
            pieces.append(Piece(name, (self.cut.digits, *shape), corrected=True, exclusive=True))
        for level, sizes in enumerate(self.cut.levels):
            joined = (sum(size > 1 for size in sizes), *shape)
            pieces.append(Piece(f"mask{level}", joined, bits=2 * NODE, exclusive=True))
            for name in ("less", "equal"):
                pieces.append(Piece(f"{name}{level}", joined, corrected=True, exclusive=True))
        inputs = 2 * self.cut.last - 1
        pieces.append(Piece("mask", shape, bits=inputs, exclusive=True))
        pieces.append(Piece("last", (1 << inputs, *shape), corrected=True))
        self.pieces = tuple(pieces)

    @abstractmethod
    def payload(self, r: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Ring elements without and with a borrow, for each r."""

    def complete(self, whole: Pieces) -> Pieces:
        cut, r = self.cut, whole["r"]
        low = r & ((1 << cut.bits) - 1)
        digits = torch.stack([(low >> (DIGIT * d)) & (2**DIGIT - 1) for d in range(cut.digits)])
        one = torch.ones_like(digits)
        wanted = {"less": (one << digits) - 1, "equal": one << digits}
        for level, sizes in enumerate(cut.levels):
            masks = whole[f"mask{level}"]
            # the order of groups with more than one input is the order of masks
            big = [size for size in sizes if size > 1]
            for name in ("less", "equal"):
                words = [
                    _node_words(size, name)[mask] for size, mask in zip(big, masks, strict=True)
                ]
                wanted[f"{name}{level}"] = torch.stack(words)
        inputs = 2 * cut.last - 1
        without, borrowed = self.payload(r)
        index = torch.arange(1 << inputs).reshape(-1, *([1] * r.ndim))
        borrow = _last_table(cut.last)[index ^ whole["mask"]]
        wanted["last"] = without + borrow * (borrowed - without)
        return wanted


class Signs(Borrow):
    """For sign tests on `bits` bits: the payload is [x < 0] when the top bit of y is 0."""

    def __init__(self, shape: Shape, bits: int) -> None:
        super().__init__(shape, bits, bits - 1)

    def payload(self, r: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        top = (r >> self.cut.bits) & 1
        return top, 1 - top


class Exponents(Borrow):
    """For exp(u) with u unsigned on `bits` bits, `frac` of them fractional.

    The payload is exp(-r), and exp(-r) times the exp of the whole range where y wrapped, with
    `precision` fractional bits.
    """

    def __init__(self, shape: Shape, bits: int, frac: int, precision: int) -> None:
        super().__init__(shape, bits, bits)
        self.frac, self.precision = frac, precision

    def payload(self, r: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        small = torch.exp(-r.to(torch.float64) / 2.0**self.frac)
        window = math.exp(2.0 ** (self.cut.bits - self.frac))
        scale = 2.0**self.precision
        return torch.round(small * scale).to(torch.int64), torch.round(small * (window * scale)).to(
            torch.int64
        )


class Lookup(Correlation):
    """r on `bits` bits, and public tables [tables, 2^bits] turned by it.

    The corrected table holds, for every opened y = x + r, the tables' entries at x.
    """

    def __init__(self, shape: Shape, bits: int, tables: torch.Tensor) -> None:
        self.bits, self.tables = bits, tables
        turned = (1 << bits, tables.shape[0], *shape)
        self.pieces = (Piece("r", shape, bits=bits), Piece("turned", turned, corrected=True))

    def complete(self, whole: Pieces) -> Pieces:
        r, size = whole["r"], 1 << self.bits
        y = torch.arange(size).reshape(-1, *([1] * r.ndim))
        return {"turned": self.tables[:, (y - r) & (size - 1)].transpose(0, 1)}


@functools.cache
def _node_words(size: int, name: str) -> torch.Tensor:
    """For every 6-bit mask the word whose bit v is the node's output on input v ^ mask.

    Input bits, least significant digit first: less_0, equal_0, less_1, equal_1, ...
    """
    outputs = []
    for value in range(1 << (2 * NODE)):
        less, equal = False, True
        for digit in range(size):
            below, same = value >> (2 * digit) & 1, value >> (2 * digit + 1) & 1
            less = bool(below) or (bool(same) and less)
            equal = equal and bool(same)
        outputs.append(less if name == "less" else equal)
    words = []
    for mask in range(1 << (2 * NODE)):
        word = sum(1 << v for v in range(1 << (2 * NODE)) if outputs[v ^ mask])
        words.append(word - (1 << 64) if word >> 63 else word)
    return torch.tensor(words, dtype=torch.int64)


@functools.cache
def _last_table(last: int) -> torch.Tensor:
    """The borrow from the bits that reach the last step: less_0, and with two less_1, equal_1."""
    if last == 1:
        return torch.tensor([0, 1])
    return torch.tensor([(v >> 1 & 1) | ((v >> 2 & 1) & (v & 1)) for v in range(8)])


def logical_shift(value: torch.Tensor, bits: int) -> torch.Tensor:
    """Unsigned right shift of int64 by 1 <= bits <= 63."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)
