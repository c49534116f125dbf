"""The suite `dealer`: two parties, correlated randomness from a dealer that is not online.

Secure against a semi-honest party as long as no two of {party 0, party 1, dealer} collude. Party 0
owns the weights and works with them in the clear; party 1 never learns them.
"""

from __future__ import annotations

import itertools
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

import torch

from mpcache.errors import MpcacheError
from mpcache.kernels import dcf
from mpcache.kernels.ring import ring_product
from mpcache.kernels.tally import tally
from mpcache.protocols.channel import Spec
from mpcache.protocols.correlation import (
    DIGIT,
    Borrow,
    Correlation,
    Exponents,
    Group,
    Lookup,
    MaskedProduct,
    OneHot,
    PairSigns,
    Pieces,
    Positive,
    Signs,
    Squared,
    Steps,
    Triple,
    Truncated,
    joined,
    logical_shift,
    storage,
)
from mpcache.protocols.operation import Suite
from mpcache.protocols.secret import Kept, Secret
from mpcache.protocols.setting import Setting
from mpcache.protocols.tokens import Tokens

Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Specs = tuple[Sequence[Spec], Sequence[Spec]]
Messages = Callable[[], list[torch.Tensor]]
ROOM = 1 << 62  # |x| stays below this before a truncation
EXP_FRAC, EXP_WINDOW = 14, 4  # exp reads 14 fractional bits in a window of 2^4
EXP_PAYLOAD, EXP_FACTOR = 20, 40  # fractional bits of the dealt and the public factor


class OwnedWeight(Secret):
    """A weight matrix that party 0 holds in the clear.

    `share` is W at party 0, in 16 or 32 bits where they suffice, and W - B at party 1; `mask`
    yields B at the dealer.
    """

    __slots__ = ("mask",)

    def __init__(self, share: torch.Tensor, frac: int, mask: Callable[[], torch.Tensor]) -> None:
        self.share, self.frac, self.mask = share, frac, mask


class DealerSuite(Suite):
    """What all readings of the suite have in common: each primitive's correlation and messages.

    Subclasses (`dealer_roles`) run it (`OnlineDealer`), count it (`CountingDealer`) or deal for it
    (`Dealing`).
    Where `hollow`, secrets have no data and only shapes are followed.
    """

    name: ClassVar[str] = "dealer"
    hollow: ClassVar[bool]
    rank: int

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    @abstractmethod
    def draw(self, correlation: Correlation) -> Pieces:
        """This party's pieces of the next correlation; nothing where hollow."""

    @abstractmethod
    def trade(self, kind: str, sent: Specs, messages: Messages) -> list[torch.Tensor]:
        """Send `messages` to the peer and return its own; nothing where hollow.

        Args:
            sent: what each party sends, by rank.
        """

    def swap(self, kind: str, specs: Sequence[Spec], messages: Messages) -> list[torch.Tensor]:
        """As `trade`, where both send alike."""
        return self.trade(kind, (specs, specs), messages)

    @abstractmethod
    def pass_on(
        self, kind: str, source: int, specs: Sequence[Spec], messages: Messages
    ) -> list[torch.Tensor]:
        """Send `messages` from `source` to its peer, who gets them; nothing elsewhere."""

    def _made(self, shape: Sequence[int], frac: int) -> Secret:
        return Secret(torch.empty(tuple(shape), dtype=torch.int64, device="meta"), frac)

    def _open(self, kind: str, hidden: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Both parties learn the sums of what they hold."""
        own = list(hidden)
        got = self.swap(kind, [Spec.of(tensor) for tensor in own], lambda: own)
        return [mine + theirs for mine, theirs in zip(own, got, strict=True)]

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

    def matrix(self, value: torch.Tensor | None, shape: tuple[int, ...], frac: int) -> Secret:
        """A weight for products: party 0 sends W - B once, party 1 keeps it."""
        mask = self.weight_mask(shape)
        got = self.pass_on("weight", 0, [Spec(shape)], lambda: [_known(value, shape) - mask()])
        if self.hollow:
            return OwnedWeight(self._made(shape, frac).share, frac, mask)
        kept = _compact(_known(value, shape)) if self.rank == 0 else got[0]
        return OwnedWeight(kept, frac, _no_mask)

    def weight_mask(self, shape: tuple[int, ...]) -> Callable[[], torch.Tensor]:
        """How to get the next weight's mask B: from party 0's seed, by the weight's number."""
        return _no_mask

    def open(self, x: Secret, to: int | None, why: str) -> torch.Tensor | None:
        self.opened(why, "everyone" if to is None else "client", x.share.numel())
        spec = [Spec(tuple(x.shape))]
        if to is None:
            got = self.swap("open", spec, lambda: [x.share])
        else:
            got = self.pass_on("open", 1 - to, spec, lambda: [x.share])
        if self.hollow or not got:
            return None
        return x.share + got[0]

    @abstractmethod
    def opened(self, why: str, to: str, values: int) -> None:
        """Note an opening in the ledger."""

    def shift(self, x: Secret, public: torch.Tensor) -> Secret:
        if self.hollow:
            return self._made(torch.broadcast_shapes(x.shape, public.shape), x.frac)
        share, public = torch.broadcast_tensors(x.share, public)
        return Secret(share + public if self.rank == 0 else share, x.frac)

    # --- products ------------------------------------------------------------------------------

    def multiply(self, x: Secret, y: Secret) -> Secret:
        shape = tuple(torch.broadcast_shapes(x.shape, y.shape))
        return self._beaver("multiply", torch.mul, x, y, shape)

    def matmul(self, x: Secret, y: Secret, width: int = 64) -> Secret:
        batch = torch.broadcast_shapes(x.shape[:-2], y.shape[:-2])
        shape = (*batch, x.shape[-2], y.shape[-1])
        if isinstance(y, OwnedWeight):
            return self._owned(x, y, shape)
        return self._beaver("matmul", _matmul, x, y, shape, width)

    def coarse(self, x: Secret, frac: int) -> Secret:
        """x without its bits below 2^-frac, off by one unit at most.

        Each party shifts its own share: the shares count modulo 2^(64 - dropped bits) from then
        on, so that the result is for products of that `width`, tables and comparisons alone.
        """
        drop = x.frac - frac
        return Secret(logical_shift(x.share, drop), frac) if drop > 0 else x

    def keep(self, x: Secret) -> Secret:
        """Open x - B once."""
        if isinstance(x, Kept):
            return x
        mask = self.kept_mask(tuple(x.shape))
        if self.hollow:
            self.swap("keep", [Spec(tuple(x.shape))], list)
            return Kept(self._made(x.shape, x.frac).share, mask, x.frac, -1)
        assert mask is not None
        (opened,) = self._open("keep", [x.share - mask])
        return Kept(opened, mask, x.frac, self.rank)

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
        width: int = 64,
    ) -> Secret:
        """[z] = [c] + d [b] + [a] e + d e, with d = x - a and e = y - b opened.

        An operand that was kept is open already. All of it counts modulo 2^width.
        """
        frac = x.frac + y.frac
        operands = {"x": x, "y": y}
        kept = {name: value for name, value in operands.items() if isinstance(value, Kept)}
        masks = [kept[name].mask if name in kept else None for name in operands]
        shapes = (tuple(x.shape), tuple(y.shape), shape)
        t = self.draw(Triple(product, *shapes, "".join(kept), masks[0], masks[1], width))
        fresh = [name for name in operands if name not in kept]
        if self.hollow:
            if fresh:
                specs = [Spec(tuple(operands[name].shape), storage(width)) for name in fresh]
                self.swap(kind, specs, list)
            return self._made(shape, frac)
        own = {name: t["a" if name == "x" else "b"] for name in fresh}
        own |= {name: value.mask for name, value in kept.items() if value.mask is not None}
        opened = {name: value.opened for name, value in kept.items()}
        if fresh:
            hidden = [(operands[name].share - own[name]).to(storage(width)) for name in fresh]
            hidden = [sums.to(torch.int64) for sums in self._open(kind, hidden)]
            opened |= dict(zip(fresh, hidden, strict=True))
        d, e = opened["x"], opened["y"]
        a, b = own["x"], own["y"]
        if self.rank == 0:  # d e, joined to the smaller operand
            a, b = (a + d, b) if d.numel() <= e.numel() else (a, b + e)
        z = t["c"] + product(d, b)
        z += product(a, e)
        return Secret(z, frac)

    def _owned(self, x: Secret, weight: OwnedWeight, shape: tuple[int, ...]) -> Secret:
        """One message of activation size, from party 1 to party 0.

        1. Party 1 sends x1 - a.
        2. Party 0 computes (x0 + x1 - a) W + c0, party 1 a (W - B) + c1, where c0 + c1 = a B.
        """
        pieces = self.draw(MaskedProduct(tuple(x.shape), shape, weight.mask, ring_product))
        got = self.pass_on("masked", 1, [Spec(tuple(x.shape))], lambda: [x.share - pieces["a"]])
        frac = x.frac + weight.frac
        if self.hollow:
            return self._made(shape, frac)
        left = x.share + got[0] if self.rank == 0 else pieces["a"]
        return Secret(ring_product(left, weight.share) + pieces["c"], frac)

    def square(self, x: Secret) -> Secret:
        """[x^2] = [c] + 2 d [a] + d^2, with d = x - a opened."""
        pieces = self.draw(Squared(tuple(x.shape)))
        if self.hollow:
            self.swap("square", [Spec(tuple(x.shape))], list)
            return self._made(x.shape, 2 * x.frac)
        (d,) = self._open("square", [x.share - pieces["a"]])
        z = pieces["c"] + 2 * d * pieces["a"]
        return Secret(z + d * d if self.rank == 0 else z, 2 * x.frac)

    def truncate(self, x: Secret, bits: int) -> Secret:
        """Exact to one unit for |x| < 2^62 ring units, with no chance of more.

        1. Open y = x + 2^62 + r.
        2. y >> bits, less the shares of r >> bits; where the addition wrapped (r has its top bit
           and y has not) add 2^(64 - bits); less 2^(62 - bits).
        """
        shape, frac = tuple(x.shape), x.frac - bits
        pieces = self.draw(Truncated(shape, bits))
        if self.hollow:
            self.swap("truncate", [Spec(shape)], list)
            return self._made(shape, frac)
        (y,) = self._open("truncate", [self._roomy(x, pieces)])
        return self._cut(y, pieces, bits, frac)

    def _roomy(self, x: Secret, pieces: Pieces) -> torch.Tensor:
        hidden = x.share + pieces["r"]
        return hidden + ROOM if self.rank == 0 else hidden

    def _cut(self, y: torch.Tensor, pieces: Pieces, bits: int, frac: int) -> Secret:
        """What an opened y = x + 2^62 + r says of x without its low bits."""
        z = pieces["top"] * ((1 - logical_shift(y, 63)) << (64 - bits)) - pieces["high"]
        if self.rank == 0:
            z += logical_shift(y, bits) - (1 << (62 - bits))
        return Secret(z, frac)

    # --- comparison ----------------------------------------------------------------------------

    def negative(self, x: Secret, magnitude: int = 15, keep: int = 16, width: int = 64) -> Secret:
        """1 where x < 0, for |x| < 2^magnitude, told apart to 2^-keep (exactly where x has no
        more fractional bits). The shares of the result count modulo 2^width.

        1. Each party drops the bits below 2^-keep of its share and reduces to b bits.
        2. Open y = x + r on b bits. For each digit, tables dealt for it hold [y_d < r_d] and
           [y_d == r_d] as bit shares; nodes join three digits in a round each.
        3. A table of ring shares, read at the last opened bits, gives [x < 0], flipped where y's
           top bit is set.
        """
        drop = max(0, x.frac - keep)
        bits = min(magnitude + x.frac - drop + 1, 64 - max(drop, 1))
        made = self._borrow(x, drop, bits, Signs(tuple(x.shape), bits, width))
        if made is None:
            return self._made(x.shape, 0)
        (value,), y, _ = made
        flipped = (y >> (bits - 1)) & 1
        result = value * (1 - 2 * flipped)
        return Secret(result + flipped if self.rank == 0 else result, 0)

    def pairs_negative(
        self, x: Secret, magnitude: int = 15, keep: int = 16, width: int = 64
    ) -> Secret:
        """[x_i < x_j] for all pairs i < j of the last dimension [n], row by row: [..., pairs].

        As `negative` on the differences, |x_i - x_j| < 2^magnitude, but x is cut to 2^-keep first,
        so that all results agree on one order, and y = x + r is opened for n elements: a pair's
        is a difference of two.
        """
        drop = max(0, x.frac - keep)
        bits = min(magnitude + x.frac - drop + 1, 64 - max(drop, 1))
        correlation = PairSigns(tuple(x.shape), bits, width)
        made = self._borrow(x, drop, bits, correlation)
        if made is None:
            return self._made(correlation.shape, 0)
        (value,), y, _ = made
        flipped = (y >> (bits - 1)) & 1
        result = value * (1 - 2 * flipped)
        return Secret(result + flipped if self.rank == 0 else result, 0)

    def positive(self, x: Secret, magnitude: int = 15) -> Secret:
        """max(x, 0) for |x| < 2^magnitude, brought to the setting's fractional bits on the way.

        1. As `negative`, on x cut to those bits: y = x + r opened.
        2. The last table holds [x >= 0] and [x >= 0] times what x is beside y: no product.
        """
        drop = max(0, x.frac - self.setting.frac)
        bits = min(magnitude + x.frac - drop + 1, 64 - max(drop, 1))
        made = self._borrow(x, drop, bits, Positive(tuple(x.shape), bits))
        if made is None:
            return self._made(x.shape, x.frac - drop)
        (shown, moved, every), y, _ = made
        low = y & ((1 << (bits - 1)) - 1)
        flipped = (y >> (bits - 1)) & 1
        clear = shown * low + moved
        # a set top bit of y turns [x >= 0] around
        other = (low if self.rank == 0 else torch.zeros_like(low)) - shown * low + every - moved
        return Secret(torch.where(flipped == 0, clear, other), x.frac - drop)

    def exp(self, x: Secret) -> Secret:
        """exp(x) for x in [-15, 1), and 0 outside, without a product of secrets.

        1. u = x + 15 on 24 bits, 14 of them fractional, |x| < 2^9; open y = u + r.
        2. exp(x) = exp(y - 15) exp(-r), times exp(16) where y wrapped: the dealt payload holds
           the last two factors for both cases, and the borrow [y < r] on 18 bits chooses; the
           digit above them tells whether u is in [0, 16).

        20 fractional bits in the payload and 40 in the public factor keep every case within
        2^-17. The result has 60 fractional bits.
        """
        drop, window = max(0, x.frac - EXP_FRAC), EXP_FRAC + EXP_WINDOW
        moved = self.shift(x, torch.tensor(15 << x.frac))
        correlation = Exponents(tuple(x.shape), window, EXP_FRAC, EXP_PAYLOAD)
        made = self._borrow(moved, drop, window + DIGIT, correlation)
        if made is None:
            return self._made(x.shape, EXP_PAYLOAD + EXP_FACTOR)
        (value,), _, low = made
        factor = torch.exp(low.to(torch.float64) / 2.0**EXP_FRAC - 15)
        factor = torch.round(factor * 2.0**EXP_FACTOR).to(torch.int64)
        return Secret(value * factor, EXP_PAYLOAD + EXP_FACTOR)

    def lookup(
        self, x: Secret, keep: int, bits: int, tables: torch.Tensor, cut: int = 0
    ) -> tuple[list[Secret], Secret]:
        """Public tables [tables, 2^bits] at floor(x 2^keep) mod 2^bits, and x cut by `cut` bits.

        One round for all. The index may come out one too low. Entries are ring elements; the
        results say `setting.frac` bits.
        """
        drop, shape, frac = x.frac - keep, tuple(x.shape), self.setting.frac
        pieces = self.draw(Lookup(shape, bits, tables))
        trimmed = self.draw(Truncated(shape, cut)) if cut else {}
        if self.hollow:
            self.swap("lookup", [Spec(shape, _narrow(bits))] + [Spec(shape)] * bool(cut), list)
            return [self._made(shape, frac) for _ in tables], self._made(shape, x.frac - cut)
        own = logical_shift(x.share, drop) if drop else x.share
        hidden = [(own + pieces["r"]).to(_narrow(bits))]
        opened = self._open("lookup", hidden + ([self._roomy(x, trimmed)] if cut else []))
        y = opened[0].to(torch.int64) & ((1 << bits) - 1)
        index = y.expand(1, len(tables), *y.shape)
        found = pieces["turned"].gather(0, index).squeeze(0)
        moved = self._cut(opened[1], trimmed, cut, x.frac - cut) if cut else x
        return [Secret(row, frac) for row in found], moved

    def steps(self, x: Secret, thresholds: torch.Tensor, bits: int = 63) -> tuple[Secret, Secret]:
        """[x >= t] without fractional bits, and [x >= t] x, for each of the thresholds.

        Exact for |x| and |x - t| below 2^bits ring units. One round; party 1 passes the key on.

        Args:
            thresholds: public ring elements [steps].

        Returns:
            Both [..., steps].
        """
        correlation = Steps(tuple(x.shape), bits)
        pieces, shape = self.draw(correlation), (*x.shape, len(thresholds))
        y_spec, key_spec = Spec(tuple(x.shape)), Spec(correlation.pieces[-1].shape)
        specs = ([y_spec], [y_spec, key_spec])
        if self.hollow:
            self.trade("steps", specs, list)
            return self._made(shape, 0), self._made(shape, x.frac)
        hidden = x.share + pieces["r"]
        own = [hidden] if self.rank == 0 else [hidden, pieces["key"]]
        got = self.trade("steps", specs, lambda: own)
        y = (hidden + got[0]).unsqueeze(-1)
        key = got[1] if self.rank == 0 else pieces["key"]
        u = y - thresholds
        paid = dcf.evaluate(
            self.rank,
            pieces[f"root{self.rank}"].reshape(-1, dcf.SEED_WORDS),
            key.reshape(-1, key.shape[-1]),
            (u & ((1 << bits) - 1)).reshape(-1, len(thresholds)),
            bits,
            Steps.WORDS,
        ).reshape(*shape, Steps.WORDS)
        below = pieces["top"].unsqueeze(-1) + paid[..., 0]
        below_r = pieces["topped"].unsqueeze(-1) + paid[..., 1]
        one, r = int(self.rank == 0), pieces["r"].unsqueeze(-1)
        top = (u >> bits) & 1 == 1  # there [x < t] is turned around
        reached = torch.where(top, below, one - below)
        reached_r = torch.where(top, below_r, r - below_r)
        return Secret(reached, 0), Secret(y * reached - reached_r, x.frac)

    def one_hot(self, x: Secret, keep: int, bits: int, width: int = 64) -> Secret:
        """[floor(x 2^keep) mod 2^bits == j] as [2^bits, ...] without fractional bits.

        The shares count modulo 2^width. The index may come out one too low where x has bits
        below 2^-keep.
        """
        turned = self._turned(x, keep, bits, width)
        if turned is None:
            return self._made((1 << bits, *x.shape), 0)
        row, y = turned
        index = (torch.arange(1 << bits) - y.unsqueeze(-1)) & ((1 << bits) - 1)
        return Secret(row.gather(-1, index).movedim(-1, 0).to(torch.int64), 0)

    def tally(
        self, x: Secret, keep: int, bits: int, visible: torch.Tensor | None, width: int = 64
    ) -> Secret:
        """How many of the last dimension are in each cell, as [2^bits, ...]: `one_hot`, summed.

        Args:
            visible: public 0/1 mask of those that count, broadcast to x, or None for all.
        """
        turned = self._turned(x, keep, bits, width)
        if turned is None:
            return self._made((1 << bits, *x.shape[:-1]), 0)
        return Secret(tally(*turned, visible), 0)

    def _turned(
        self, x: Secret, keep: int, bits: int, width: int
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Shares of the unit vectors of -r [..., 2^bits], and y = x + r; None where hollow."""
        drop = x.frac - keep
        pieces = self.draw(OneHot(tuple(x.shape), bits, width))
        if self.hollow:
            self.swap("one-hot", [Spec(tuple(x.shape), _narrow(bits))], list)
            return None
        own = logical_shift(x.share, drop) if drop else x.share
        (y,) = self._open("one-hot", [(own + pieces["r"]).to(_narrow(bits))])
        return pieces["row"], y.to(torch.int64) & ((1 << bits) - 1)

    def _borrow(
        self, x: Secret, drop: int, bits: int, correlation: Borrow
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor] | None:
        """The payload's shares [words, ...], y on `bits` bits and its low bits; None where hollow.

        The bits below `drop` are cut off first.
        """
        pieces = self.draw(correlation)
        cut, shape, narrow = correlation.cut, correlation.shape, _narrow(bits)
        if self.hollow:
            self.swap("compare", [Spec(tuple(x.shape), narrow)], list)
            for groups in cut.levels:
                self.swap("node", [Spec((len(joined(groups)), *shape), torch.uint8)], list)
            self.swap("last", [Spec(shape, torch.uint8)], list)
            return None
        own = logical_shift(x.share, drop) if drop else x.share
        (y,) = self._open("compare", [(own + pieces["r"]).to(narrow)])
        y = y.to(torch.int64) & ((1 << bits) - 1)
        if isinstance(correlation, PairSigns):
            y = correlation.differences(y)
        low = y & ((1 << cut.bits) - 1)
        digits = torch.stack([(low >> (DIGIT * d)) & (2**DIGIT - 1) for d in range(cut.digits)])
        less = list((pieces["less"] >> digits) & 1)
        equal = list((self._equal(pieces["less"]) >> digits) & 1)
        for level, groups in enumerate(cut.levels):
            less, equal = self._nodes(level, groups, less, equal, pieces)
        inputs = less[0] if cut.last.size == 1 else less[0] | less[1] << 1 | equal[1] << 2
        if correlation.near:
            above, digit = self._equal(pieces["above"]), y >> cut.bits
            for place, t in enumerate(correlation.near, cut.last.inputs):
                inputs = inputs | ((above >> ((digit - t) & (2**DIGIT - 1))) & 1) << place
        v = self._open_bits("last", inputs ^ pieces["mask"])
        index = v.expand(1, correlation.words, *shape)
        return pieces["last"].gather(0, index).squeeze(0), y, low

    def _equal(self, less: torch.Tensor) -> torch.Tensor:
        """From shares of the words [v < digit] those of the words [v == digit]."""
        turned = less ^ less << 1
        return turned ^ 1 if self.rank == 0 else turned

    def _nodes(
        self,
        level: int,
        groups: Sequence[Group],
        less: Sequence[torch.Tensor],
        equal: Sequence[torch.Tensor],
        pieces: Pieces,
    ) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
        """Join groups of digits' bit shares; groups of one pass through."""
        packed, begins = [], list(itertools.accumulate((g.size for g in groups), initial=0))
        for place, group in joined(groups):
            word, bit = torch.zeros_like(less[0]), 0
            for digit in range(begins[place], begins[place] + group.size):
                parts = (
                    (less[digit],) if digit == 0 and group.lowest else (less[digit], equal[digit])
                )
                for part in parts:
                    word |= part << bit
                    bit += 1
            packed.append(word ^ pieces[f"mask{level}.{place}"])
        opened = self._open_bits("node", torch.stack(packed))
        lesses, equals, node = [], [], 0
        for place, group in enumerate(groups):
            if group.size == 1:
                lesses.append(less[begins[place]])
                equals.append(equal[begins[place]])
                continue
            at, v = f"{level}.{place}", opened[node]
            lesses.append((pieces[f"less{at}"] >> v) & 1)
            equals.append(equal[0] if group.lowest else (pieces[f"equal{at}"] >> v) & 1)
            node += 1
        return lesses, equals

    def _open_bits(self, kind: str, own: torch.Tensor) -> torch.Tensor:
        """Both parties learn the XOR of bit words below 2^8."""
        small = own.to(torch.uint8)
        (theirs,) = self.swap(kind, [Spec.of(small)], lambda: [small])
        return (small ^ theirs).to(torch.int64)


def _narrow(bits: int) -> torch.dtype:
    """The smallest integers that hold `bits` bits on the wire."""
    return (
        torch.uint8
        if bits <= 8
        else torch.int16
        if bits <= 16
        else torch.int32
        if bits <= 32
        else torch.int64
    )


def _matmul(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """x @ y by the compiled ring product where the leading dimensions agree."""
    if x.ndim == y.ndim and x.shape[:-2] == y.shape[:-2] and x.numel() and y.numel():
        return ring_product(x, y)
    return torch.matmul(x, y)


def _known(value: torch.Tensor | None, shape: tuple[int, ...]) -> torch.Tensor:
    if value is None or tuple(value.shape) != shape:
        raise MpcacheError(f"the owner has no weight of shape {list(shape)}")
    return value


def _compact(value: torch.Tensor) -> torch.Tensor:
    """The same integers in 16 or 32 bits where they fit."""
    low, high = value.aminmax()
    for dtype in (torch.int16, torch.int32):
        if low >= torch.iinfo(dtype).min and high <= torch.iinfo(dtype).max:
            return value.to(dtype)
    return value


def _no_mask() -> torch.Tensor:
    raise MpcacheError("only the dealer knows a weight's mask")
