"""The k greatest of n values by their digits: work that grows with n, where pairs grow with n^2.

A selection by radix on shares: digit by digit from the top, count the candidates with each digit,
find the digit of the k-th greatest, and keep as candidates those that have it. Nobody learns a
digit, a count, or who is a candidate.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mpcache.kernels.prg import storage
from mpcache.kernels.tally import tally
from mpcache.protocols.channel import Spec
from mpcache.protocols.correlation import Correlation
from mpcache.protocols.counting import hollow
from mpcache.protocols.dealer import DealerSuite
from mpcache.protocols.pieces import Form, Piece, Pieces, Shape
from mpcache.protocols.secret import Secret, stack

LEAST_DIGIT, MOST_DIGIT = 3, 8  # bits of a digit; its table has 2^9 rows for every value at most
NARROW = 16  # bits of digits and their carries on shares


@dataclass(frozen=True)
class Range:
    """Which values are told apart: |x| < 2^magnitude, or 0 <= x < 2^magnitude unless `signed`.

    `keep` fractional bits count. A value outside counts as one at that end of the range.
    """

    magnitude: int = 15
    keep: int = 16
    signed: bool = True

    def bits(self, frac: int) -> int:
        """Of the numbers that stand for values with `frac` fractional bits, from 0 on."""
        return self.magnitude + min(self.keep, frac) + self.signed

    def ring(self, frac: int, width: int = 64) -> int:
        """Bits that are left of `width` when those below 2^-keep are cut off; 63 at most."""
        return width - max(frac - self.keep, width == 64)


def counting(size: int) -> int:
    """Bits of shares that hold counts of up to `size`, whole bytes."""
    return 16 if size < 1 << 15 else 32


def cuts(bits: int, most: int) -> list[int]:
    """Widths of digits of `most` bits at most that make up `bits`, from the lowest digit on."""
    count = -(-bits // most)
    return [bits // count + (place < bits % count) for place in range(count)]


class Candidates(Correlation):
    """For one digit u of `digit` bits of each of n values [..., n].

    * r hides u; y = u + r is opened, modulo twice the digits there are.
    * The unit vector of -r and, unless all are candidates, that times a bit `alpha`, which hides
      whether this one is: turned by y and added up they count the candidates of each digit.
    * s [...] hides the digit t that is sought. A table says for u - t, at y minus the opened t + s,
      whether it is 0 and whether it is above; and both times `alpha`.
    * p, q and p q for the sum of products of 2^digit - 1 bits and counts.
    """

    def __init__(self, shape: Shape, digit: int, count_bits: int, every: bool) -> None:
        self.digit, self.every = digit, every
        self.digits = 1 << digit
        rows, sums = (*shape, self.digits), (*shape[:-1], self.digits - 1)
        pieces = (
            Piece("r", shape, bits=digit + 1),
            Piece("s", shape[:-1], bits=digit + 1),
            Piece("unit", rows, count_bits, corrected=True, narrow=True),
            *(() if every else self._masked(shape, rows, count_bits)),
            Piece("table", (*shape, 2 * self.digits), 2 if every else 4, None, True, True,
                  narrow=True),
            Piece("p", sums, count_bits),
            Piece("q", sums, count_bits),
            Piece("pq", shape[:-1], count_bits, corrected=True),
        )  # fmt: skip
        self.form = Form(pieces)

    @staticmethod
    def _masked(shape: Shape, rows: Shape, count_bits: int) -> tuple[Piece, Piece]:
        alpha = Piece("alpha", shape, bits=1, exclusive=True)
        return alpha, Piece("taken", rows, count_bits, corrected=True, narrow=True)

    def complete(self, whole: Pieces) -> Pieces:
        r, s = whole["r"], whole["s"].unsqueeze(-1)
        unit = torch.zeros((*r.shape, self.digits), dtype=torch.int64)
        unit.scatter_(-1, (-r & (self.digits - 1)).unsqueeze(-1), 1)
        turned = torch.arange(2 * self.digits) - (r - s).unsqueeze(-1)
        above = turned & (2 * self.digits - 1)  # u - t
        table = (above == 0).long() | ((above > 0) & (above < self.digits)).long() << 1
        wanted = {"unit": unit, "table": table, "pq": (whole["p"] * whole["q"]).sum(-1)}
        if not self.every:
            alpha = whole["alpha"].unsqueeze(-1)
            wanted["taken"] = unit * alpha
            wanted["table"] = table | table * alpha << 2
        return wanted


class Joined(Correlation):
    """Masks of two bits that are shared by XOR, and each as shares that add, modulo 2^bits."""

    def __init__(self, shape: Shape, bits: int) -> None:
        mask = Piece("mask", shape, bits=2, exclusive=True)
        self.form = Form((mask, Piece("added", (2, *shape), bits, corrected=True)))

    def complete(self, whole: Pieces) -> Pieces:
        mask = whole["mask"]
        return {"added": torch.stack([mask & 1, mask >> 1])}


def searched(suite: DealerSuite, x: Secret, k: int, told: Range, most: int) -> Secret:
    """For each of the last dimension [n] how many of the k greatest stand up to it: [..., n].

    Exact for values that `told` tells apart, and of equal ones the earlier are among the k; for
    |x| < 2^61 ring units, of which the range takes an eighth at most. 1 <= k < n. The shares count
    modulo 2^counting(n).

    1. Digits of the values, brought into the range: see `_digits`.
    2. For each digit from the top, 3 rounds: see `_Search.step`.
    3. Candidates that are left are equal: of them the first k less those that are greater.

    Args:
        most: bits of a digit at most.
    """
    search = _Search(suite, x, told, cuts(told.bits(x.frac), most))
    for place in reversed(range(len(search.digits))):
        search.step(place, k)
    above, equal = search.result()
    equals, short = equal.cumsum(-1), above.sum(-1, keepdim=True)
    size = x.shape[-1]
    beyond = suite.shift(equals + short.expand(*equals.shape), torch.tensor(-k))
    return above.cumsum(-1) + equals - suite.positive(beyond, magnitude=size.bit_length())[0]


def _digits(suite: DealerSuite, x: Secret, told: Range, widths: Sequence[int]) -> Secret:
    """The digits [digits, ..., n] of what stands for x in its range, the lowest first.

    A value's digit is the sum of its shares' digits and the carry from below, less what carries
    on. Each carry is a sign: that of the low bits of both shares, moved up until it is their top
    bit. The signs of u and of u - 2^bits, in the same batch, tell whether u is in the range.
    """
    bits, ring = told.bits(x.frac), told.ring(x.frac, x.width)
    cut = suite.coarse(x, told.keep)
    cut = Secret(cut.share, 0, cut.width)
    u = suite.shift(cut, torch.tensor(1 << (bits - 1) if told.signed else 0))
    ends = list(itertools.accumulate(widths))
    low = [(u.share & ((1 << end) - 1)) << (ring - 1 - end) for end in ends]
    tested = [u, suite.shift(u, torch.tensor(-(1 << bits))), *(Secret(t, 0) for t in low)]
    signs = suite.negative(stack(tested), magnitude=ring - 1, keep=0, width=NARROW)
    under, below, carries = signs[0], signs[1], signs[2:]
    found = []
    for place, (end, width) in enumerate(zip(ends, widths, strict=True)):
        own = Secret((u.share >> (end - width)) & ((1 << width) - 1), 0)
        digit = own - carries[place].times(1 << width)
        found.append(digit + carries[place - 1] if place else digit)
    inside = suite.multiply((below - under).unsqueeze(0), stack(found))
    over = suite.shift(-below, torch.tensor(1)).unsqueeze(0)
    greatest = torch.tensor([(1 << width) - 1 for width in widths])
    return inside + over.times(greatest.reshape(-1, *([1] * x.ndim)))


class _Search:
    """The digits' masked values, and what is known after each step.

    `equal` and `above` [..., n] are bits shared by XOR: whether a value is as the digits found so
    far, or greater; `higher` [...] counts the latter; `shown` is `equal` masked by alpha.
    """

    def __init__(self, suite: DealerSuite, x: Secret, told: Range, widths: Sequence[int]) -> None:
        self.suite, self.shape = suite, tuple(x.shape)
        self.bits = counting(x.shape[-1])
        digits = _digits(suite, x, told, widths)
        top = len(widths) - 1
        self.digits = [
            Candidates(self.shape, width, self.bits, place == top)
            for place, width in enumerate(widths)
        ]
        self.drawn = [suite.draw(digit) for digit in self.digits]
        self.higher: Secret | None = None
        self.hidden: list[torch.Tensor] = []
        self.equal = self.above = self.shown = torch.zeros(0, dtype=torch.int64)
        if suite.hollow:
            suite.swap("digits", [Spec(self.shape, storage(w + 1)) for w in widths], list)
            return
        own = [
            _low(digits.share[place] + pieces["r"], width + 1)
            for place, (width, pieces) in enumerate(zip(widths, self.drawn, strict=True))
        ]
        theirs = suite.swap("digits", [Spec.of(tensor) for tensor in own], lambda: own)
        for mine, other, width in zip(own, theirs, widths, strict=True):
            self.hidden.append((mine + other).long() & ((2 << width) - 1))

    def step(self, place: int, k: int) -> None:
        """Find the digit at `place` of the k-th greatest, and who is as great and who greater.

        1. Unless it is the top digit, open the candidates' bits under `alpha`; count candidates
           by digit, v_j = those found greater, and candidates with digit j or more, less k.
        2. t = how many of v_1, v_2, ... are not negative: one-hot rows of each.
        3. Open t + s, and the factors of the sum of counts above t.
        """
        suite, counts = self.suite, self._counts(place)
        after = Secret(counts.share.flip(-1).cumsum(-1).flip(-1), 0)[..., 1:]
        if self.higher is not None:
            after = after + self.higher.unsqueeze(-1).expand(*after.shape)
        size = self.shape[-1]
        cells = suite.one_hot(
            suite.shift(after, torch.tensor(-k)), 0, size.bit_length(), width=self.bits
        )
        reached = cells[: size - k + 1].sum(0)
        higher = self._found(place, reached, counts[..., 1:])
        self.higher = higher if self.higher is None else self.higher + higher

    def _counts(self, place: int) -> Secret:
        """How many candidates have each digit: [..., digits]."""
        suite, digit, pieces = self.suite, self.digits[place], self.drawn[place]
        if not digit.every:
            spec = [Spec(self.shape, torch.uint8)]
            own = [] if suite.hollow else [(self.equal ^ pieces["alpha"]).to(torch.uint8)]
            got = suite.swap("candidates", spec, lambda: own)
        if suite.hollow:
            return hollow((*self.shape[:-1], digit.digits), 0)
        turns = self.hidden[place] & (digit.digits - 1)
        if digit.every:
            counts = tally(pieces["unit"], turns)
        else:
            self.shown = (own[0] ^ got[0]).long()
            counts = tally(pieces["unit"], turns, self.shown)
            counts += tally(pieces["taken"], turns, 1 - 2 * self.shown)
        return Secret(counts.movedim(0, -1), 0)

    def _found(self, place: int, reached: Secret, counts: Secret) -> Secret:
        """Candidates above the digit that `reached` adds up to; the bits are brought up to it."""
        suite, digit, pieces = self.suite, self.digits[place], self.drawn[place]
        wide = storage(self.bits)
        sums = Spec(tuple(reached.shape), wide)
        if suite.hollow:
            sought_spec = Spec(self.shape[:-1], storage(digit.digit + 1))
            suite.swap("digit", [sought_spec, sums, sums], list)
            return hollow(self.shape[:-1], 0)
        own = [
            _low(reached.share.sum(-1) + pieces["s"], digit.digit + 1),
            (reached.share - pieces["p"]).to(wide),
            (counts.share - pieces["q"]).to(wide),
        ]
        got = suite.swap("digit", [Spec.of(tensor) for tensor in own], lambda: own)
        sought, d, e = ((mine + other).long() for mine, other in zip(own, got, strict=True))
        turns = (self.hidden[place] - sought.unsqueeze(-1)) & (2 * digit.digits - 1)
        bits = pieces["table"].gather(-1, turns.unsqueeze(-1)).squeeze(-1).long()
        if digit.every:
            self.equal, self.above = bits & 1, bits >> 1
        else:
            bits = bits * self.shown ^ bits >> 2
            self.equal, self.above = bits & 1, self.above ^ (bits >> 1 & 1)
        product = pieces["pq"] + (d * pieces["q"]).sum(-1) + (pieces["p"] * e).sum(-1)
        if suite.rank == 0:
            product += (d * e).sum(-1)
        return Secret(counts.share.sum(-1) - product, 0)

    def result(self) -> tuple[Secret, Secret]:
        """`above` and `equal` [..., n] as shares that add."""
        suite = self.suite
        pieces = suite.draw(Joined(self.shape, self.bits))
        if suite.hollow:
            suite.swap("bits", [Spec(self.shape, torch.uint8)], list)
            return hollow(self.shape, 0), hollow(self.shape, 0)
        own = (self.above | self.equal << 1) ^ pieces["mask"]
        small = own.to(torch.uint8)
        (theirs,) = suite.swap("bits", [Spec.of(small)], lambda: [small])
        shown = (small ^ theirs).long()
        parts = []
        for bit, mask in enumerate(pieces["added"]):
            public = shown >> bit & 1
            share = mask * (1 - 2 * public)
            parts.append(Secret(share + public if suite.rank == 0 else share, 0))
        return parts[0], parts[1]


def _low(hidden: torch.Tensor, bits: int) -> torch.Tensor:
    """The bits that a mask on `bits` bits hides; those above it would tell of the value."""
    return (hidden & ((1 << bits) - 1)).to(storage(bits))


def digits_worth_trying(bits: int) -> list[int]:
    """Most bits of a digit, of those that cut `bits` bits into different numbers of digits."""
    counts = {-(-bits // most): most for most in range(MOST_DIGIT, LEAST_DIGIT - 1, -1)}
    return sorted(counts.values())
