"""The greatest by groups: right for every size, at its cost, and no bit too much is sent."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcache.protocols import groups
from mpcache.protocols.channel import Spec
from mpcache.protocols.dealer import DealerSuite
from mpcache.protocols.greatest import argmax
from mpcache.protocols.groups import BITS, LARGEST, Level, Winners, plan
from mpcache.protocols.operation import SecureMachine
from mpcache.protocols.setting import Setting

from .test_dealer import SETTING, Done, deal_and_run, normal, perform

STEP = 2.0**-12  # what is told apart


def best(x: torch.Tensor, fracs: list[int] | None = None, setting: Setting = SETTING) -> Done:
    done = perform(argmax, [x], fracs, setting)
    done.check_cost()
    return done


@pytest.mark.parametrize("size", [1, 2, 3, 5, 6, 7, 63, 64, 65, 500, 49_152])
def test_the_greatest_of_any_number(size: int) -> None:
    rows = 1 if size > 1000 else 3
    x = torch.round(normal(rows, size, spread=4) / STEP) * STEP
    (found,) = best(x).values
    assert torch.equal(x.gather(1, found.long().unsqueeze(1)), x.amax(1, keepdim=True))


@pytest.mark.parametrize("size", [*range(2, 10), 31, 33])
def test_groups_of_every_size(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The winner at each place, in the first level, the last and between, with groups filled up."""
    sizes = (size, 3, 2)
    count = size * 6 - 1 if size > 2 else 12
    levels = [Level(count, size, True)]
    for later in sizes[1:]:
        levels.append(Level(levels[-1].groups, later, False))
    assert [level.last for level in levels] == [False, False, True]
    monkeypatch.setattr(groups, "plan", lambda *_: tuple(levels))
    places = [*range(0, count, max(1, count // 30)), count - 1]
    x = torch.round(normal(len(places), count).clamp(-3, 3) / STEP) * STEP
    x[torch.arange(len(places)), places] = 5.0
    (found,) = best(x).values
    assert found.tolist() == places


@settings(max_examples=15, deadline=None)
@given(
    values=st.lists(st.integers(-(2**23) + 1, 2**23), min_size=1, max_size=40),
    bits=st.integers(8, 24),
)
def test_any_values_within_the_range(values: list[int], bits: int) -> None:
    """Differences up to 2^12 less a step, many of them equal, whatever their fractional bits."""
    x = torch.tensor(values, dtype=torch.float64) * STEP
    x = torch.round(x * 2.0**bits).clamp(-(2047 << bits), 2047 << bits) / 2.0**bits
    (found,) = best(x, [bits]).values
    chosen = x[int(found)]
    off = 0.0 if bits <= 12 else 2 * STEP
    assert float(x.max() - chosen) <= off - (2.0**-bits if off else 0)


def test_ties_have_one_winner() -> None:
    x = torch.zeros(1, 500, dtype=torch.float64)
    (found,) = best(x).values
    assert 0 <= int(found) < 500


def test_logits_with_all_their_bits() -> None:
    """As a head leaves them, with 32 fractional bits: the winner is within two steps."""
    x = normal(20, 63)
    (found,) = best(x, [32]).values
    missed = x.amax(1) - x.gather(1, found.long().unsqueeze(1)).squeeze(1)
    assert bool((missed < 2 * STEP).all())


# --- cost ----------------------------------------------------------------------------------------


def test_the_levels_for_a_vocabulary() -> None:
    lan, wan = plan(49_152, 1, "lan"), plan(49_152, 1, "wan")
    assert [level.size for level in lan] == [2, 3, 3, 4, 12, 57]
    assert [level.size for level in wan] == [3, 4, 4, 16, 64]
    for levels in (lan, wan):
        assert levels[0].count == 49_152 and levels[-1].last
        for level, after in itertools.pairwise(levels):
            assert level.groups == after.count and not level.last
        assert all(level.size <= LARGEST for level in levels)


@pytest.mark.parametrize("rows", [1, 3])
@pytest.mark.parametrize("size", [2, 5, 6, 63, 500])
def test_dealt_bytes_are_the_plans(size: int, rows: int) -> None:
    done = best(normal(rows, size))
    levels = plan(size, rows, "lan")
    assert done.dealt_bytes == sum(rows * level.groups * level.dealt_bytes for level in levels)
    assert done.ledgers[0].total().rounds == 3 * len(levels) + 1  # and the opening


def test_declared_costs() -> None:
    """Literals: a pair's words and node, an element's tables."""
    first, middle = Level(40, 2, True), Level(40, 5, False)
    last, alone = Level(40, 40, False), Level(5, 5, True)
    assert first.dealt_bytes == (32 + 16) + 2 * 2 * 4 * 2
    assert middle.dealt_bytes == 10 * (32 + 16) + 5 * 3 * 4 * 16
    assert last.dealt_bytes == 780 * (32 + 128) + 40 * 2 * 4 * 64
    assert alone.dealt_bytes == 10 * (32 + 16) + 5 * 4 * 16
    for level in (first, middle, last, alone):
        dealt = Winners(level, 1, 7).dealt_bytes
        assert dealt == level.groups * level.dealt_bytes


def test_a_wide_network_takes_fewer_rounds_and_more_bytes() -> None:
    counted = {}
    for profile in ("lan", "wan"):
        levels = plan(49_152, 1, profile)
        counted[profile] = len(levels), sum(v.groups * v.dealt_bytes for v in levels)
    (rounds, dealt), (fewer, more) = counted["lan"], counted["wan"]
    assert fewer < rounds and dealt < more < 2.5 * dealt
    # a tournament of pairs takes 4 rounds for each of 16 levels, and 148 bytes a pair
    assert 3 * rounds <= 64 / 3 and dealt < 148 * 49_151


def test_the_setting_tells_the_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    inner = groups.plan
    monkeypatch.setattr(groups, "plan", lambda *given: asked.append(given[2]) or inner(*given))
    best(normal(2, 9))
    assert set(asked) == {"lan"}
    asked.clear()
    best(normal(2, 9), setting=Setting(suite="dealer", profile="wan"))
    assert set(asked) == {"wan"}


# --- what is sent --------------------------------------------------------------------------------


def sent_of(x: torch.Tensor, levels: tuple[Level, ...]) -> list[tuple[str, int, torch.Tensor]]:
    """Every tensor that a party sends but the opening: kind, rank, content."""
    seen: list[tuple[str, int, torch.Tensor]] = []
    inner = DealerSuite.swap

    def noting(self: Any, kind: str, specs: Any, messages: Any) -> list[torch.Tensor]:
        if not self.hollow:
            own = messages()
            assert [Spec.of(tensor) for tensor in own] == list(specs)
            seen.extend((kind, self.rank, tensor) for tensor in own)
        return inner(self, kind, specs, messages)

    def program(machine: SecureMachine, rank: int | None) -> list[Any]:
        ring = machine.encode(x, 32) if rank == 0 else None
        secret = machine.suite.share(ring, tuple(x.shape), 32, 0)
        return [machine.open(argmax(machine, secret), "client", "test")]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(DealerSuite, "swap", noting)
        patch.setattr(groups, "plan", lambda *_: levels)
        deal_and_run(program)
    return seen


def test_no_message_holds_a_bit_that_is_not_masked() -> None:
    """Each is uniform on the bits of its mask and zero above, on values far from zero.

    The bounds of 7 standard deviations give odds of a false alarm below 1e-9 for all bits.
    """
    levels = (Level(30, 4, True), Level(8, 8, False))
    x = torch.full((400, 30), -1500.0, dtype=torch.float64)
    x[:, 7] = 1500.0
    masks = {
        ("compare", 4, 0): BITS, ("node", 6, 0): 7, ("winner", 4, 0): 3,
        ("compare", 8, 0): BITS, ("compare", 8, 1): 6, ("node", 28, 0): 7, ("winner", 8, 0): 3,
    }  # fmt: skip
    seen, place = sent_of(x, levels), {0: -1, 1: -1}
    counted = 0
    for number, (kind, rank, tensor) in enumerate(seen):
        before = [entry for entry in seen[:number] if entry[1] == rank]
        again = bool(before) and before[-1][0] == kind == "compare"
        bits = masks[kind, tensor.shape[0], int(again)]
        word = tensor.long()
        assert bool(((word >= 0) & (word < 1 << bits)).all()), (kind, rank)
        off = 7 * 0.5 / word.numel() ** 0.5
        for bit in range(bits):
            assert abs(float(((word >> bit) & 1).double().mean()) - 0.5) < off, (kind, rank, bit)
        place[rank] += 1
        counted += 1
    assert counted == 2 * 7
