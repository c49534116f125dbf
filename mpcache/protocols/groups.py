"""The greatest of many in suite `dealer`: all pairs of a group, the groups' winners again.

One level of groups takes three rounds, whatever their size:

1. Each party cuts its shares of x to `BITS` bits; open y = x + r on those bits, once for each
   element, and a hidden position p + s beside it.
2. For each pair i < j of a group, [x_i < x_j] is the top bit of y_i - y_j, XOR that of r_i - r_j,
   XOR a borrow over the bits below. For each digit of those a dealt word tells less and equal;
   one node joins all digits: its inputs open under a mask, and a dealt table has the result.
3. An element wins if it loses to nobody. What it loses opens under a mask u, and the unit vector
   of u, dealt as shares, has [element wins] where the opened value stands. Tables of that times r
   and s turn the public y and the hidden position into the winner's, without a product.

Losses are bits side by side in small groups, whose nodes then give bits, and a sum in large ones.
Cut values are compared, so all results agree on one order, and just one element of a group wins.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from mpcache.kernels.prg import storage
from mpcache.protocols.channel import Spec
from mpcache.protocols.correlation import Correlation, logical_shift
from mpcache.protocols.dealer import DealerSuite
from mpcache.protocols.pieces import Piece, Pieces, Shape
from mpcache.protocols.secret import Secret

MAGNITUDE, KEEP = 12, 12  # differences stay below 2^12 and count to 2^-12
DIGIT, DIGITS = 6, 4  # bits of a digit, one machine word; digits below the top bit
BITS = 1 + DIGIT * DIGITS
INPUTS = 2 * DIGITS - 1  # bits of a node: less of each digit, equal of each but the lowest
WORD = 32  # bits of shares of winners
SUMMED = 6  # elements from which a group's losses are a sum
LARGEST = 64  # elements of a group
ROUNDS = 3  # of a level

# What a round is worth in dealt bytes: half a trip on a wide-area network takes as long as some.
WORTH = {"lan": 500_000, "wan": 1_500_000}

Noise = Callable[[torch.Tensor, Shape], torch.Tensor]


@dataclass(frozen=True)
class Level:
    """One level: `count` elements in groups of `size`, the last filled up with the first elements.

    Attributes:
        first: positions are public.
    """

    count: int
    size: int
    first: bool

    @property
    def groups(self) -> int:
        return -(-self.count // self.size)

    @property
    def last(self) -> bool:
        """Whether one group is left, so that the winner's value is not needed."""
        return self.groups == 1

    @property
    def pairs(self) -> int:
        return math.comb(self.size, 2)

    @property
    def summed(self) -> bool:
        return self.size >= SUMMED

    @property
    def lost(self) -> int:
        """Bits of what an element loses."""
        return (self.size - 1).bit_length() if self.summed else self.size - 1

    @property
    def tables(self) -> tuple[str, ...]:
        return ("won", *["moved"] * (not self.last), *["placed"] * (not self.first))

    @property
    def dealt_bytes(self) -> int:
        """Of one group."""
        node = (1 << INPUTS) // (1 if self.summed else 8)
        table = len(self.tables) * (WORD // 8) << self.lost
        return self.pairs * (8 * DIGITS + node) + self.size * table


@functools.cache
def plan(count: int, rows: int, profile: str) -> tuple[Level, ...]:
    """The levels for `count` elements in each of `rows` rows that cost least.

    Each round counts as `WORTH` dealt bytes of the profile.
    """
    worth = WORTH[profile]

    @functools.cache
    def best(left: int, first: bool) -> tuple[float, tuple[Level, ...]]:
        if left == 1:
            return 0.0, ()
        found: tuple[float, tuple[Level, ...]] = math.inf, ()
        for size in range(2, min(left, LARGEST) + 1):
            level = Level(left, size, first)
            cost, rest = best(level.groups, False)
            cost += level.groups * rows * level.dealt_bytes + ROUNDS * worth
            if cost < found[0]:
                found = cost, (level, *rest)
        return found

    return best(count, True)[1]


class Winners(Correlation):
    """What one level needs: see the top of the file.

    Args:
        level: its groups. rows: how often it stands side by side.
        places: bits of a hidden position.
        noise: at the first level, what the dealer adds to the elements [rows, count], in units of
            2^-12, from 16 bytes of both parties' joint randomness. What y hides is then the sum,
            and nothing more is dealt for it.
    """

    def __init__(self, level: Level, rows: int, places: int, noise: Noise | None = None) -> None:
        self.level, self.rows, self.noise = level, rows, noise
        cells = level.groups * rows
        each, pairs = (level.size, cells), (level.pairs, cells)
        pieces = [Piece("r", each, bits=BITS)]
        if not level.first:
            pieces.append(Piece("s", each, bits=places))
        if noise is not None:
            pieces.append(Piece("key", (16,), bits=8, exclusive=True))
        pieces.append(Piece("less", (DIGITS, *pairs), corrected=True, exclusive=True))
        pieces.append(Piece("inputs", pairs, bits=INPUTS, exclusive=True))
        if level.summed:
            node = (*pairs, 1 << INPUTS)
            pieces.append(Piece("node", node, bits=8, corrected=True, narrow=True))
        else:
            pieces.append(Piece("node", (*pairs, 2), corrected=True, exclusive=True))
        pieces.append(Piece("turn", each, bits=level.lost, exclusive=not level.summed))
        table = (*each, 1 << level.lost)
        for name in level.tables:
            pieces.append(Piece(name, table, bits=WORD, corrected=True, narrow=True))
        self.pieces = tuple(pieces)

    def complete(self, whole: Pieces) -> Pieces:
        r = whole["r"]
        if self.noise is not None:
            noise = self.noise(whole["key"], (self.rows, self.level.count))
            r = _low(r - _grouped(self.level, noise), BITS)
        first, second = torch.triu_indices(self.level.size, self.level.size, 1)
        between = _low(r[first] - r[second], BITS)
        top = between >> (BITS - 1)
        nodes = _sums() if self.level.summed else _words()
        unit = torch.zeros(*r.shape, 1 << self.level.lost, dtype=torch.int64)
        unit.scatter_(-1, whole["turn"].unsqueeze(-1), 1)
        scaled = {"won": unit, "moved": unit * r.unsqueeze(-1)}
        if not self.level.first:
            scaled["placed"] = unit * whole["s"].unsqueeze(-1)
        return {
            "less": (1 << _digits(between)) - 1,
            "node": nodes[top, whole["inputs"]],
            **{name: scaled[name] for name in self.level.tables},
        }


def greatest(suite: DealerSuite, x: Secret, noise: Noise | None = None) -> Secret:
    """Position of the greatest element of the last dimension [n], for opening alone.

    Of elements that are equal once they are cut to 2^-12 any may win. All n elements of a row
    must be within 2^12 of each other.

    Args:
        noise: see `Winners`.
    """
    size, leading = x.shape[-1], tuple(x.shape[:-1])
    rows, places = math.prod(leading), size.bit_length() + 1
    levels = plan(size, rows, getattr(suite.setting, "profile", "lan"))
    value, place = None, None
    if not suite.hollow:
        value, place = _cut(x).reshape(rows, size), torch.arange(size).expand(rows, size)
    for number, level in enumerate(levels):
        pieces = suite.draw(Winners(level, rows, places, None if number else noise))
        value, place = _level(suite, level, rows, places, pieces, value, place)
    frac = 64 - places
    if suite.hollow:
        return Secret(torch.empty(leading, dtype=torch.int64, device="meta"), frac)
    assert place is not None
    return Secret((place << frac).reshape(leading), frac)


def _cut(x: Secret) -> torch.Tensor:
    """This party's share of x without its bits below 2^-12."""
    drop = x.frac - KEEP
    return logical_shift(x.share, drop) if drop > 0 else x.share << -drop


def _level(
    suite: DealerSuite,
    level: Level,
    rows: int,
    places: int,
    pieces: Pieces,
    value: torch.Tensor | None,
    place: torch.Tensor | None,
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Shares of the winners' values and positions [rows, groups]; nothing where hollow."""
    each, pairs = (level.size, level.groups * rows), (level.pairs, level.groups * rows)
    shown = [Spec(each, storage(BITS))] + [Spec(each, storage(places))] * (not level.first)
    if suite.hollow:
        suite.swap("compare", shown, list)
        suite.swap("node", [Spec(pairs, torch.uint8)], list)
        suite.swap("winner", [Spec(each, torch.uint8)], list)
        return None, None
    assert value is not None and place is not None
    value, place = _grouped(level, value), _grouped(level, place)
    hidden = [_low(value + pieces["r"], BITS)]
    if not level.first:
        hidden.append(_low(place + pieces["s"], places))
    opened = _opened(suite, "compare", hidden, (BITS, places))
    lost = _losses(suite, level, pieces, opened[0])
    (turned,) = _swapped(suite, "winner", [lost.to(torch.uint8)])
    index = _low(turned + lost, level.lost) if level.summed else turned ^ lost
    found = {
        name: pieces[name].gather(-1, index.unsqueeze(-1)).squeeze(-1).to(torch.int64)
        for name in level.tables
    }
    won, moved, placed = found["won"], found.get("moved"), found.get("placed")
    kept = None if moved is None else (won * opened[0] - moved).sum(0).reshape(rows, -1)
    at = won * (place if placed is None else opened[1])
    where = (at if placed is None else at - placed).sum(0).reshape(rows, -1)
    return kept, where


def _losses(suite: DealerSuite, level: Level, pieces: Pieces, y: torch.Tensor) -> torch.Tensor:
    """What each element loses [size, groups], hidden by this party's share of `turn`."""
    first, second = torch.triu_indices(level.size, level.size, 1)
    between = _low(y[first] - y[second], BITS)
    digits = _digits(between)
    own = int(suite.rank == 0)
    less = (pieces["less"] >> digits) & 1
    equal = ((pieces["less"] ^ (pieces["less"] << 1) ^ own) >> digits) & 1
    inputs = less[0] ^ pieces["inputs"]
    for digit in range(1, DIGITS):
        inputs ^= (less[digit] << (2 * digit - 1)) ^ (equal[digit] << (2 * digit))
    (theirs,) = _swapped(suite, "node", [inputs.to(torch.uint8)])
    inputs, top = inputs ^ theirs, between >> (BITS - 1)
    if level.summed:
        smaller = pieces["node"].gather(-1, inputs.unsqueeze(-1)).squeeze(-1).to(torch.int64)
        smaller = torch.where(top == 1, own - smaller, smaller)
        lost = pieces["turn"].index_add(0, first, smaller).index_add(0, second, own - smaller)
        return _low(lost, level.lost)
    word = pieces["node"].gather(-1, (inputs >> 6).unsqueeze(-1)).squeeze(-1)
    smaller = ((word >> (inputs & 63)) & 1) ^ (top * own)
    lost = pieces["turn"].clone()
    for pair, (i, j) in enumerate(zip(first.tolist(), second.tolist(), strict=True)):
        lost[i] ^= smaller[pair] << (j - 1)
        lost[j] ^= (smaller[pair] ^ own) << i
    return lost


def _grouped(level: Level, values: torch.Tensor) -> torch.Tensor:
    """[rows, n] as [size, rows x groups], filled up with the first elements."""
    rows, count = values.shape
    short = level.size * level.groups - count
    if short:
        values = torch.cat([values, values[:, :short]], 1)
    return values.reshape(rows, level.size, level.groups).transpose(0, 1).reshape(level.size, -1)


def _digits(word: torch.Tensor) -> torch.Tensor:
    """[DIGITS, ...] of the bits below the top one."""
    return torch.stack([_low(word >> (DIGIT * d), DIGIT) for d in range(DIGITS)])


def _low(value: torch.Tensor, bits: int) -> torch.Tensor:
    """The low bits: all that may be sent of a value whose mask has no more."""
    return value & ((1 << bits) - 1)


def _opened(
    suite: DealerSuite, kind: str, hidden: Sequence[torch.Tensor], bits: Sequence[int]
) -> list[torch.Tensor]:
    """Both parties learn the sums, each on its number of bits."""
    narrow = [part.to(storage(width)) for part, width in zip(hidden, bits, strict=False)]
    got = _swapped(suite, kind, narrow)
    return [
        _low(mine + theirs, width) for mine, theirs, width in zip(hidden, got, bits, strict=False)
    ]


def _swapped(suite: DealerSuite, kind: str, own: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """The peer's tensors, int64."""
    got = suite.swap(kind, [Spec.of(tensor) for tensor in own], lambda: list(own))
    return [tensor.to(torch.int64) for tensor in got]


@functools.cache
def _outputs() -> torch.Tensor:
    """[x_i < x_j] for a clear top bit of y_i - y_j, by (top bit of r_i - r_j, inputs)."""
    inputs = torch.arange(1 << INPUTS)
    borrow = inputs & 1
    for digit in range(1, DIGITS):
        less, equal = inputs >> (2 * digit - 1), inputs >> (2 * digit)
        borrow = (less | (equal & borrow)) & 1
    return torch.stack([borrow, 1 - borrow])


@functools.cache
def _sums() -> torch.Tensor:
    """For (top bit, mask of the inputs) the outputs of all masked inputs [2, 128, 128]."""
    inputs = torch.arange(1 << INPUTS)
    return _outputs()[:, inputs ^ inputs.unsqueeze(1)]


@functools.cache
def _words() -> torch.Tensor:
    """The same as bits of two words [2, 128, 2]."""
    bits = _sums().reshape(2, 1 << INPUTS, 2, 64)
    return (bits << torch.arange(64)).sum(-1)
