"""Correlated randomness of the suite `dealer`: what each party draws, and what the dealer corrects.

A correlation is a list of pieces. Party 0 draws all of its pieces from its own seed; party 1 draws
its own too, but those that depend on the others arrive as corrections: the dealer knows both
seeds, and sends party 1 the share that makes the correlation hold. So 16 bytes reach party 0, and
party 1 receives only what cannot be random.
"""

from __future__ import annotations

import functools
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch

from mpcache.kernels import dcf
from mpcache.kernels.prg import storage
from mpcache.protocols.pieces import Form, Piece, Pieces, Randomness, Shape


class Correlation(ABC):
    """Pieces that belong together. `complete` is the dealer's part.

    A correlation is drawn as one run of a seed's bytes, and corrected by one run of the dealer's.
    Its form depends on shapes alone, and is made once for each.

    Attributes:
        told: names of pieces whose whole value the dealer's walk needs later.
        apart: whether party 1 draws it from a stream of its own: see `protocols.ahead`.
    """

    form: Form
    told: tuple[str, ...] = ()
    apart: bool = False

    @property
    def pieces(self) -> tuple[Piece, ...]:
        return self.form.pieces

    @pieces.setter
    def pieces(self, pieces: Sequence[Piece]) -> None:
        self.form = Form(pieces)

    @property
    def dealt_bytes(self) -> int:
        """Bytes of corrections that party 1 receives."""
        return self.form.dealt_bytes

    def draw(self, rank: int, source: Randomness) -> Pieces:
        """What party `rank` takes from its own seed."""
        runs, size = self.form.drawn[rank]
        buffer = source.bits((size,), 8) if size else torch.empty(0, dtype=torch.uint8)
        return {name: value for run in runs for name, value in run.read(buffer)}

    def read(self, dealt: torch.Tensor) -> Pieces:
        """Party 1's corrections, from their bytes [dealt_bytes]."""
        found = {}
        for place in self.form.dealt:
            value = place.of(dealt)
            if not place.words.natural:
                value = place.words.unpack(value)
            found[place.name] = place.piece.held(value)
        return found

    def corrections(self, zero: Pieces, one: Pieces) -> tuple[torch.Tensor, Pieces]:
        """Bytes of party 1's corrected shares, from what both parties drew; and what is `told`."""
        whole = {}
        for piece in self.form.pieces:
            if piece.dealt:
                continue
            held = [part[piece.name] for part in (zero, one) if piece.name in part]
            joined = held[0] if len(held) == 1 else _join(piece, *held)
            whole[piece.name] = joined & ((1 << piece.bits) - 1) if piece.bits < 64 else joined
        wanted = self.complete(whole)
        buffer = torch.empty(self.dealt_bytes, dtype=torch.uint8)
        for place in self.form.dealt:
            value = wanted[place.name]
            if place.piece.corrected:
                own = zero[place.name]
                value = value.to(own.dtype)
                value = value ^ own if place.piece.exclusive else value - own
            packed = place.words.pack(value).contiguous()
            buffer[place.at : place.end] = packed.view(-1).view(torch.uint8)
        return buffer, {name: whole[name] if name in whole else wanted[name] for name in self.told}

    @abstractmethod
    def complete(self, whole: Pieces) -> Pieces:
        """The values of the corrected pieces, from the joined values of the random ones."""


def _join(piece: Piece, zero: torch.Tensor, one: torch.Tensor) -> torch.Tensor:
    return zero ^ one if piece.exclusive else zero + one


Made = TypeVar("Made", bound=Correlation)


def made_once(kind: Callable[..., Made]) -> Callable[..., Made]:
    """Correlations that hold no values: one object for equal arguments."""
    return functools.lru_cache(maxsize=1 << 12)(kind)


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
        self.form = _triple(x, y, z, kept, width)

    def complete(self, whole: Pieces) -> Pieces:
        masks = {"a": self.a, "b": self.b} | whole
        a, b = masks["a"], masks["b"]
        assert a is not None and b is not None
        return {"c": self.product(a, b)}


@functools.lru_cache(maxsize=1 << 12)
def _triple(x: Shape, y: Shape, z: Shape, kept: str, width: int) -> Form:
    fresh = [("a", x)] * ("x" not in kept) + [("b", y)] * ("y" not in kept)
    drawn = [Piece(name, shape, width) for name, shape in fresh]
    return Form((*drawn, Piece("c", z, width, corrected=True)))


class Squared(Correlation):
    """a and a^2, modulo 2^width."""

    def __init__(self, shape: Shape, width: int = 64) -> None:
        self.form = Form((Piece("a", shape, width), Piece("c", shape, width, corrected=True)))

    def complete(self, whole: Pieces) -> Pieces:
        return {"c": whole["a"] * whole["a"]}


class Monomials(Correlation):
    """Masks of several operands, and the products of masks that products of operands need.

    Args:
        shapes: of the operands.
        monomials: each a set of operands' numbers; masks' products over every part of two or more
            of them are dealt.
        kept: operands that were masked before, with their masks, known to the dealer alone.
    """

    def __init__(
        self,
        shapes: Sequence[Shape],
        monomials: Sequence[tuple[int, ...]],
        kept: Mapping[int, torch.Tensor | None],
        width: int = 64,
    ) -> None:
        self.kept = kept
        self.parts, self.form = _monomials(tuple(shapes), tuple(monomials), tuple(kept), width)

    def complete(self, whole: Pieces) -> Pieces:
        kept = {f"m{i}": mask for i, mask in self.kept.items() if mask is not None}
        masks = kept | whole
        found: Pieces = {}
        for part in self.parts:
            first = part[:-1]
            left = masks[f"m{first[0]}"] if len(first) == 1 else found[_named(first)]
            found[_named(part)] = left * masks[f"m{part[-1]}"]
        return found


@functools.lru_cache(maxsize=1 << 12)
def _monomials(
    shapes: tuple[Shape, ...],
    monomials: tuple[tuple[int, ...], ...],
    kept: tuple[int, ...],
    width: int,
) -> tuple[list[tuple[int, ...]], Form]:
    parts = {
        part
        for monomial in monomials
        for size in range(2, len(monomial) + 1)
        for part in itertools.combinations(sorted(monomial), size)
    }
    ordered = sorted(parts, key=lambda part: (len(part), part))
    drawn = [Piece(f"m{i}", s, width) for i, s in enumerate(shapes) if i not in kept]
    dealt = [
        Piece(_named(part), broadcast(*(shapes[i] for i in part)), width, corrected=True)
        for part in ordered
    ]
    return ordered, Form((*drawn, *dealt))


def _named(part: Sequence[int]) -> str:
    return "m" + ".".join(map(str, part))


class Truncated(Correlation):
    """r on `space` bits, its high part r >> bits and its top bit.

    The high part counts modulo 2^width; the top bit, times 2^(space - bits), does too, and is not
    needed where that is 0. Then the dealer knows all of the mask: see `DealerSuite.truncating`.
    """

    told = ("high",)

    def __init__(self, shape: Shape, bits: int, space: int = 64, width: int = 64) -> None:
        self.bits, self.space = bits, space
        left = width - (space - bits)
        pieces = [Piece("r", shape, space), Piece("high", shape, width, corrected=True)]
        if left > 0:
            pieces.append(Piece("top", shape, left, corrected=True))
        self.form = Form(pieces)

    def complete(self, whole: Pieces) -> Pieces:
        r = whole["r"]
        high = {"high": logical_shift(r, self.bits) if self.space == 64 else r >> self.bits}
        if len(self.pieces) == 2:
            return high
        return high | {"top": logical_shift(r, self.space - 1)}


class MaskedProduct(Correlation):
    """a at party 1, and shares of a @ B for a weight mask B, modulo 2^width.

    Args:
        x, z: shapes of a and of the product.
        product: a -> a @ B, for the dealer.
    """

    apart = True

    def __init__(
        self,
        x: Shape,
        z: Shape,
        width: int = 64,
        product: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        self.product = product
        self.form = _masked(x, z, width)

    def complete(self, whole: Pieces) -> Pieces:
        assert self.product is not None
        return {"c": self.product(whole["a"])}


@functools.lru_cache(maxsize=1 << 12)
def _masked(x: Shape, z: Shape, width: int) -> Form:
    return Form((Piece("a", x, width, holder=1), Piece("c", z, width, corrected=True)))


class Lookup(Correlation):
    """r on `bits` bits, and public tables [tables, 2^bits] turned by it.

    The corrected table holds, for every opened y = x + r, the tables' entries at x, modulo
    2^width.
    """

    def __init__(self, shape: Shape, bits: int, tables: torch.Tensor, width: int = 64) -> None:
        self.bits, self.tables = bits, tables
        self.form = _looked_up(shape, bits, tables.shape[0], width)

    def complete(self, whole: Pieces) -> Pieces:
        r, size = whole["r"], 1 << self.bits
        y = torch.arange(size).reshape(-1, *([1] * r.ndim))
        return {"turned": self.tables[:, (y - r) & (size - 1)].transpose(0, 1)}


@functools.lru_cache(maxsize=1 << 12)
def _looked_up(shape: Shape, bits: int, tables: int, width: int) -> Form:
    turned = (1 << bits, tables, *shape)
    return Form((Piece("r", shape, bits=bits), Piece("turned", turned, width, corrected=True)))


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
        self.form = Form(
            (
                Piece("r", shape),
                Piece("root0", roots, holder=0),
                Piece("root1", roots, holder=1),
                Piece("top", shape, corrected=True),
                Piece("topped", shape, corrected=True),
                Piece("key", (*shape, dcf.key_words(bits, self.WORDS)), given=True),
            )
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
        self.form = Form(
            (
                Piece("r", shape, bits=bits),
                Piece("row", row, width, corrected=True, narrow=True),
            )
        )

    def complete(self, whole: Pieces) -> Pieces:
        row = torch.zeros(self.pieces[1].shape, dtype=storage(self.pieces[1].bits))
        place = -whole["r"] & ((1 << self.bits) - 1)
        return {"row": row.scatter_(-1, place.unsqueeze(-1), 1)}


def broadcast(*shapes: Sequence[int]) -> Shape:
    """The shape that tensors of these shapes have together, as `torch.broadcast_shapes`, faster."""
    longest = max(shapes, key=len)
    if all(shape == longest for shape in shapes):
        return tuple(longest)
    found = list(longest)
    for shape in shapes:
        for place in range(1, len(shape) + 1):
            if shape[-place] != 1:
                if found[-place] not in (1, shape[-place]):
                    raise ValueError(f"shapes {shapes} do not fit together")
                found[-place] = shape[-place]
    return tuple(found)


def logical_shift(value: torch.Tensor, bits: int) -> torch.Tensor:
    """Unsigned right shift of int64 by 1 <= bits <= 63."""
    return (value >> bits) & ((1 << (64 - bits)) - 1)


squared = made_once(Squared)
truncated = made_once(Truncated)
stairs = made_once(Steps)
one_hots = made_once(OneHot)
