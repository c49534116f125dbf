"""Who stays after the prompt, on shares: the twin's tokens, to the last bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from protocols.test_dealer import SETTING, Done, deal_and_run
from protocols.test_places import split

from mpcache.eviction.mpcache import MPCache
from mpcache.eviction.oblivious import top
from mpcache.protocols import selection
from mpcache.protocols.operation import PlainMachine, SecureMachine
from mpcache.protocols.selection import Digits, Pairs, Rows, Shuffled

UNIT = 2.0**-SETTING.frac
WAYS = {
    "pairs, rows": (Pairs(True), Rows()),
    "pairs, shuffle": (Pairs(False), Shuffled()),
    "digits, rows": (Digits(5), Rows()),
    "digits, shuffle": (Digits(7), Shuffled()),
}


def stored(
    importance: torch.Tensor,
    both: torch.Tensor,
    count: int,
    ends: tuple[int, int] = (0, 0),
    **bits: int,
) -> tuple[Done, list[torch.Tensor]]:
    """Keys and values `both` [2, heads, tokens, head_dim] of those that stay, and the twin's."""

    def operation(machine: Any, importance: Any, both: Any) -> list[Any]:
        both = machine.keep(both)
        kept = top(machine, importance, count, *ends, **bits)
        return list(kept.stored(machine, both[0], both[1]))

    def program(machine: SecureMachine, rank: int | None) -> list[Any]:
        shared = [split(machine, rank, (x / UNIT).long(), SETTING.frac) for x in (importance, both)]
        return [machine.open(value, "client", "test") for value in operation(machine, *shared)]

    done = deal_and_run(program)
    done.check_cost()
    return done, operation(PlainMachine(SETTING), importance, both)


def random_both(heads: int, tokens: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(tokens)
    exact = torch.randn(2, heads, tokens, width, generator=generator, dtype=torch.float64)
    return torch.round(exact / UNIT) * UNIT


@pytest.mark.parametrize("ways", WAYS)
@settings(max_examples=8, deadline=None)
@given(data=st.data(), tokens=st.integers(2, 31), heads=st.sampled_from([0, 1, 3]))
def test_stored_tokens_equal_the_twins(
    ways: str, data: st.DataObject, tokens: int, heads: int
) -> None:
    """With ties, ends that always stay, one choice for all heads or one a head."""
    count = data.draw(st.integers(1, tokens))
    sink = data.draw(st.integers(0, count))
    recent = data.draw(st.integers(0, count - sink))
    value = st.integers(0, 4) | st.integers(0, 2**31 - 1)
    rows = [
        data.draw(st.lists(value, min_size=tokens, max_size=tokens)) for _ in range(max(1, heads))
    ]
    importance = torch.tensor(rows, dtype=torch.float64) * UNIT
    both = random_both(heads or 2, tokens, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(selection, "place_way", lambda *shape: WAYS[ways][0])
        patch.setattr(selection, "row_way", lambda *shape: WAYS[ways][1])
        chooses = importance if heads else importance[0]
        done, twin = stored(chooses, both, count, (sink, recent))
    for got, want in zip(done.values, twin, strict=True):
        assert got.shape[1] == count
        assert torch.equal(got, want)


@pytest.mark.parametrize("ways", WAYS)
def test_importance_far_out_of_range_saturates(ways: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Huge is most important and below zero is least; those in between keep their order."""
    monkeypatch.setattr(selection, "place_way", lambda *shape: WAYS[ways][0])
    monkeypatch.setattr(selection, "row_way", lambda *shape: WAYS[ways][1])
    huge = 2.0**44
    importance = torch.tensor(
        [3.0, -huge, huge, 2.0, 255.9, -UNIT, 1e9, 1.0, -5.0, 256.0, 1.0 + UNIT],
        dtype=torch.float64,
    )
    both = random_both(2, 11, 2)
    for count, stays in [
        (4, [2, 4, 6, 9]), (5, [0, 2, 4, 6, 9]), (7, [0, 2, 3, 4, 6, 9, 10]),
        (8, [0, 2, 3, 4, 6, 7, 9, 10]),
    ]:  # fmt: skip
        done, _ = stored(importance, both, count, magnitude=8)
        for got, x in zip(done.values, both, strict=True):
            assert torch.equal(got, x[:, stays])


def test_a_layer_of_a_long_prompt() -> None:
    """SmolLM2's shape at 1,024 tokens, with equal importances across the edge; and what it takes.

    Comparing all pairs took 125 MB dealt and 11 MB sent.
    """
    tokens, policy = 1024, MPCache()
    generator = torch.Generator().manual_seed(5)
    importance = torch.randint(0, 300, (tokens,), generator=generator).double() * 64 * UNIT
    kept = policy.static_kept(tokens)
    middle = importance[policy.sink : tokens - policy.recent].sort(descending=True).values
    edge = kept - policy.sink - policy.recent
    assert middle[edge - 1] == middle[edge], "a tie decides"
    both = random_both(3, tokens, 64)
    done, twin = stored(importance, both, kept, (policy.sink, policy.recent))
    for got, want in zip(done.values, twin, strict=True):
        assert torch.equal(got, want)
    spent = done.ledgers[1].total()
    masked = 8 * both.numel()
    assert spent.rounds < 40
    assert spent.sent_bytes - masked < 4.5e6 and done.dealt_bytes < 8e6
