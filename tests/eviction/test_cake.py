"""Budgets by layer, and worths by mean and variance."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from protocols.harness import WORLDS, grid, perform, plain

from mpcache.config import load
from mpcache.errors import UsageError
from mpcache.eviction.cake import Cake, parts, preferences_of, worth
from mpcache.eviction.registry import configured, policy_at
from mpcache.models.known import KNOWN
from mpcache.program import expected_kept
from mpcache.protocols.operation import PlainMachine
from mpcache.protocols.setting import Setting
from protocols import test_dealer

from .harness import SPEC, Activations, random_activations, walk
from .naive import walk_naive
from .naive_layers import LAYERED, level_parts
from .test_compared import CLEAR, MarginMachine

SMOLLM2 = KNOWN["smollm2"].spec
weights_ = st.lists(st.integers(1, 50), min_size=1, max_size=30).map(tuple)


@given(weights=weights_, most=st.integers(1, 200), data=st.data())
def test_parts_are_proportional_and_sum_up(
    weights: tuple[int, ...], most: int, data: st.DataObject
) -> None:
    total = data.draw(st.integers(0, most * len(weights)))
    found = parts(total, weights, most)
    assert sum(found) == total and all(0 <= part <= most for part in found)
    for part, exact in zip(found, level_parts(total, weights, most), strict=True):
        assert abs(part - exact) < 1 + 1e-6
    for part, weight in zip(found, weights, strict=True):
        assert all(part <= p + 1 for p, w in zip(found, weights, strict=True) if w >= weight)


def test_parts_by_hand() -> None:
    assert parts(10, (1, 1, 2), 99) == (3, 2, 5)  # 2.5, 2.5, 5: the first of two halves goes up
    assert parts(10, (1, 1, 8), 6) == (2, 2, 6)
    assert parts(18, (1, 2, 3), 6) == (6, 6, 6)
    assert parts(0, (5, 1), 3) == (0, 0)


preferences = st.tuples(*[st.integers(1, 9)] * 4)


@settings(max_examples=30)
@given(
    preferences=preferences,
    budget=st.integers(2, 40),
    gamma=st.sampled_from([0, 3, 200]),
    seed=st.integers(0, 2**32),
    heads=st.integers(1, 2),
    group=st.integers(1, 2),
    prompt=st.integers(16, 40),  # of fewer, pooled sums are equal
)
def test_equals_brute_force(
    preferences: tuple[int, ...], budget: int, gamma: int, seed: int, heads: int, group: int,
    prompt: int,
) -> None:  # fmt: skip
    policy = policy_at("cake", min(budget, prompt), prompt)
    assert isinstance(policy, Cake)
    # with few tokens before the window sums over 5 neighbours are the same sums
    pooled = 5 if prompt - policy.observed > 4 else 1
    policy = dataclasses.replace(policy, preferences=preferences, gamma=gamma, pooled=pooled)
    activations = random_activations(seed, [0, 1, 3], heads, group, prompt, 2, 4)
    results = walk(policy, activations)(PlainMachine(Setting()), *activations.tensors)
    expected = walk_naive(LAYERED, policy, activations)
    for got, want in zip(results, expected, strict=False):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


UNEVEN = Cake(7, 3, preferences=(1, 2, 9, 4))


@functools.cache
def clear() -> Activations:
    for seed in range(3000):
        activations = random_activations(seed, [0, 1, 2], 1, 2, 19, 2, 4)
        machine = MarginMachine()
        walk(UNEVEN, activations)(machine, *activations.tensors)
        if machine.margin > 20 * CLEAR:  # a worth is 9 times a mean
            return activations
    raise AssertionError("no seed gives clear decisions")


def test_uneven_layers_on_shares() -> None:
    activations = clear()
    program = walk(UNEVEN, activations)
    twin = program(PlainMachine(Setting()), *activations.tensors)
    done = test_dealer.perform(program, activations.tensors)
    done.check_cost()
    for got, want in zip(done.values, twin, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=0.01)
    stored = [keys.shape[1] for keys in twin[9:12]]  # two steps on top
    assert stored == [3 + 1 + 2, 3 + 2 + 2, 3 + 9 + 2]


def test_worths_are_exact_on_shares() -> None:
    generator = torch.Generator().manual_seed(5)
    weights = grid(torch.rand(2, 3, 7, 5, generator=generator, dtype=torch.float64) ** 4)
    weights[0, 0, :, 0], weights[0, 0, :, 1:] = 1.0, 0.0
    count = weights.shape[2]
    variance = weights.var(2, correction=0)
    want = ((weights.mean(2) + 200 * variance) * count**2).sum(1)

    def judged(machine: Any, x: Any) -> Any:
        return worth(machine, x, 200)

    torch.testing.assert_close(judged(plain(), weights), want)
    done = test_dealer.perform(judged, [weights])
    done.check_cost()
    torch.testing.assert_close(done.values[0], want, rtol=0, atol=1e-9)
    for world in WORLDS:
        outcome = perform(world, judged, [weights])
        outcome.check_cost()
        torch.testing.assert_close(outcome.results[0], want, rtol=0, atol=1e-9)


def test_what_draws_attention_by_turns_is_kept() -> None:
    """A token that one query looks at alone beats one that all look at a little."""
    steady, turns = torch.full((4, 1), 0.3), torch.tensor([[0.9], [0.0], [0.0], [0.0]])
    weights = torch.cat([steady, turns], 1)[None, None]
    assert worth(plain(), weights, 0)[0].argmax() == 0
    assert worth(plain(), weights, 200)[0].argmax() == 1


# --- where preferences come from -----------------------------------------------------------------


def test_shipped_preferences_are_of_smollm2() -> None:
    known = preferences_of(SMOLLM2)
    assert len(known) == SMOLLM2.layers and min(known) >= 1 and len(set(known)) > 5
    assert policy_at("cake", 90, 896).fitted(SMOLLM2) == Cake(90, 32, preferences=known)


def test_other_models_have_equal_layers() -> None:
    policy = policy_at("cake", 90, 896)
    assert isinstance(policy, Cake)
    fitted = policy.fitted(SPEC)
    assert fitted.preferences == (1,) * SPEC.layers and fitted.layer_kind(3) == 0
    assert fitted.layer_budget(3, 896, 3) == fitted.budget(896, 3) == policy.budget(896, 3)


def test_layers_come_to_the_budget_on_average() -> None:
    policy = policy_at("cake", 90, 896).fitted(SMOLLM2)
    layers = [policy.layer_budget(layer, 896, 2) for layer in range(SMOLLM2.layers)]
    assert sum(one.static for one in layers) == 90 * SMOLLM2.layers
    assert len({one.static for one in layers}) > 5
    assert all(one.dynamic == (one.static + 1,) for one in layers)


def test_given_preferences() -> None:
    options = load(None, {"cache": {"policy": "cake", "preferences": [1, 2, 3, 4]}})
    policy = configured("cake", 100, options.cache.model_dump())
    assert policy == Cake(20, 10, preferences=(1, 2, 3, 4))
    kept = expected_kept(options, SPEC, 100)
    assert kept["static"] == [14, 18, 22, 26]
    assert kept["dynamic"][:2] == [[15, 19, 23, 27], [16, 20, 24, 28]]
    with pytest.raises(UsageError, match=r"has 4 numbers, and smollm2 has 30 layers"):
        policy.fitted(SMOLLM2)
    with pytest.raises(UsageError, match="a list of whole numbers from 1, one a layer"):
        load(None, {"cache": {"policy": "cake", "preferences": [1, 0]}})
