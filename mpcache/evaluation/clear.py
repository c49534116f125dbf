"""The suite `dealer` without shares: what two parties' shares add up to, worked out in one place.

A `Secret` holds the value itself. Products are exact, comparisons and tables read as many bits as
the parties', and what is random there is drawn here: how a truncation rounds, and which way the
shares' low bits carry. Nothing is secret, so the randomness is numpy's.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import numpy
import torch

from mpcache.errors import MpcacheError
from mpcache.protocols.channel import Spec
from mpcache.protocols.correlation import Correlation
from mpcache.protocols.dealer import DealerSuite
from mpcache.protocols.dealer_rounds import Messages, Specs
from mpcache.protocols.dealer_tables import (
    EXP_FACTOR,
    EXP_FRAC,
    EXP_PAYLOAD,
    EXP_TOP_FRAC,
    EXP_WINDOW,
    FAR,
    _compared,
)
from mpcache.protocols.pieces import Pieces
from mpcache.protocols.plays import Play
from mpcache.protocols.secret import Secret
from mpcache.protocols.setting import Setting

EXACT = 53  # bits of whole numbers that float64 holds


class Dice:
    """Uniform whole numbers: a party's randomness, for nothing that is secret."""

    def __init__(self, seed: int) -> None:
        self._generator = numpy.random.Generator(numpy.random.SFC64(seed))

    def ring(self, shape: Sequence[int]) -> torch.Tensor:
        return self._drawn(shape, "int64", -(1 << 63), 1 << 63)

    def bits(self, shape: Sequence[int], bits: int) -> torch.Tensor:
        """On `bits` bits below 64, int64 [shape]."""
        kind = "uint16" if bits <= 16 else "uint32" if bits <= 32 else "int64"
        return self._drawn(shape, kind, 0, 1 << bits).to(torch.int64)

    def branch(self, number: int) -> Dice:
        return Dice(number)

    def _drawn(self, shape: Sequence[int], kind: str, low: int, high: int) -> torch.Tensor:
        found = self._generator.integers(low, high, tuple(shape), dtype=kind)
        return torch.from_numpy(numpy.asarray(found).astype("int64", copy=False))


class Matrix(Secret):
    """A weight for products: ring elements in few bits, and in float64 once it is multiplied."""

    __slots__ = ("_exact", "largest", "ring")

    def __init__(self, ring: torch.Tensor, frac: int) -> None:
        self.largest = _largest(ring)
        fits = (kind for kind in _NARROW if self.largest < torch.iinfo(kind).max)
        self.ring, self.frac, self.width = ring.to(next(fits, torch.int64)), frac, 64
        self._exact: torch.Tensor | None = None

    @property
    def share(self) -> torch.Tensor:  # type: ignore[override]
        return self.ring.to(torch.int64)

    @property
    def shape(self) -> torch.Size:
        return self.ring.shape

    @property
    def exact(self) -> torch.Tensor:
        if self._exact is None:
            self._exact = self.ring.to(torch.float64)
        return self._exact


_NARROW = (torch.int16, torch.int32)


class ClearDealer(DealerSuite):
    """`DealerSuite` for one that holds whole values.

    A primitive that is not written out here runs as the parties' text does, with the whole of each
    correlation at party 0 and zeros at its peer; but for those whose keys need two holders.

    Attributes:
        lost: how many values were beyond what a truncation or a comparison reads. None should.
    """

    hollow = False
    rank = 0

    def __init__(self, setting: Setting, seed: int = 0) -> None:
        super().__init__(setting)
        self.dice = Dice(seed)
        self.lost = 0

    # --- one who is both parties ---------------------------------------------------------------

    def draw(self, correlation: Correlation) -> Pieces:
        whole = {}
        for piece in correlation.pieces:
            if not piece.dealt:
                bits = piece.bits
                drawn = (
                    self.dice.bits(piece.shape, bits) if bits < 64 else self.dice.ring(piece.shape)
                )
                whole[piece.name] = piece.held(drawn)
        wanted = correlation.complete(whole)
        for piece in correlation.pieces:
            if piece.dealt:
                value = wanted[piece.name].to(torch.int64)
                low = value & ((1 << piece.bits) - 1) if piece.bits < 64 else value
                whole[piece.name] = piece.held(low)
        return whole

    def trade(self, kind: str, sent: Specs, messages: Messages) -> list[torch.Tensor]:
        return [torch.zeros(spec.shape, dtype=spec.dtype) for spec in sent[1]]

    def pass_on(
        self, kind: str, source: int, specs: Sequence[Spec], messages: Messages
    ) -> list[torch.Tensor]:
        raise MpcacheError(f"nobody is there to pass {kind} on to")

    def opened(self, why: str, to: str, values: int) -> None:
        return None

    def kept_mask(self, shape: tuple[int, ...]) -> torch.Tensor | None:
        return torch.zeros(shape, dtype=torch.int64)

    # --- values in and out ---------------------------------------------------------------------

    def share(
        self, value: torch.Tensor | None, shape: tuple[int, ...], frac: int, source: int
    ) -> Secret:
        return Secret(_given(value, shape), frac)

    def matrix(self, value: torch.Tensor | None, shape: tuple[int, ...], frac: int) -> Secret:
        return Matrix(_given(value, shape), frac)

    def open(self, x: Secret, to: int | None, why: str) -> torch.Tensor | None:
        return whole(x)

    def keeping(self, x: Secret) -> Play:
        return _done(x)

    # --- products: exact -----------------------------------------------------------------------

    def multiplying(self, x: Secret, y: Secret) -> Play:
        return _done(Secret(x.share * y.share, x.frac + y.frac, min(x.width, y.width)))

    def squaring(self, x: Secret) -> Play:
        return _done(Secret(x.share * x.share, 2 * x.frac, x.width))

    def multiplying_matrices(self, x: Secret, y: Secret, width: int = 64) -> Play:
        exact = y.exact if isinstance(y, Matrix) else whole(y).to(torch.float64)
        largest = y.largest if isinstance(y, Matrix) else _largest(exact)
        total = _product(whole(x), exact, largest)
        return _done(Secret(total, x.frac + y.frac, min(width, x.width, y.width)))

    def combining(
        self,
        operands: Sequence[Secret],
        monomials: Sequence[tuple[int, ...]],
        factors: Sequence[tuple[int, int]] | None = None,
    ) -> Play:
        terms = []
        for monomial, (factor, more) in zip(
            monomials, factors or [(1, 0)] * len(monomials), strict=True
        ):
            product: torch.Tensor | int = factor
            for i in monomial:
                product = product * operands[i].share
            terms.append(product)
            frac = more + sum(operands[i].frac for i in monomial)
        width = min(operand.width for operand in operands)
        return _done(Secret(torch.as_tensor(sum(terms)), frac, width))

    # --- dropping bits: at random, as the shares have it ---------------------------------------

    def coarse(self, x: Secret, frac: int) -> Secret:
        drop = x.frac - frac
        return Secret(self._dropped(x, drop), frac, x.width - drop) if drop > 0 else x

    def _dropped(self, x: Secret, drop: int) -> torch.Tensor:
        """x >> drop, or one less: each share loses its low bits, and with them their carry."""
        value = whole(x)
        return (value - self.dice.bits(x.shape, drop)) >> drop if drop else value

    def truncating(self, x: Secret, bits: int, width: int = 64) -> Play:
        """x >> bits, or one more with the odds of what is cut off; beyond its ring it wraps."""
        value, limit = whole(x), 1 << (x.width - 2)
        if _largest(value) >= limit:
            self.lost += int((value.abs() >= limit).sum())
        return _done(Secret((value + self._cut_off(x, bits)) >> bits, x.frac - bits, width))

    def _cut_off(self, x: Secret, bits: int) -> torch.Tensor | int:
        return self.dice.bits(x.shape, bits) if bits else 0

    # --- comparison ----------------------------------------------------------------------------

    def _read(self, x: Secret, drop: int, bits: int) -> torch.Tensor:
        """x without its low bits, as what the low `bits` of the rest say; others are lost."""
        value = self._dropped(x, drop)
        read = _signed(value, bits)
        self.lost += int((read != value).sum())
        return read

    def comparing(self, x: Secret, magnitude: int = 15, keep: int = 16, width: int = 64) -> Play:
        value = self._read(x, *_compared(x, magnitude, keep))
        return _done(Secret((value < 0).to(torch.int64), 0, width))

    def pairs_negative(
        self, x: Secret, magnitude: int = 15, keep: int = 16, width: int = 64
    ) -> Secret:
        drop, bits = _compared(x, magnitude, keep)
        value = self._dropped(x, drop)
        first, second = torch.triu_indices(x.shape[-1], x.shape[-1], 1)
        between = value.index_select(-1, first) - value.index_select(-1, second)
        read = _signed(between, bits)
        self.lost += int((read != between).sum())
        return Secret((read < 0).to(torch.int64), 0, width)

    def is_zero(self, x: Secret, bits: int, width: int = 64) -> Secret:
        return Secret((x.share & ((1 << bits) - 1) == 0).to(torch.int64), 0, width)

    def positive(self, x: Secret, magnitude: int = 15, width: int = 64) -> tuple[Secret, Secret]:
        value = self._read(x, *_compared(x, magnitude, self.setting.frac))
        frac = min(x.frac, self.setting.frac)
        upper = value.clamp(min=0)
        return Secret(upper, frac, width), Secret(value - upper, frac, width)

    def stepping(self, x: Secret, thresholds: torch.Tensor, bits: int = 63) -> Play:
        value, bits = whole(x).unsqueeze(-1), min(bits, x.width - 1)
        reached = 1 - (((value - thresholds) >> bits) & 1)
        self.lost += int((reached != (value >= thresholds)).sum())
        return _done((Secret(reached, 0), Secret(reached * value, x.frac, x.width)))

    # --- tables --------------------------------------------------------------------------------

    def exponentiating(self, x: Secret) -> Play:
        """The text's two factors at a hidden place r: their rounding is all that is off."""
        drop, window = max(0, x.frac - EXP_FRAC), EXP_FRAC + EXP_WINDOW
        moved = Secret(x.share + (15 << x.frac), x.frac, x.width)
        value = self._read(moved, drop, min(x.width - drop, window + FAR + 2))
        r = self.dice.bits(x.shape, window)
        low = (value + r) & ((1 << window) - 1)
        wrapped = (low < r).to(torch.int64)
        payload, factor = _exponents(window)
        found = payload[(wrapped << window) + r] * factor[low]
        frac = EXP_PAYLOAD + EXP_FACTOR
        top = round(math.e * 2**EXP_TOP_FRAC) << (frac - EXP_TOP_FRAC)
        outside = torch.where(value < 0, 0, top)
        return _done(Secret(torch.where(value >> window == 0, found, outside), frac))

    def clamp(self, x: Secret, keep: int, bits: int, width: int = 0, far: int = FAR) -> Secret:
        drop = x.frac - keep
        value = self._read(x, drop, min(x.width - drop, bits + far))
        return Secret(value.clamp(0, (1 << bits) - 1), 0, width or bits)

    def looking_up(
        self, x: Secret, keep: int, bits: int, tables: torch.Tensor, cut: int = 0
    ) -> Play:
        index = self._index(x, keep, bits)
        found = [Secret(table[index], self.setting.frac) for table in tables]
        moved = self.play(self.truncating(x, cut)) if cut else x
        return _done((found, moved))

    def _index(self, x: Secret, keep: int, bits: int) -> torch.Tensor:
        return self._dropped(x, x.frac - keep) & ((1 << bits) - 1)

    def one_hot(self, x: Secret, keep: int, bits: int, width: int = 64) -> Secret:
        cells = torch.arange(1 << bits).reshape(-1, *[1] * x.ndim)
        return Secret((self._index(x, keep, bits) == cells).to(torch.int64), 0, width)

    def tally(
        self, x: Secret, keep: int, bits: int, visible: torch.Tensor | None, width: int = 64
    ) -> Secret:
        index = self._index(x, keep, bits)
        ones = torch.ones((), dtype=torch.int64) if visible is None else visible.to(torch.int64)
        counts = torch.zeros(*x.shape[:-1], 1 << bits, dtype=torch.int64)
        counts.scatter_add_(-1, index, ones.expand(index.shape))
        return Secret(counts.movedim(-1, 0), 0, width)


def whole(x: Secret) -> torch.Tensor:
    """The value in ring units: what is above its width is no part of it."""
    return _signed(x.share, x.width)


def _signed(value: torch.Tensor, bits: int) -> torch.Tensor:
    """What the low `bits` bits stand for in two's complement."""
    return value if bits == 64 else value << (64 - bits) >> (64 - bits)


def _done(value: object) -> Play:
    """A play that sends nothing."""
    return value
    yield []


@functools.cache
def _exponents(window: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The dealt factor for each r, then for each r where y wrapped; the public one for each y."""
    places = torch.arange(1 << window).to(torch.float64) / 2.0**EXP_FRAC
    payload = [torch.exp(-places) * whole for whole in (1.0, math.exp(2.0**EXP_WINDOW))]
    found = torch.round(torch.cat(payload) * 2.0**EXP_PAYLOAD).to(torch.int64)
    return found, torch.round(torch.exp(places - 15) * 2.0**EXP_FACTOR).to(torch.int64)


def _given(value: torch.Tensor | None, shape: tuple[int, ...]) -> torch.Tensor:
    if value is None or tuple(value.shape) != shape:
        raise MpcacheError(f"there is no value of shape {list(shape)}")
    return value


def _largest(tensor: torch.Tensor) -> float:
    if not tensor.numel():
        return 0.0
    low, high = tensor.aminmax()
    return max(-float(low), float(high))


def _product(x: torch.Tensor, w: torch.Tensor, largest: float) -> torch.Tensor:
    """x @ w modulo 2^64, exactly, through float64.

    Where a sum might not fit into float64, x is cut in two, or w.

    Args:
        x: int64 [.., rows, inputs]. w: whole numbers in float64 [.., inputs, outputs].
        largest: the greatest |w|.
    """
    exact = x.to(torch.float64)
    total = float(exact.abs().sum(-1).max()) if x.numel() else 0.0
    if total * largest < 2.0**EXACT and total < 2.0**EXACT:
        return torch.matmul(exact, w).to(torch.int64)
    room = EXACT - 1 - math.ceil(math.log2(max(largest, 1.0) * x.shape[-1]))
    if room >= 8:
        low = x & ((1 << room) - 1)
        high = _product((x - low) >> room, w, largest)
        return (high << room) + torch.matmul(low.to(torch.float64), w).to(torch.int64)
    whole = w.to(torch.int64)
    low = whole & ((1 << 20) - 1)
    high = _product(x, ((whole - low) >> 20).to(torch.float64), largest / 2**20 + 1)
    return (high << 20) + _product(x, low.to(torch.float64), 2.0**20)
