"""Oblivious selection: ranks, and the k greatest as one-hot rows or in their order."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch

from mpcache.protocols.comparison import MAGNITUDE, at_least
from mpcache.protocols.dealer import DealerSuite
from mpcache.protocols.operation import Operation, PlainMachine, SecureMachine, Value
from mpcache.protocols.price import price, shaped
from mpcache.protocols.reach import Reach, Reached, within
from mpcache.protocols.search import Range, counting, digits_worth_trying, searched
from mpcache.protocols.secret import Kept, Secret
from mpcache.protocols.setting import Setting
from mpcache.protocols.shuffle import compacted


class Rank(Operation):
    """How many elements of the last dimension [n] beat each one: 0 for the greatest.

    Of two equal elements the earlier one wins, so ranks are a permutation. On shares: all
    n (n - 1) / 2 comparisons in one batch, then public sums. Exact, but for elements that `bits`
    does not tell apart: see `Suite.negative`. With a dealer elements are cut before they are
    compared, so that ranks are a permutation even then, and with `width` the shares count modulo
    2^width.
    """

    name = "rank"

    def plain(self, machine: PlainMachine, x: Value, **bits: int) -> Value:
        order = torch.argsort(x, dim=-1, descending=True, stable=True)
        places = torch.arange(x.shape[-1], device=x.device).expand_as(order)
        return torch.empty_like(order).scatter_(-1, order, places).to(x.dtype)

    def run(self, machine: SecureMachine, x: Secret, **bits: int) -> Secret:
        size = x.shape[-1]
        first, second = torch.triu_indices(size, size, 1, device=x.share.device)
        wins = at_least(machine, x.take(first), x.take(second), **bits)
        return machine.shift(
            -wins.balance(size), torch.arange(size - 1, -1, -1, dtype=torch.float64)
        )

    def run_dealer(self, machine: SecureMachine, x: Secret, **bits: int) -> Secret:
        suite, size = machine.suite, x.shape[-1]
        assert isinstance(suite, DealerSuite)
        losses = suite.pairs_negative(x, **bits)
        return machine.shift(losses.balance(size), torch.arange(size, dtype=torch.float64))

    def reaches(self, result: Value, x: Value, magnitude: int = MAGNITUDE, **_: int) -> Reached:
        yield within("difference", magnitude), x.amax(-1) - x.amin(-1)


@dataclass(frozen=True)
class Pairs:
    """Places by ranks: all pairs compared on all bits of the ring, so that nothing wraps.

    Which ranks are below k is read off one-hot rows, one round, or compared: fewer bytes.
    """

    looked_up: bool

    def __call__(self, machine: SecureMachine, x: Secret, k: int, told: Range) -> Secret:
        suite, size = machine.suite, x.shape[-1]
        assert isinstance(suite, DealerSuite)
        bits = counting(size)
        magnitude = told.ring(x.frac, x.width) - 1 - min(told.keep, x.frac)
        ranks = rank(machine, x, magnitude=magnitude, keep=told.keep, width=bits)
        if self.looked_up:
            cells = suite.one_hot(ranks, 0, max(1, (size - 1).bit_length()), bits)
            return cells[:k].sum(0).cumsum(-1)
        short = machine.shift(ranks, float(-k))
        return suite.negative(short, size.bit_length(), 0, bits).cumsum(-1)


@dataclass(frozen=True)
class Digits:
    """Places by a search with digits of `most` bits at most: see `protocols.search`."""

    most: int

    def __call__(self, machine: SecureMachine, x: Secret, k: int, told: Range) -> Secret:
        assert isinstance(machine.suite, DealerSuite)
        return searched(machine.suite, x, k, told, self.most)


PlaceWay = Pairs | Digits


def place_ways(told: Range, frac: int, width: int = 64) -> list[PlaceWay]:
    """All ways to places of values with `frac` fractional bits; digits need some room above."""
    bits = told.bits(frac)
    tried = digits_worth_trying(bits) if bits <= told.ring(frac, width) - 3 else []
    return [Pairs(True), Pairs(False), *(Digits(most) for most in tried)]


@functools.cache
def place_way(
    setting: Setting, shape: tuple[int, ...], frac: int, k: int, told: Range, width: int = 64
) -> PlaceWay:
    """The cheapest way, by its price."""

    def worth(way: PlaceWay) -> int:
        return price(
            setting, lambda machine: way(machine, shaped(shape, frac, width=width), k, told)
        )

    return min(place_ways(told, frac, width), key=worth)


class Places(Operation):
    """How many of the k greatest of the last dimension [n] stand up to each one: [..., n].

    Where the count rises an element is one of them, and that is its place, from 1 on. Of equal
    elements the earlier are among the k. Public: k and n.

    On shares an element that `magnitude` and `keep` do not reach (`search.Range`) counts as one
    at that end of the range; which of several there are among the k is not told. Exact but for
    that, and for elements that `keep` does not tell apart; with a dealer for |x| < 2^61 ring
    units, modulo 2^counting(n), in the cheapest of the ways above and below.
    """

    name = "places"

    def plain(self, machine: PlainMachine, x: Value, k: int, **told: int) -> Value:
        return (rank(machine, x) < k).to(x.dtype).cumsum(-1)

    def run(self, machine: SecureMachine, x: Secret, k: int, **told: int) -> Secret:
        told.pop("signed", None)
        ranks = rank(machine, x, **told)
        width = x.shape[-1].bit_length() + 1
        return machine.shift(-at_least(machine, ranks, float(k), magnitude=width), 1.0).cumsum(-1)

    def run_dealer(self, machine: SecureMachine, x: Secret, k: int, **told: int) -> Secret:
        size, reach = x.shape[-1], Range(**told)  # type: ignore[arg-type]
        if k <= 0 or k >= size:
            known = torch.arange(1, size + 1) if k > 0 else torch.zeros(size)
            return machine.shift(Secret(x.share * 0, 0), known.to(torch.float64))
        way = place_way(machine.setting, tuple(x.shape), x.frac, k, reach, x.width)
        return way(machine, x, k, reach)

    def reaches(
        self, result: Value, x: Value, k: int, magnitude: int = MAGNITUDE, **_: int
    ) -> Reached:
        yield Reach("element", magnitude), x


class TopK(Operation):
    """The k greatest of the last dimension [n], as one-hot rows [..., k, n] in order of position.

    Row j is [p_i > j] - [p_(i-1) > j] for the places p: 1 exactly where the j-th of them stands.
    With a dealer the terms are sums of one-hot rows of the places, one round.

    Rows are integers without fractional bits, so a product with them is exact. Public: k and n.
    """

    name = "top-k"

    def plain(self, machine: PlainMachine, x: Value, k: int, **told: int) -> Value:
        return standing.plain(machine, places(machine, x, k), k)

    def run(self, machine: SecureMachine, x: Secret, k: int, **told: int) -> Secret:
        return _standing(machine, places.run(machine, x, k, **told), k)

    def run_dealer(self, machine: SecureMachine, x: Secret, k: int, **told: int) -> Secret:
        return _standing_dealer(machine, places(machine, x, k, **told), k)

    def reaches(self, result: Value, x: Value, k: int, **told: int) -> Reached:
        yield from places.reaches(result, x, k, **told)


class Standing(Operation):
    """One-hot rows [..., k, n] of who has a place, in order: row j is the one whose place is j + 1.

    Exact; with a dealer one round. Public: k and n.
    """

    name = "standing"

    def plain(self, machine: PlainMachine, placed: Value, k: int) -> Value:
        wanted = torch.arange(1, k + 1, device=placed.device).unsqueeze(-1)
        kept = placed.diff(dim=-1, prepend=placed[..., :1] * 0) > 0
        return ((placed.unsqueeze(-2) == wanted) & kept.unsqueeze(-2)).to(placed.dtype)

    def run(self, machine: SecureMachine, placed: Secret, k: int) -> Secret:
        return _standing(machine, placed, k)

    def run_dealer(self, machine: SecureMachine, placed: Secret, k: int) -> Secret:
        return _standing_dealer(machine, placed, k)


def _standing(machine: SecureMachine, placed: Secret, k: int) -> Secret:
    """One-hot rows [..., k, n] of who has a place, from comparisons."""
    size = placed.shape[-1]
    wanted = torch.arange(1, k + 1, dtype=torch.float64, device=placed.share.device).unsqueeze(-1)
    reached = at_least(
        machine, placed.unsqueeze(-2), wanted.expand(k, size), magnitude=size.bit_length() + 1
    )
    return _fresh(machine, reached)


def _standing_dealer(machine: SecureMachine, placed: Secret, k: int) -> Secret:
    """One-hot rows [..., k, n] of who has a place, from tables."""
    suite = machine.suite
    assert isinstance(suite, DealerSuite)
    cells = suite.one_hot(placed, 0, max(1, k.bit_length()))
    cells = cells.permute(*range(1, cells.ndim - 1), 0, cells.ndim - 1)[..., 1:, :]
    above = cells.cumsum(-2)
    reached = (above[..., -1:, :].expand(*above.shape) - above + cells)[..., :k, :]
    return _fresh(machine, reached)


def _fresh(machine: SecureMachine, reached: Secret) -> Secret:
    """Where each row [..., k, n] is reached for the first time."""
    before = machine.cat([reached[..., :1].times(0), reached[..., :-1]], -1)
    return reached - before


@dataclass(frozen=True)
class Rows:
    """Rows that stay by a product with one-hot rows."""

    def __call__(self, machine: SecureMachine, placed: Secret, x: Secret, k: int) -> Secret:
        return _picked(machine, _standing_dealer(machine, placed, k), x)


@dataclass(frozen=True)
class Shuffled:
    """Rows that stay by a secret shuffle: see `protocols.shuffle`."""

    def __call__(self, machine: SecureMachine, placed: Secret, x: Secret, k: int) -> Secret:
        suite = machine.suite
        assert isinstance(suite, DealerSuite)
        rises = _fresh(machine, placed)
        place = suite.multiply(rises, placed)
        return compacted(suite, place, x, k, counting(placed.shape[-1]))


RowWay = Rows | Shuffled
ROW_WAYS: tuple[RowWay, ...] = (Rows(), Shuffled())


@functools.cache
def row_way(
    setting: Setting,
    shape: tuple[int, ...],
    lead: int,
    frac: int,
    k: int,
    kept: bool,
    width: int = 64,
) -> RowWay:
    """The cheapest way for rows of this shape, `lead` dimensions with a choice of their own."""

    def worth(way: RowWay) -> int:
        placed, x = shaped((*shape[:lead], shape[-2]), 0), shaped(shape, frac, kept, width)
        return price(setting, lambda machine: way(machine, placed, x, k))

    return min(ROW_WAYS, key=worth)


def _picked(machine: SecureMachine, rows: Secret, x: Secret) -> Secret:
    """The product of one-hot rows [.., k, n] and x [.., n, columns].

    Where x has a dimension more, all its heads go into one product, which opens the rows once.
    """
    if rows.ndim == x.ndim:
        return machine.suite.matmul(rows, x)
    *lead, heads, size, columns = x.shape
    count = len(lead)
    flat = x.transpose(count, count + 1).reshape(*lead, size, heads * columns)
    chosen = machine.suite.matmul(rows, flat).reshape(*lead, rows.shape[-2], heads, columns)
    return chosen.transpose(count, count + 1)


class Compact(Operation):
    """Rows [.., k, columns] of x [.., n, columns] where k places rise, in order. Exact.

    With a dealer by one-hot rows or a shuffle, whichever is cheaper. Public: k and n.

    Args:
        placed: from `places`, [.., n]; x may have one dimension more, before n, of rows that go
            together.
    """

    name = "compact"

    def plain(self, machine: PlainMachine, placed: Value, x: Value, k: int) -> Value:
        kept = placed.diff(dim=-1, prepend=placed[..., :1] * 0) > 0
        order = kept.to(torch.int8).argsort(dim=-1, descending=True, stable=True)[..., :k]
        order = order.unsqueeze(-2) if placed.ndim + 1 < x.ndim else order
        return x.gather(-2, order.unsqueeze(-1).expand(*x.shape[:-2], k, x.shape[-1]))

    def run(self, machine: SecureMachine, placed: Secret, x: Secret, k: int) -> Secret:
        return _picked(machine, _standing(machine, placed, k), x)

    def run_dealer(self, machine: SecureMachine, placed: Secret, x: Secret, k: int) -> Secret:
        kept, lead = isinstance(x, Kept), placed.ndim - 1
        way = row_way(machine.setting, tuple(x.shape), lead, x.frac, k, kept, x.width)
        return way(machine, placed, x, k)


class Best(Operation):
    """The k greatest of the last dimension [n], as one-hot rows [..., k, n] in order of rank.

    Row j is [rank_i == j]: one more round than the ranks with a dealer, who deals a table for
    each rank. Public: k and n. Exact, but for elements that `bits` does not tell apart.
    """

    name = "best"

    def plain(self, machine: PlainMachine, x: Value, k: int, **bits: int) -> Value:
        wanted = torch.arange(k, device=x.device).unsqueeze(-1)
        return (rank(machine, x).unsqueeze(-2) == wanted).to(x.dtype)

    def run(self, machine: SecureMachine, x: Secret, k: int, **bits: int) -> Secret:
        size = x.shape[-1]
        ranks = rank(machine, x, **bits).unsqueeze(-2)
        wanted = torch.arange(k + 1, dtype=torch.float64).unsqueeze(-1).expand(k + 1, size)
        reached = at_least(machine, ranks, wanted, magnitude=size.bit_length() + 1)
        return reached[..., :k, :] - reached[..., 1:, :]

    def run_dealer(self, machine: SecureMachine, x: Secret, k: int, **bits: int) -> Secret:
        suite, size = machine.suite, x.shape[-1]
        assert isinstance(suite, DealerSuite)
        count = max(1, (size - 1).bit_length())
        ranks = rank(machine, x, width=count, **bits)
        rows = suite.one_hot(ranks, 0, count, machine.setting.short)
        return rows[:k].permute(*range(1, rows.ndim - 1), 0, rows.ndim - 1)

    def reaches(self, result: Value, x: Value, k: int, **bits: int) -> Reached:
        yield from rank.reaches(result, x, **bits)


class Gathered(Operation):
    """What one-hot rows [.., k, n] choose of blocks [.., n, width], in a ring of 32 bits.

    Returns the rows, kept for the products that follow, and the chosen blocks. With a dealer what
    keeping opens and the blocks leave in one round.
    """

    name = "gathered"

    def plain(self, machine: PlainMachine, rows: Value, blocks: Value) -> tuple[Value, Value]:
        return rows, rows @ blocks

    def run(self, machine: SecureMachine, rows: Secret, blocks: Secret) -> tuple[Secret, Secret]:
        rows = machine.suite.keep(rows)
        return rows, machine.suite.matmul(rows, blocks, GATHERED)

    def run_dealer(
        self, machine: SecureMachine, rows: Secret, blocks: Secret
    ) -> tuple[Secret, Secret]:
        suite = machine.suite
        assert isinstance(suite, DealerSuite)
        blocks = blocks.modulo(GATHERED)
        rows, hidden = suite.together(
            suite.keeping(rows.modulo(machine.setting.short)), suite.keeping(blocks)
        )
        return rows, suite.matmul(rows, hidden)

    def reaches(self, result: Value, rows: Value, blocks: Value) -> Reached:
        yield within("score", GATHERED - 17), blocks  # 16 fractional bits and a sign


GATHERED = 32  # bits of chosen scores


rank = Rank()
places = Places()
top_k = TopK()
compact = Compact()
standing = Standing()
best = Best()
gathered = Gathered()
