"""How suite `dealer` cuts bits off: exactly, or each party for itself."""

from __future__ import annotations

from mpcache.errors import MpcacheError
from mpcache.protocols.correlation import logical_shift, truncated
from mpcache.protocols.dealer_rounds import Rounds
from mpcache.protocols.plays import Play
from mpcache.protocols.secret import Kept, Secret
from mpcache.protocols.wire import as_words

TRIM = 6  # bits that `trimming` leaves for a truncation


class Cuts(Rounds):
    """Truncations, and what follows from them."""

    def truncate(self, x: Secret, bits: int) -> Secret:
        return self.play(self.truncating(x, bits))

    def trimming(self, x: Secret, bits: int, width: int = 64) -> Play:
        """As `truncating`, to a unit and 2^-6 of one, in fewer bytes.

        All but 6 of the dropped bits are cut off each share first, and the ring shrinks with them.
        """
        if self.setting.truncation == "exact" and bits > TRIM:
            x, bits = self.coarse(x, x.frac - bits + TRIM), TRIM
        return self.truncating(x, bits, width)

    def truncating(self, x: Secret, bits: int, width: int = 64) -> Play:
        """Exact to one unit for |x| < 2^(space - 2) ring units, where x counts modulo 2^space.

        1. Open y = x + 2^(space - 2) + r on `space` bits.
        2. y >> bits, less the shares of r >> bits; where the addition wrapped (r has its top bit
           and y has not) add 2^(space - bits); less 2^(space - 2 - bits).

        The result counts modulo 2^width. Where `width` is space - bits at most, what a wrap adds
        is 0, all of the mask is the dealer's, and the result is one that was kept: free.

        Under local truncation so only for values of more fractional bits than a product has: they
        come so near to the ring's end that one in eight would be wrong (a logistic has 61).
        """
        shape, space, frac = tuple(x.shape), x.width, x.frac - bits
        if self.setting.truncation == "local" and x.frac <= 2 * self.setting.frac:
            return self._locally_cut(x, bits)
        pieces = self.draw(truncated(shape, bits, space, width))
        whole = width <= space - bits
        words = [as_words(shape, space)]
        if self.hollow:
            yield from self.opening("truncate", [], words)
            share = self._made(shape, frac).share
            mask = -pieces["high"] if whole and pieces else None
            return Kept(share, mask, frac, -1, width) if whole else Secret(share, frac, width)
        hidden = x.share + pieces["r"]
        if self.rank == 0:
            hidden = hidden + (1 << (space - 2))
        (y,) = yield from self.opening("truncate", [hidden], words)
        high = logical_shift(y, bits) if space == 64 else y >> bits
        high = high - (1 << (space - 2 - bits))
        if whole:
            return Kept(high, -pieces["high"], frac, self.rank, width)
        clear = 1 - (logical_shift(y, space - 1) if space == 64 else y >> (space - 1))
        z = pieces["top"] * (clear << (space - bits)) - pieces["high"]
        return Secret(z + high if self.rank == 0 else z, frac, width)

    def widened(self, x: Secret) -> Secret:
        """x modulo 2^64, for |x| < 2^(width - 2) ring units: a truncation by no bits."""
        return x if x.width == 64 else self.play(self.truncating(x, 0))

    def _locally_cut(self, x: Secret, bits: int) -> Secret:
        """Each party shifts its own share (Mohassel and Zhang 2017): wrong by 2^(64 - bits) units
        with odds |x| / 2^64.

        Shares x0 and x1, from -2^63 on, add up to x or to x -+ 2^64, and the latter goes wrong.
        For x >= 0 that is so for x + 1 of all 2^64 shares x0; of these x0 = x - 2^63 comes out
        right, since -x1 = 2^63 wraps. For x < 0 it is so for |x| - 1 of them, and x1 = -2^63 goes
        wrong in the same way. Where a party knows x, and the other's share is 0, never.
        """
        if x.width < 64:
            raise MpcacheError("local truncation needs shares of all 64 bits")
        self.cut_locally(x, bits)
        if self.hollow:
            return self._made(x.shape, x.frac - bits)
        share = x.share >> bits if self.rank == 0 else -((-x.share) >> bits)
        return Secret(share, x.frac - bits)

    def cut_locally(self, x: Secret, bits: int) -> None:
        """Note that the values of x were truncated locally, where it is counted."""

    def settling(self, x: Secret, width: int = 64) -> Play:
        """x brought to the setting's fractional bits."""
        if x.frac <= self.setting.frac:
            return x
        return (yield from self.truncating(x, x.frac - self.setting.frac, width))

    def coarse(self, x: Secret, frac: int) -> Secret:
        """x without its bits below 2^-frac, off by one unit at most.

        Each party shifts its own share: the shares count modulo 2^(width - dropped bits) from then
        on.
        """
        drop = x.frac - frac
        if drop <= 0:
            return x
        if x.is_hollow:
            return Secret(x.share, frac, x.width - drop)
        low = x.share if x.width == 64 else x.share & ((1 << x.width) - 1)
        return Secret(logical_shift(low, drop), frac, x.width - drop)
