"""Rows that stay, moved by a shuffle or by one-hot rows: bit for bit, and nobody learns whose."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcache.kernels.prg import Stream
from mpcache.protocols import selection
from mpcache.protocols.dealer_roles import OnlineDealer
from mpcache.protocols.operation import PlainMachine, SecureMachine
from mpcache.protocols.price import RATES, price, shaped
from mpcache.protocols.selection import ROW_WAYS, Rows, RowWay, Shuffled, compact, row_way
from mpcache.protocols.shuffle import Shuffle, reordered

from .test_dealer import SETTING, Done, deal_and_run
from .test_places import split

FRAC = SETTING.frac
Shape = tuple[int, ...]


def random_ring(*shape: int, seed: int = 7) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-(2**63), 2**63 - 1, shape, generator=generator)


def standing(shape: Shape, k: int, seed: int) -> torch.Tensor:
    """Places [.., n] of k random elements of each row."""
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(shape, generator=generator).argsort(-1).argsort(-1)
    return (order < k).long().cumsum(-1)


def chosen(placed: torch.Tensor, x: torch.Tensor, k: int) -> torch.Tensor:
    """By brute force: rows of x [.., n, columns], or [.., heads, n, columns], in order."""
    if placed.ndim > 1:
        return torch.stack([chosen(p, part, k) for p, part in zip(placed, x, strict=True)])
    stays = [i for i, place in enumerate(placed.tolist()) if place > (placed[i - 1] if i else 0)]
    assert len(stays) == k
    return torch.stack([x[..., i, :] for i in stays], -2)


def moved_by(way: RowWay, placed: torch.Tensor, x: torch.Tensor, k: int, kept: bool) -> Done:
    def program(machine: SecureMachine, rank: int | None) -> list[Any]:
        suite, rows = machine.suite, split(machine, rank, x, FRAC)
        rows = suite.keep(rows) if kept else rows
        return [suite.open(way(machine, split(machine, rank, placed, 0), rows, k), 1, "test")]

    done = deal_and_run(program)
    done.check_cost()
    return done


@pytest.mark.parametrize("kept", [True, False], ids=["kept", "fresh"])
@pytest.mark.parametrize("way", ROW_WAYS, ids=str)
@settings(max_examples=12, deadline=None)
@given(
    lead=st.sampled_from([(), (1,), (3,)]),
    heads=st.sampled_from([(), (2,)]),
    size=st.integers(2, 33),
    columns=st.integers(1, 7),
    data=st.data(),
)
def test_rows_are_exact(
    way: RowWay, kept: bool, lead: Shape, heads: Shape, size: int, columns: int, data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, size))
    placed, x = standing((*lead, size), k, size), random_ring(*lead, *heads, size, columns)
    wanted = chosen(placed, x, k)
    assert torch.equal(moved_by(way, placed, x, k, kept).values[0], wanted)
    twin = compact(PlainMachine(SETTING), placed, x, k)
    assert torch.equal(twin, wanted)


@pytest.mark.parametrize("shape", [(9, 1), (9, 4), (2, 60, 40)])
def test_the_declared_price_is_what_is_measured(shape: Shape) -> None:
    """But for products, which are counted; and the cheapest way is taken."""
    placed, x = standing(shape[:-1], 4, 1), random_ring(*shape)
    measured = {}
    for way in ROW_WAYS:

        def program(machine: SecureMachine, rank: int | None, way: RowWay = way) -> list[Any]:
            suite = machine.suite
            rows = suite.share(x if rank == 0 else None, shape, FRAC, 0)
            place = suite.share(placed if rank == 0 else None, shape[:-1], 0, 0)
            way(machine, place, rows, 4)
            return []

        done = deal_and_run(program)
        totals, rate = [ledger.total() for ledger in done.ledgers], RATES["lan"]
        measured[way] = (
            totals[0].rounds * rate.round_bytes
            + max(total.sent_bytes for total in totals)
            + done.dealt_bytes
        )
        if way == Rows():
            measured[way] += x.numel() * 4 // rate.multiply_adds
        hollow = {"placed": shaped(shape[:-1], 0), "x": shaped(shape, FRAC), "k": 4}
        assert measured[way] == price(SETTING, partial(way, **hollow))
    cheapest = min(measured, key=lambda way: measured[way])
    assert row_way(SETTING, shape, len(shape) - 2, FRAC, 4, False) == cheapest


def test_many_tokens_are_shuffled_and_few_multiplied() -> None:
    assert row_way(SETTING, (3, 1004, 128), 0, FRAC, 697, True) == Shuffled()
    assert row_way(SETTING, (32, 1004, 128), 0, FRAC, 697, True) == Shuffled()
    assert row_way(SETTING, (1, 20, 8), 0, FRAC, 5, True) == Rows()


def test_a_shuffle_sends_each_row_once_and_deals_each_once() -> None:
    """Half of the columns one way and half the other; what is left is small."""
    size, columns, k = 200, 64, 70
    whole, small = 8 * size * columns, 60 * size
    done = moved_by(Shuffled(), standing((size,), k, 1), random_ring(size, columns), k, True)
    for rank, ledger in enumerate(done.ledgers):
        masked, shown = whole, 8 * k * columns * (1 - rank)  # once before; to the client after
        assert 0 < ledger.total().sent_bytes - masked - shown - whole // 2 < small
    assert 0 < done.dealt_bytes - whole < small


# --- what is seen ---------------------------------------------------------------------------------


def seen(
    placed: torch.Tensor, x: torch.Tensor, k: int, monkeypatch: pytest.MonkeyPatch
) -> dict[str, list[torch.Tensor]]:
    """What the parties send to each other in a shuffle, by kind."""
    sent: dict[str, list[torch.Tensor]] = {}
    inner = {name: getattr(OnlineDealer, name) for name in ("trade",)}

    def spy(name: str, *args: Any) -> list[torch.Tensor]:
        *rest, messages = args
        if args[2][args[0].rank]:
            own = messages()
            sent.setdefault(args[1], []).extend(own)
            messages = lambda: own  # noqa: E731
        return inner[name](*rest, messages)  # type: ignore[no-any-return]

    def spied(name: str) -> Callable[..., list[torch.Tensor]]:
        return lambda *args: spy(name, *args)

    with monkeypatch.context() as patch:
        for name in inner:
            patch.setattr(OnlineDealer, name, spied(name))
        done = moved_by(Shuffled(), placed, x, k, True)
    assert torch.equal(done.values[0], chosen(placed, x, k))
    return sent


@pytest.mark.parametrize("columns", [1, 2], ids=["one leads", "both lead"])
@pytest.mark.parametrize("stays", [0, 1, 2])
def test_places_are_seen_in_an_order_that_is_uniform(
    columns: int, stays: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """900 shuffles of three rows, the same one staying in all: it is seen anywhere equally often.

    A count of 300 has a standard deviation of 14; it is more than 90 off once in 10^9 times.
    """
    placed = (torch.arange(3) >= stays).long().expand(900, 3).contiguous()
    sent = seen(placed, random_ring(900, 3, columns), 1, monkeypatch)
    assert len(sent["places"]) == columns
    for places in sent["places"]:
        assert torch.equal(places.sort(-1).values, torch.tensor([0, 0, 1]).expand(900, 3).short())
        assert bool(((places.sum(0) - 300).abs() < 90).all())


def test_the_halves_have_orders_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each party leads with an order that the other does not know, for its half of the columns."""
    placed = standing((50, 20), 9, 5)
    sent = seen(placed, random_ring(50, 20, 2), 9, monkeypatch)
    one, other = sent["places"]
    assert int((one == other).all(-1).sum()) < 5
    for places in (one, other):
        stays = placed.diff(dim=-1, prepend=torch.zeros(50, 1, dtype=torch.int64)) * placed
        assert torch.equal(places.long().sort(-1).values, stays.sort(-1).values)


def test_rows_are_sent_under_a_mask(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rows twice, all zero: no element is sent twice, none is zero."""
    placed = standing((40,), 9, 5)
    first, second = (seen(placed, torch.zeros(40, 6).long(), 9, monkeypatch) for _ in range(2))
    values = [t.flatten() for sent in (first, second) for t in sent["turned"] if t.ndim == 2]
    assert len(values) == 4
    every = torch.cat(values)
    assert len(every.unique()) == len(every) and int((every == 0).sum()) == 0


def test_an_order_takes_all_rows_along() -> None:
    rows = random_ring(2, 3, 5, 4)
    order = torch.tensor([[4, 0, 2], [1, 3, 0]])
    got = reordered(rows, order)
    assert got.shape == (2, 3, 3, 4)
    for lead in range(2):
        assert torch.equal(got[lead], rows[lead][:, order[lead]])
    assert torch.equal(reordered(rows, order[0]), rows[:, :, order[0]])


def test_orders_are_uniform() -> None:
    """All 6 orders of three rows, of 6,000 drawn: 1,000 times, standard deviation 29."""
    drawn = Shuffle((6000, 3, 1), 1, 0, 16, None).draw(0, Stream(bytes(16)))["first"].argsort(-1)
    counts = (drawn[:, 0] * 3 + drawn[:, 1]).bincount()
    assert bool(((counts[counts > 0] - 1000).abs() < 180).all()) and int((counts > 0).sum()) == 6


def test_the_operation_takes_the_way_that_is_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    placed, x = standing((2, 9), 4, 3), random_ring(2, 9, 3)
    for way in ROW_WAYS:
        monkeypatch.setattr(selection, "row_way", lambda *shape, way=way: way)

        def program(machine: SecureMachine, rank: int | None) -> list[Any]:
            suite = machine.suite
            rows = suite.share(x if rank == 0 else None, tuple(x.shape), FRAC, 0)
            place = suite.share(placed if rank == 0 else None, tuple(placed.shape), 0, 0)
            return [suite.open(compact(machine, place, rows, 4), 1, "test")]

        assert torch.equal(deal_and_run(program).values[0], chosen(placed, x, 4))
