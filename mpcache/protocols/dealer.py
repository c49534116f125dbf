"""The suite `dealer`: two parties, correlated randomness from a dealer that is not online.

Secure against a semi-honest party as long as no two of {party 0, party 1, dealer} collude. Party 0
owns the weights and works with them in the clear, and party 1 never learns them; or, where the
setting says that they are shared, each party has a share of them and neither learns them.

Primitives are plays (`plays`): those that do not depend on each other can be played together.
"""

from __future__ import annotations

import functools
import math
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from mpcache.errors import MpcacheError
from mpcache.kernels.ring import ring_product
from mpcache.protocols.correlation import MaskedProduct, Monomials, Triple, broadcast, squared
from mpcache.protocols.dealer_tables import Tables
from mpcache.protocols.pieces import Pieces
from mpcache.protocols.plays import Ask, Play
from mpcache.protocols.secret import Kept, Secret, SharedWeight
from mpcache.protocols.setting import Setting
from mpcache.protocols.tokens import Tokens
from mpcache.protocols.wire import as_words

Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Make = Callable[[], torch.Tensor]
SharedMasks = tuple[Callable[[], torch.Tensor | None], Make]


class OwnedWeight(Secret):
    """A weight matrix that party 0 holds in the clear.

    `share` is W at party 0, in 16 or 32 bits where they suffice, and W - B at party 1; `mask`
    yields B at the dealer, and `number` says how many were given before.
    """

    __slots__ = ("mask", "number")

    def __init__(
        self, share: torch.Tensor, frac: int, mask: Callable[[], torch.Tensor], number: int
    ) -> None:
        self.share, self.frac, self.mask, self.width = share, frac, mask, 64
        self.number = number


@dataclass(frozen=True)
class Use:
    """A product with a weight that party 0 owns.

    Args:
        weight: its number.
        x: shape of the other operand.
        width: the product counts modulo 2^width.
    """

    weight: int
    x: tuple[int, ...]
    width: int

    @property
    def of_a_token(self) -> bool:
        """Whether x has one row."""
        return math.prod(self.x[:-1]) == 1


class DealerSuite(Tables):
    """What all readings of the suite have in common: each primitive's correlation and messages.

    Subclasses (`dealer_roles`) run it (`OnlineDealer`), count it (`CountingDealer`) or deal for it
    (`Dealing`). Where `hollow`, secrets have no data and only shapes are followed. A primitive
    `multiply` is the play `multiplying`, played alone.
    """

    name: ClassVar[str] = "dealer"

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self.owned: list[OwnedWeight] = []

    # --- values in and out ---------------------------------------------------------------------

    def share(
        self, value: torch.Tensor | None, shape: tuple[int, ...], frac: int, source: int
    ) -> Secret:
        """The source's share is the value and the other's zero: nothing is sent or drawn.

        A share that its holder knows in the clear anyway hides nothing from it; the peer's zero
        says nothing. Every later message masks what it opens.
        """
        if self.hollow:
            return self._made(shape, frac)
        if self.rank != source:
            return Secret(torch.zeros(shape, dtype=torch.int64), frac)
        if value is None:
            raise MpcacheError(f"party {source} has no value to share")
        return Secret(value.contiguous(), frac)

    def tokens(self, ids: Sequence[int] | None, count: int, vocab: int) -> Tokens:
        """The ids, at the client alone; for `embedding.embedded`."""
        known = not self.hollow and self.rank == self.setting.client
        return Tokens(ids if known else None, count, vocab)

    @property
    def shared_weights(self) -> bool:
        """Whether weights are given as each party's own share."""
        return self.setting.sharing == "shared"

    def weight(self, value: torch.Tensor | None, shape: tuple[int, ...], frac: int) -> Secret:
        """A weight that is added, or multiplied element by element: nothing is sent."""
        if not self.shared_weights:
            return super().weight(value, shape, frac)
        if self.hollow:
            return self._made(shape, frac)
        return Secret(_known(value, shape), frac)

    def matrix(self, value: torch.Tensor | None, shape: tuple[int, ...], frac: int) -> Secret:
        """A weight for products: party 0 sends W - B once, party 1 keeps it.

        Where weights are shared both send their share of W less their share of B, and keep W - B:
        a product opens the other operand alone (`_beaver`).
        """
        if self.shared_weights:
            return self._shared_matrix(value, shape, frac)
        mask = self.weight_mask(shape)
        own = []
        if not self.hollow and self.rank == 0:
            expanded = mask()
            own = [torch.sub(_known(value, shape), expanded, out=expanded)]
        (got,) = self._ask([Ask("weight", ([as_words(shape)], []), own)])
        if self.hollow:
            kept = self._made(shape, frac).share
        else:
            kept, mask = _compact(_known(value, shape)) if self.rank == 0 else got[0], no_mask
        self.owned.append(OwnedWeight(kept, frac, mask, len(self.owned)))
        return self.owned[-1]

    def _shared_matrix(
        self, value: torch.Tensor | None, shape: tuple[int, ...], frac: int
    ) -> SharedWeight:
        whole, first = self.shared_masks(shape)
        words = [as_words(shape)]
        if self.hollow:
            self.play(self.opening("weight", [], words))
            return SharedWeight(self._made(shape, frac).share, frac, -1, whole, first)
        mask = whole()
        assert mask is not None
        (opened,) = self.play(self.opening("weight", [_known(value, shape) - mask], words))
        return SharedWeight(opened, frac, self.rank, whole, first)

    def shared_masks(self, shape: tuple[int, ...]) -> SharedMasks:
        """How to get the next shared weight's mask: see `SharedWeight.whole` and `first`.

        Each party's share of it is of its own seed, by the weight's number.
        """
        return no_mask, no_mask

    def weight_mask(self, shape: tuple[int, ...]) -> Callable[[], torch.Tensor]:
        """How to get the next weight's mask B: from party 0's seed, by the weight's number."""
        return no_mask

    def open(self, x: Secret, to: int | None, why: str) -> torch.Tensor | None:
        self.opened(why, "everyone" if to is None else "client", x.share.numel())
        words = [as_words(tuple(x.shape), x.width)]
        sent = (words, words) if to is None else ([], words) if to == 0 else (words, [])
        own = [] if self.hollow or not sent[self.rank] else [x.share]
        (got,) = self._ask([Ask("open", sent, own)])
        if self.hollow or not got:
            return None
        value, unused = x.share + got[0], 64 - x.width
        return value << unused >> unused if unused else value

    @abstractmethod
    def opened(self, why: str, to: str, values: int) -> None:
        """Note an opening in the ledger."""

    def shift(self, x: Secret, public: torch.Tensor) -> Secret:
        if self.hollow:
            return self._made(broadcast(x.shape, public.shape), x.frac, x.width)
        if self.rank == 0:
            return Secret(x.share + public, x.frac, x.width)
        shape = broadcast(x.shape, public.shape)
        return Secret(
            x.share if shape == tuple(x.shape) else x.share.expand(shape), x.frac, x.width
        )

    # --- products ------------------------------------------------------------------------------

    def multiply(self, x: Secret, y: Secret) -> Secret:
        return self.play(self.multiplying(x, y))

    def multiplying(self, x: Secret, y: Secret) -> Play:
        shape = tuple(broadcast(x.shape, y.shape))
        return self._beaver("multiply", torch.mul, x, y, shape, 64)

    def matmul(self, x: Secret, y: Secret, width: int = 64) -> Secret:
        return self.play(self.multiplying_matrices(x, y, width))

    def multiplying_matrices(self, x: Secret, y: Secret, width: int = 64) -> Play:
        """As `matmul`; modulo 2^width, or less where an operand counts modulo less."""
        self.multiplied(x, y)
        batch = broadcast(x.shape[:-2], y.shape[:-2])
        shape = (*batch, x.shape[-2], y.shape[-1])
        if isinstance(y, OwnedWeight):
            return self._owned(x, y, shape, width)
        return self._beaver("matmul", _matmul, x, y, shape, width)

    def multiplied(self, x: Secret, y: Secret) -> None:
        """Note the arithmetic of a product, where it is counted."""

    def keep(self, x: Secret) -> Secret:
        return self.play(self.keeping(x))

    def keeping(self, x: Secret) -> Play:
        """Open x - B once."""
        if isinstance(x, Kept):
            return x
        shape, words = tuple(x.shape), [as_words(tuple(x.shape), x.width)]
        mask = self.kept_mask(shape)
        if self.hollow:
            yield from self.opening("keep", [], words)
            return Kept(self._made(shape, x.frac).share, mask, x.frac, -1, x.width)
        assert mask is not None
        (opened,) = yield from self.opening("keep", [x.share - mask], words)
        return Kept(opened, mask, x.frac, self.rank, x.width)

    def settle_kept(self, x: Secret) -> Secret:
        return self.play(self.settling_kept(x))

    def settling_kept(self, x: Secret) -> Play:
        """x brought to the setting's fractional bits, and kept: in one round where the ring that a
        cut leaves holds a product of two such values."""
        bits = x.frac - self.setting.frac
        left = x.width - bits
        if bits > 0 and left >= self.setting.short and self.setting.truncation == "exact":
            return (yield from self.truncating(x, bits, left))
        settled = yield from self.settling(x)
        return (yield from self.keeping(settled))

    @abstractmethod
    def kept_mask(self, shape: tuple[int, ...]) -> torch.Tensor | None:
        """This party's share of the next B; all of it at the dealer; None where counted."""

    def _beaver(
        self,
        kind: str,
        product: Product,
        x: Secret,
        y: Secret,
        shape: tuple[int, ...],
        width: int,
    ) -> Play:
        """[z] = [c] + d [b] + [a] e + d e, with d = x - a and e = y - b opened.

        An operand that was kept is open already; with both of them nothing is sent. All of it
        counts modulo 2^width.
        """
        frac, width = x.frac + y.frac, min(width, x.width, y.width)
        operands = {"x": x, "y": y}
        kept = {name: value for name, value in operands.items() if isinstance(value, Kept)}
        masks = [kept[name].mask if name in kept else None for name in operands]
        shapes = (tuple(x.shape), tuple(y.shape), shape)
        t = self.draw(Triple(product, *shapes, "".join(kept), masks[0], masks[1], width))
        fresh = [name for name in operands if name not in kept]
        words = [as_words(tuple(operands[name].shape), width) for name in fresh]
        if self.hollow:
            if fresh:
                yield from self.opening(kind, [], words)
            return self._made(shape, frac, width)
        own = {name: t["a" if name == "x" else "b"] for name in fresh}
        own |= {name: value.mask for name, value in kept.items() if value.mask is not None}
        opened = {name: value.opened for name, value in kept.items()}
        if fresh:
            hidden = [operands[name].share - own[name] for name in fresh]
            sums = yield from self.opening(kind, hidden, words)
            opened |= dict(zip(fresh, sums, strict=True))
        d, e = opened["x"], opened["y"]
        a, b = own["x"], own["y"]
        if self.rank == 0:  # d e, joined to the smaller operand
            a, b = (a + d, b) if d.numel() <= e.numel() else (a, b + e)
        z = t["c"] + product(d, b)
        z += product(a, e)
        return Secret(z, frac, width)

    def _owned(self, x: Secret, weight: OwnedWeight, shape: tuple[int, ...], width: int) -> Play:
        """One message of activation size, from party 1 to party 0.

        1. Party 1 sends x1 - a.
        2. Party 0 computes (x0 + x1 - a) W + c0, party 1 a (W - B) + c1, where c0 + c1 = a B.
        """
        width, frac = min(width, x.width), x.frac + weight.frac
        form = tuple(x.shape)
        use = Use(weight.number, form, width)
        product = functools.partial(self.masked, weight, use)
        pieces = self.draw(MaskedProduct(form, shape, width, product))
        own = [] if self.hollow or self.rank == 0 else [x.share - pieces["a"]]
        (got,) = yield [Ask("masked", ([], [as_words(form, width)]), own)]
        if self.hollow:
            self.foreseen(use)
            return self._made(shape, frac, width)
        done = self.worked_ahead(use)
        if done is None:
            left = x.share + got[0] if self.rank == 0 else pieces["a"]
            done = ring_product(left, weight.share)
        return Secret(done + pieces["c"], frac, width)

    def masked(self, weight: OwnedWeight, use: Use, a: torch.Tensor) -> torch.Tensor:
        """a times the weight's mask, which the dealer alone knows."""
        return ring_product(a, weight.mask())

    def foreseen(self, use: Use) -> None:
        """Note a use of a weight, where it is foreseen."""

    def worked_ahead(self, use: Use) -> torch.Tensor | None:
        """Party 1's part of the next product with a weight, if it has been worked out before."""
        return None

    def square(self, x: Secret) -> Secret:
        return self.play(self.squaring(x))

    def squaring(self, x: Secret) -> Play:
        """[x^2] = [c] + 2 d [a] + d^2, with d = x - a opened."""
        shape, width = tuple(x.shape), x.width
        pieces = self.draw(squared(shape, width))
        words = [as_words(shape, width)]
        if self.hollow:
            yield from self.opening("square", [], words)
            return self._made(shape, 2 * x.frac, width)
        (d,) = yield from self.opening("square", [x.share - pieces["a"]], words)
        z = pieces["c"] + 2 * d * pieces["a"]
        return Secret(z + d * d if self.rank == 0 else z, 2 * x.frac, width)

    def combining(
        self,
        operands: Sequence[Secret],
        monomials: Sequence[tuple[int, ...]],
        factors: Sequence[tuple[int, int]] | None = None,
    ) -> Play:
        """The sum of elementwise products of several operands each, broadcast, in one round.

        Operand i is d_i + m_i, with d_i opened and the products of masks dealt. All terms have
        the same fractional bits.

        Args:
            monomials: numbers of the operands that are multiplied.
            factors: a public one for each monomial: a ring element and its fractional bits.
        """
        factors = factors or [(1, 0)] * len(monomials)
        fracs = {
            sum(operands[i].frac for i in monomial) + more
            for monomial, (_, more) in zip(monomials, factors, strict=True)
        }
        if len(fracs) != 1:
            raise MpcacheError(f"terms of {sorted(fracs)} fractional bits cannot be added")
        (frac,), width = fracs, min(operand.width for operand in operands)
        shapes = [tuple(operand.shape) for operand in operands]
        kept = {i: x.mask for i, x in enumerate(operands) if isinstance(x, Kept)}
        pieces = self.draw(Monomials(shapes, monomials, kept, width))
        fresh = [i for i in range(len(operands)) if i not in kept]
        words = [as_words(shapes[i], width) for i in fresh]
        shape = tuple(broadcast(*shapes))
        if self.hollow:
            if fresh:
                yield from self.opening("combine", [], words)
            return self._made(shape, frac, width)
        hidden = [operands[i].share - pieces[f"m{i}"] for i in fresh]
        sums = (yield from self.opening("combine", hidden, words)) if fresh else []
        opened = dict(zip(fresh, sums, strict=True))
        for i, x in enumerate(operands):
            if isinstance(x, Kept):
                assert x.mask is not None
                opened[i], pieces[f"m{i}"] = x.opened, x.mask
        total: Any = 0
        for monomial, (factor, _) in zip(monomials, factors, strict=True):
            total = total + factor * _expanded(sorted(monomial), opened, pieces, self.rank)
        return Secret(total.expand(shape), frac, width)


def _expanded(
    monomial: Sequence[int], opened: Mapping[int, torch.Tensor], pieces: Pieces, rank: int
) -> torch.Tensor:
    """A party's share of the product of all d_i + m_i."""
    total: Any = 0
    for chosen in range(1 << len(monomial)):
        part = [i for place, i in enumerate(monomial) if chosen >> place & 1]
        if not part and rank != 0:
            continue
        value: Any = pieces["m" + ".".join(map(str, part))] if part else 1
        for place, i in enumerate(monomial):
            if not chosen >> place & 1:
                value = value * opened[i]
        total = total + value
    return total


def _matmul(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """x @ y by the compiled ring product where the leading dimensions agree."""
    if x.ndim == y.ndim and x.shape[:-2] == y.shape[:-2] and x.numel() and y.numel():
        return ring_product(x, y)
    return torch.matmul(x, y)


def _known(value: torch.Tensor | None, shape: tuple[int, ...]) -> torch.Tensor:
    if value is None or tuple(value.shape) != shape:
        raise MpcacheError(f"this party has no weight of shape {list(shape)}")
    return value


def _compact(value: torch.Tensor) -> torch.Tensor:
    """The same integers in 16 or 32 bits where they fit."""
    low, high = value.aminmax()
    for dtype in (torch.int16, torch.int32):
        if low >= torch.iinfo(dtype).min and high <= torch.iinfo(dtype).max:
            return value.to(dtype)
    return value


def no_mask() -> torch.Tensor:
    raise MpcacheError("only the dealer knows a weight's mask")
