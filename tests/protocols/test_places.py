"""The k greatest in suite `dealer`: every way is exact, and the cheapest is taken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcache.protocols import selection
from mpcache.protocols.channel import Spec
from mpcache.protocols.dealer_roles import OnlineDealer
from mpcache.protocols.operation import PlainMachine, SecureMachine
from mpcache.protocols.price import RATES, price, shaped
from mpcache.protocols.search import Range, counting, cuts
from mpcache.protocols.selection import Digits, Pairs, PlaceWay, place_way, place_ways, places
from mpcache.protocols.setting import Setting

from .test_dealer import SETTING, Done, deal_and_run, perform
from .test_operations import rows_of

FRAC = SETTING.frac
BEYOND = 1 << 60  # ring units; what a search can tell is out of range
WAYS: list[PlaceWay] = [Pairs(True), Pairs(False), Digits(3), Digits(5), Digits(8)]


def split(machine: SecureMachine, rank: int | None, ring: torch.Tensor, frac: int) -> Any:
    """Ring elements in two shares that are both random, so that their sum carries and wraps."""
    generator = torch.Generator().manual_seed(11)
    mask = torch.randint(-(2**63), 2**63 - 1, ring.shape, generator=generator)
    parts = [ring - mask, mask]
    shared = [
        machine.suite.share(part if rank == source else None, tuple(ring.shape), frac, source)
        for source, part in enumerate(parts)
    ]
    return shared[0] + shared[1]


def placed_by(way: PlaceWay, units: torch.Tensor, k: int, told: Range, frac: int = FRAC) -> Done:
    """Run `way` on values of so many ring units; its ring results modulo 2^counting(n)."""
    size = units.shape[-1]

    def program(machine: SecureMachine, rank: int | None) -> list[Any]:
        x = split(machine, rank, units, frac)
        return [machine.suite.open(way(machine, x, k, told), 1, "test")]

    done = deal_and_run(program)
    done.check_cost()
    done.values = [done.values[0] & ((1 << counting(size)) - 1)]
    return done


def expected(units: torch.Tensor, k: int) -> torch.Tensor:
    """By brute force: of equal values the earlier stay."""
    stays = rows_of(units.double(), k).sum(-2)
    return stays.cumsum(-1).long()


@st.composite
def problems(draw: st.DrawFn) -> tuple[torch.Tensor, int, Range]:
    """Values in a range, many of them equal or at its ends, and how many stay."""
    told = Range(draw(st.integers(1, 20)), draw(st.integers(FRAC, 30)), draw(st.booleans()))
    size = draw(st.integers(2, 37))
    end = 1 << (told.magnitude + FRAC)
    lowest = -end if told.signed else 0
    few = st.sampled_from([lowest, lowest + 1, 5, 6, 7, end - 2, end - 1])
    value = st.one_of(few, st.integers(lowest, end - 1))
    heads = draw(st.integers(1, 2))
    rows = [draw(st.lists(value, min_size=size, max_size=size)) for _ in range(heads)]
    units = torch.tensor(rows)
    return units if heads > 1 else units[0], draw(st.integers(1, size - 1)), told


@pytest.mark.parametrize("way", WAYS, ids=str)
@settings(max_examples=8, deadline=None)
@given(problem=problems())
def test_exact_with_ties_at_odd_sizes(
    way: PlaceWay, problem: tuple[torch.Tensor, int, Range]
) -> None:
    units, k, told = problem
    assert torch.equal(placed_by(way, units, k, told).values[0], expected(units, k))


@pytest.mark.parametrize("way", WAYS, ids=str)
def test_all_equal(way: PlaceWay) -> None:
    for value in (-(1 << 31), 0, (1 << 31) - 1):
        units = torch.full((9,), value)
        for k in (1, 4, 8):
            done = placed_by(way, units, k, Range())
            assert torch.equal(done.values[0], torch.arange(1, 10).clamp(max=k))


@pytest.mark.parametrize("way", WAYS, ids=str)
@settings(max_examples=8, deadline=None)
@given(data=st.data(), told=st.builds(Range, st.integers(1, 12), signed=st.booleans()))
def test_far_out_of_range_saturates(way: PlaceWay, data: st.DataObject, told: Range) -> None:
    """What stays is the k greatest of the values brought into the range; nothing wraps."""
    end = 1 << (told.magnitude + FRAC)
    lowest = -end if told.signed else 0
    inside = st.integers(lowest, end - 1)
    value = st.one_of(inside, st.integers(-BEYOND, BEYOND), st.sampled_from([BEYOND, -BEYOND, end]))
    units = torch.tensor(data.draw(st.lists(value, min_size=2, max_size=23)))
    k = data.draw(st.integers(1, len(units) - 1))
    placed = placed_by(way, units, k, told).values[0]
    stays = placed.diff(prepend=torch.zeros(1, dtype=torch.int64))
    assert set(stays.tolist()) <= {0, 1} and int(placed[-1]) == k
    clamped = units.clamp(lowest, end - 1)
    kept = clamped[stays == 1].sort(descending=True).values
    assert torch.equal(kept, clamped.sort(descending=True).values[:k])


@pytest.mark.parametrize("way", [Pairs(True), Digits(4)], ids=str)
def test_values_with_more_bits_than_are_told_apart(way: PlaceWay) -> None:
    """Cut to 2^-keep, which misses by one step at most: whoever is two steps higher stays."""
    told = Range(6, 12)
    generator = torch.Generator().manual_seed(3)
    steps = torch.randint(-(1 << 17), 1 << 17, (61,), generator=generator)
    units = (steps << 7) + torch.randint(0, 1 << 7, (61,), generator=generator)
    placed = placed_by(way, units, 20, told, frac=12 + 7).values[0]
    stays = placed.diff(prepend=torch.zeros(1, dtype=torch.int64)) == 1
    assert int(stays.sum()) == 20
    assert int(units[stays].min()) > int(units[~stays].max()) - (2 << 7)


@pytest.mark.parametrize("shape", [(5,), (3, 40)])
def test_the_declared_price_is_what_is_measured(shape: tuple[int, ...]) -> None:
    """Of every way, with rounds and bytes as the parties count them; the least one is taken."""
    generator = torch.Generator().manual_seed(2)
    units, told = torch.randint(0, 1 << 20, shape, generator=generator), Range(9, 16, False)
    measured = {}
    for way in place_ways(told, FRAC):

        def program(machine: SecureMachine, rank: int | None, way: PlaceWay = way) -> list[Any]:
            x = machine.suite.share(units if rank == 0 else None, shape, FRAC, 0)
            way(machine, x, 3, told)
            return []

        done = deal_and_run(program)
        totals = [ledger.total() for ledger in done.ledgers]
        measured[way] = (
            totals[0].rounds * RATES["lan"].round_bytes
            + max(total.sent_bytes for total in totals)
            + done.dealt_bytes
        )
        assert measured[way] == price(SETTING, partial(way, x=shaped(shape, FRAC), k=3, told=told))
    assert place_way(SETTING, shape, FRAC, 3, told) == min(measured, key=lambda way: measured[way])


@dataclass(frozen=True)
class Far(Setting):
    profile: str = "wan"


def test_few_are_compared_in_pairs_and_many_by_digits() -> None:
    told = Range(9, 16, False)
    for setting in (SETTING, Far(suite="dealer")):
        assert isinstance(place_way(setting, (20,), FRAC, 9, told), Pairs)
        assert isinstance(place_way(setting, (1004,), FRAC, 697, told), Digits)


def test_rounds_weigh_more_on_a_wide_network() -> None:
    told = Range(9, 16, False)
    rounds = []
    for setting in (SETTING, Far(suite="dealer")):
        way = place_way(setting, (1004,), FRAC, 697, told)
        assert isinstance(way, Digits)
        rounds.append(len(cuts(told.bits(FRAC), way.most)))
    assert rounds[0] > rounds[1]


@pytest.mark.parametrize("way", [Pairs(False), Digits(4)], ids=str)
def test_operations_take_the_way_that_is_chosen(
    way: PlaceWay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "place_way", lambda *shape: way)
    x = torch.round(torch.randn(2, 3, 9, generator=torch.Generator().manual_seed(1)).double() * 8)
    done = perform(lambda machine, x: selection.top_k(machine, x, 4), [x])
    done.check_cost()
    assert torch.equal(done.values[0], rows_of(x, 4))


@pytest.mark.parametrize("k", [0, 5])
def test_none_and_all_cost_nothing(k: int) -> None:
    x = torch.arange(5.0).double()
    done = perform(lambda machine, x: places(machine, x, k), [x])
    assert torch.equal(done.values[0], places(PlainMachine(SETTING), x, k))
    assert done.ledgers[0].total().rounds == 1  # the opening


def test_nothing_is_sent_beyond_the_bits_that_a_mask_hides(monkeypatch: pytest.MonkeyPatch) -> None:
    """Digits and the sought digit go out on one bit more than they have, candidates on one."""
    told, most = Range(9, 16, False), 4
    sent: dict[str, list[torch.Tensor]] = {}
    trade = OnlineDealer.trade

    def spy(
        self: OnlineDealer, kind: str, specs: Any, messages: Callable[[], list[torch.Tensor]]
    ) -> list[torch.Tensor]:
        sent.setdefault(kind, []).extend(messages())
        return trade(self, kind, specs, messages)

    monkeypatch.setattr(OnlineDealer, "trade", spy)
    units = torch.randint(0, 1 << 25, (200,), generator=torch.Generator().manual_seed(4))
    done = placed_by(Digits(most), units, 77, told)
    assert torch.equal(done.values[0], expected(units, 77))
    widths = cuts(told.bits(FRAC), most)
    for tensor, width in zip(sent["digits"], widths * 2, strict=True):
        assert 1 << width <= int(tensor.max()) < 2 << width  # 200 uniform ones
    for tensor in sent["digit"][::3]:
        assert 0 <= int(tensor) < 2 << max(widths)
    for tensor in sent["candidates"]:
        assert set(tensor.tolist()) == {0, 1}
    assert {Spec.of(tensor).dtype for tensor in sent["bits"]} == {torch.uint8}


@pytest.mark.slow
def test_more_tokens_than_sixteen_bits_count() -> None:
    size, k, told = 33_001, 20_007, Range(3, 10, False)
    units = torch.randint(0, 1 << 13, (size,), generator=torch.Generator().manual_seed(8))
    order = (-units * size + torch.arange(size)).argsort()  # the greatest first, then the earlier
    stays = torch.zeros(size, dtype=torch.int64)
    stays[order[:k]] = 1
    placed = placed_by(Digits(5), units, k, told, frac=10).values[0]
    assert torch.equal(placed, stays.cumsum(-1))
