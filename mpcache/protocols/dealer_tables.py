"""What suite `dealer` reads from tables: comparisons, exp, public functions, one-hot rows."""

from __future__ import annotations

import functools
import math
from collections.abc import Generator
from typing import Any

import torch

from mpcache.errors import MpcacheError
from mpcache.kernels import dcf
from mpcache.kernels.questions import answers, joined, outputs
from mpcache.kernels.tally import tally
from mpcache.protocols.correlation import Lookup, Steps, logical_shift, one_hots, stairs
from mpcache.protocols.dealer_cuts import Cuts
from mpcache.protocols.digits import (
    Digits,
    PairSigns,
    clamped,
    exponents,
    pair_signs,
    positives,
    signs,
    zeros,
)
from mpcache.protocols.exact import ExpTable
from mpcache.protocols.plays import Answers, Ask, Asks, Play, side_by_side
from mpcache.protocols.secret import Secret
from mpcache.protocols.wire import as_words

EXP_FRAC, EXP_WINDOW = 14, 4  # exp reads 14 fractional bits in a window of 2^4
EXP_PAYLOAD, EXP_FACTOR = 20, 40  # fractional bits of the dealt and the public factor
EXP_TOP_FRAC = 4  # of what exp says above its window
FAR = 12  # bits above a window that a value outside of it may take


class Tables(Cuts):
    """Primitives that open y = x + r and read what is dealt for r at the digits of y."""

    # --- comparison ----------------------------------------------------------------------------

    def negative(self, x: Secret, magnitude: int = 15, keep: int = 16, width: int = 64) -> Secret:
        return self.play(self.comparing(x, magnitude, keep, width))

    def comparing(self, x: Secret, magnitude: int = 15, keep: int = 16, width: int = 64) -> Play:
        """1 where x < 0, for |x| < 2^magnitude, told apart to 2^-keep (exactly where x has no
        more fractional bits). The shares of the result count modulo 2^width.

        1. Each party drops the bits below 2^-keep of its share and reduces to b bits.
        2. Open y = x + r on b bits. For each digit, tables dealt for it hold [y_d < r_d] and
           [y_d == r_d] as bit shares; nodes join digits in a round each.
        3. A table of ring shares, read at the last opened bits, gives [x < 0], flipped where y's
           top bit is set.
        """
        drop, bits = _compared(x, magnitude, keep)
        correlation = signs(tuple(x.shape), bits, self.setting.profile, width)
        made = yield from self._reading("compare", x, drop, bits, correlation)
        if made is None:
            return self._made(x.shape, 0, width)
        (value,), y = made
        return self._flipped(value, y, bits, width)

    def _flipped(self, value: torch.Tensor, y: torch.Tensor, bits: int, width: int) -> Secret:
        """A bit's shares, turned around where the top bit of y is set."""
        flipped = (y >> (bits - 1)) & 1
        result = value * (1 - 2 * flipped)
        return Secret(result + flipped if self.rank == 0 else result, 0, width)

    def pairs_negative(
        self, x: Secret, magnitude: int = 15, keep: int = 16, width: int = 64
    ) -> Secret:
        """[x_i < x_j] for all pairs i < j of the last dimension [n], row by row: [..., pairs].

        As `negative` on the differences, |x_i - x_j| < 2^magnitude, but x is cut to 2^-keep first,
        so that all results agree on one order, and y = x + r is opened for n elements: a pair's
        is a difference of two.
        """
        drop, bits = _compared(x, magnitude, keep)
        correlation = pair_signs(tuple(x.shape), bits, self.setting.profile, width)
        made = self.play(self._reading("compare", x, drop, bits, correlation))
        if made is None:
            return self._made(correlation.shape, 0, width)
        (value,), y = made
        return self._flipped(value, y, bits, width)

    def is_zero(self, x: Secret, bits: int, width: int = 64) -> Secret:
        """1 where x, without fractional bits, is 0 modulo 2^bits."""
        correlation = zeros(tuple(x.shape), bits, self.setting.profile, width)
        made = self.play(self._reading("compare", x, 0, bits, correlation))
        if made is None:
            return self._made(x.shape, 0, width)
        return Secret(made[0][0], 0, width)

    def positive(self, x: Secret, magnitude: int = 15, width: int = 64) -> tuple[Secret, Secret]:
        """max(x, 0) and min(x, 0) for |x| < 2^magnitude, brought to the setting's fractional bits.

        1. As `negative`, on x cut to those bits: y = x + r opened.
        2. The last table holds [x >= 0] and [x >= 0] times what x is beside y: no product.
        """
        drop, bits = _compared(x, magnitude, self.setting.frac)
        correlation = positives(tuple(x.shape), bits, self.setting.profile, width)
        made = self.play(self._reading("compare", x, drop, bits, correlation))
        frac = min(x.frac, self.setting.frac)
        if made is None:
            return self._made(x.shape, frac, width), self._made(x.shape, frac, width)
        (shown, moved, every), y = made
        half = 1 << (bits - 1)
        low, flipped = y & (half - 1), y >= half
        public = low if self.rank == 0 else torch.zeros_like(low)
        # x is what low + every says, less half where the top bit of y and of r + borrow differ
        clear = shown * low + moved
        other = public - shown * low + every - moved
        upper = torch.where(flipped, other, clear)
        one = torch.ones_like(low) if self.rank == 0 else torch.zeros_like(low)
        sign = torch.where(flipped, shown, one - shown)  # [x < 0]
        whole = public + every - sign * half
        return Secret(upper, frac, width), Secret(whole - upper, frac, width)

    def _reading(
        self, kind: str, x: Secret, drop: int, bits: int, correlation: Digits
    ) -> Generator[Asks, Answers, tuple[list[torch.Tensor], torch.Tensor] | None]:
        """The results' shares, and y on `bits` bits; None where hollow.

        The bits below `drop` are cut off first.
        """
        if bits > x.width - drop:
            raise MpcacheError(
                f"{bits} bits of a value were to be read that counts modulo 2^{x.width - drop}"
            )
        pieces = self.draw(correlation)
        plan, shape = correlation.plan, correlation.shape
        words = [as_words(tuple(x.shape), bits)]
        answered, known = torch.empty(0), len(plan.questions)
        if self.hollow:
            yield from self.opening(kind, [], words)
        else:
            hidden = _dropped(x, drop) + pieces["r"]
            (y,) = yield from self.opening(kind, [hidden], words)
            if isinstance(correlation, PairSigns):
                y = correlation.differences(y)
            answered = plan.arrays.bits(y.numel())
            tables = [pieces[name] for name in plan.arrays.tables]
            answers(y.reshape(-1), plan.arrays.asked, tables, self.rank, answered)
        for number, nodes in enumerate(plan.levels):
            inputs = [as_words(shape, len(node.inputs)) for node in nodes]
            if self.hollow:
                yield from self.revealing("node", [], inputs)
                continue
            level = plan.arrays.levels[number]
            masks = [pieces[name] for name in level.masks]
            joint = joined(answered, level.inputs, level.counts, masks)
            opened = yield from self.revealing(
                "node", list(joint.reshape(len(nodes), *shape)), inputs
            )
            words_of = [pieces[name] for name in level.tables]
            shown = torch.stack(opened).reshape(len(nodes), y.numel())
            outputs(shown, level.nodes, level.sizes, words_of, answered[known:])
            known += len(words_of)
        ends = [as_words(shape, len(plan.last))]
        if self.hollow:
            yield from self.revealing("last", [], ends)
            return None
        end = joined(answered, plan.arrays.last, plan.arrays.last_count, [pieces["mask"]])
        (v,) = yield from self.revealing("last", [end.reshape(shape)], ends)
        index = v.to(torch.int64).unsqueeze(0)
        return [
            pieces[f"last{result}"].gather(0, index).squeeze(0).to(torch.int64)
            for result in range(correlation.results)
        ], y

    # --- functions -----------------------------------------------------------------------------

    def exp(self, x: Secret) -> Secret:
        return self.play(self.exponentiating(x))

    def exponentiating(self, x: Secret) -> Play:
        """exp(x) in [-15, 1), 0 below, and above that nearly exp(1), without a product of secrets.

        1. u = x + 15 on 18 bits, 14 of them fractional, and what is above them; open y = u + r.
        2. exp(x) = exp(y - 15) exp(-r), times exp(16) where y wrapped: the dealt payload holds
           the last two factors for both cases, and the borrow [y < r] on 18 bits chooses; the
           digits above them tell whether u is in [0, 16), above or below.

        20 fractional bits in the payload and 40 in the public factor keep every case within
        2^-17. The result has 60 fractional bits.
        """
        drop, low = max(0, x.frac - EXP_FRAC), EXP_FRAC + EXP_WINDOW
        high = min(x.width - drop - low, FAR + 2)
        if x.frac < EXP_FRAC or high < 2:
            raise MpcacheError(f"exp reads {EXP_FRAC} fractional bits and {low + 2} in all")
        moved = self.shift(x, torch.tensor(15 << x.frac))
        top = round(math.e * 2**EXP_TOP_FRAC)
        correlation = exponents(
            tuple(x.shape), low, high, EXP_FRAC, EXP_PAYLOAD, top, self.setting.profile
        )
        made = yield from self._reading("exp", moved, drop, low + high, correlation)
        frac = EXP_PAYLOAD + EXP_FACTOR
        if made is None:
            return self._made(x.shape, frac)
        (value, above), y = made
        public = _public_exp()(y & ((1 << low) - 1))
        factor = torch.round(public * 2.0**EXP_FACTOR).to(torch.int64)
        return Secret(value * factor + (above << (frac - EXP_TOP_FRAC)), frac)

    def clamp(self, x: Secret, keep: int, bits: int, width: int = 0, far: int = FAR) -> Secret:
        """floor(x 2^keep), or one less, kept to [0, 2^bits); no fractional bits.

        |x| < 2^(bits - keep + far - 2), or less where its ring holds less. The result counts
        modulo 2^width, by default 2^bits.
        """
        drop, width = x.frac - keep, width or bits
        high = min(x.width - drop - bits, far)
        if high < 2:
            raise MpcacheError(f"{bits} bits of a value to be kept leave {high} above them, not 2")
        correlation = clamped(tuple(x.shape), bits, high, self.setting.profile, width)
        made = self.play(self._reading("clamp", x, drop, bits + high, correlation))
        if made is None:
            return self._made(x.shape, 0, width)
        (counts, added), y = made
        return Secret(counts * (y & ((1 << bits) - 1)) + added, 0, width)

    def lookup(
        self, x: Secret, keep: int, bits: int, tables: torch.Tensor, cut: int = 0
    ) -> tuple[list[Secret], Secret]:
        return self.play(self.looking_up(x, keep, bits, tables, cut))

    def looking_up(
        self, x: Secret, keep: int, bits: int, tables: torch.Tensor, cut: int = 0
    ) -> Play:
        """Public tables [tables, 2^bits] at floor(x 2^keep) mod 2^bits, and x cut by `cut` bits.

        One round for all. The index may come out one too low. Entries are ring elements; the
        results say `setting.frac` bits.
        """
        drop, shape, frac = x.frac - keep, tuple(x.shape), self.setting.frac
        pieces = self.draw(Lookup(shape, bits, tables))
        words = [as_words(shape, bits)]
        hidden = [] if self.hollow else [_dropped(x, drop) + pieces["r"]]
        plays: list[Any] = [self.opening("lookup", hidden, words)]
        if cut:
            plays.append(self.truncating(x, cut))
        opened, *moved = yield from side_by_side(plays)
        shorter = moved[0] if cut else x
        if self.hollow:
            return [self._made(shape, frac) for _ in tables], shorter
        index = opened[0].expand(1, len(tables), *shape)
        found = pieces["turned"].gather(0, index).squeeze(0)
        return [Secret(row, frac) for row in found], shorter

    def steps(self, x: Secret, thresholds: torch.Tensor, bits: int = 63) -> tuple[Secret, Secret]:
        return self.play(self.stepping(x, thresholds, bits))

    def stepping(self, x: Secret, thresholds: torch.Tensor, bits: int = 63) -> Play:
        """[x >= t] without fractional bits, and [x >= t] x, for each of the thresholds.

        Exact for |x| and |x - t| below 2^bits ring units. One round; party 1 passes the key on.

        Args:
            thresholds: public ring elements [steps].

        Returns:
            Both [..., steps].
        """
        bits = min(bits, x.width - 1)
        correlation = stairs(tuple(x.shape), bits)
        pieces, shape = self.draw(correlation), (*x.shape, len(thresholds))
        y_words = as_words(tuple(x.shape), x.width)
        key_words = as_words(correlation.pieces[-1].shape)
        sent = ([y_words], [y_words, key_words])
        if self.hollow:
            yield [Ask("steps", sent, [])]
            return self._made(shape, 0), self._made(shape, x.frac, x.width)
        hidden = x.share + pieces["r"]
        own = [hidden] if self.rank == 0 else [hidden, pieces["key"]]
        (got,) = yield [Ask("steps", sent, own)]
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
        products = y * reached - reached_r
        return Secret(reached, 0), Secret(products, x.frac, x.width)

    # --- one-hot rows --------------------------------------------------------------------------

    def one_hot(self, x: Secret, keep: int, bits: int, width: int = 64) -> Secret:
        """[floor(x 2^keep) mod 2^bits == j] as [2^bits, ...] without fractional bits.

        The shares count modulo 2^width. The index may come out one too low where x has bits
        below 2^-keep.
        """
        turned = self._turned(x, keep, bits, width)
        if turned is None:
            return self._made((1 << bits, *x.shape), 0, width)
        row, y = turned
        index = (torch.arange(1 << bits) - y.unsqueeze(-1)) & ((1 << bits) - 1)
        return Secret(row.gather(-1, index).movedim(-1, 0).to(torch.int64), 0, width)

    def tally(
        self,
        x: Secret,
        keep: int,
        bits: int,
        visible: torch.Tensor | None,
        width: int = 64,
    ) -> Secret:
        """How many of the last dimension are in each cell, as [2^bits, ...]: `one_hot`, summed.

        Args:
            visible: public 0/1 mask of those that count, broadcast to x, or None for all.
        """
        turned = self._turned(x, keep, bits, width)
        if turned is None:
            return self._made((1 << bits, *x.shape[:-1]), 0, width)
        return Secret(tally(*turned, visible), 0, width)

    def _turned(
        self, x: Secret, keep: int, bits: int, width: int
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Shares of the unit vectors of -r [..., 2^bits], and y = x + r; None where hollow."""
        pieces = self.draw(one_hots(tuple(x.shape), bits, width))
        words = [as_words(tuple(x.shape), bits)]
        if self.hollow:
            self.play(self.opening("one-hot", [], words))
            return None
        hidden = _dropped(x, x.frac - keep) + pieces["r"]
        (y,) = self.play(self.opening("one-hot", [hidden], words))
        return pieces["row"], y


@functools.cache
def _public_exp() -> ExpTable:
    """exp(y / 2^EXP_FRAC - 15) over exp's window."""
    return ExpTable(-15, EXP_FRAC, EXP_FRAC + EXP_WINDOW)


def _compared(x: Secret, magnitude: int, keep: int) -> tuple[int, int]:
    """How many low bits of x are cut off before it is compared, and how many are then read."""
    drop = max(0, x.frac - keep)
    return drop, min(magnitude + x.frac - drop + 1, x.width - max(drop, x.width == 64))


def _dropped(x: Secret, drop: int) -> torch.Tensor:
    """A share without its low bits."""
    if not drop:
        return x.share
    low = x.share if x.width == 64 else x.share & ((1 << x.width) - 1)
    return logical_shift(low, drop)
