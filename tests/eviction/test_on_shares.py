"""The policies on two and three parties: the tokens of the plain reading, at the predicted cost."""

from __future__ import annotations

import functools

import pytest
import torch
from protocols.harness import TRUNCATION, UNIT, WORLDS, perform

from mpcache.eviction.base import Policy, causal_mask
from mpcache.eviction.full import Full
from mpcache.eviction.mpcache import MPCache
from mpcache.protocols.operation import PlainMachine
from mpcache.protocols.setting import Setting
from protocols import bounds

from .harness import (
    Activations,
    attended,
    random_activations,
    shown,
    walk,
    walk_reference,
)

# Shares move an importance by some tens of units for each judging row, of 12, and a similarity by
# one a dimension, of 6: about 300 units = 0.005 at most.
CLEAR = 0.005


@functools.cache
def clear_activations(
    policy: MPCache, prompt: int, steps: int, layers: tuple[int, ...]
) -> Activations:
    """Random activations on which every decision of the policy has a margin."""
    for seed in range(500):
        activations = random_activations(seed, layers, 1, 2, prompt, steps, 6)
        if walk_reference(policy, activations).reference.margin > CLEAR:
            return activations
    raise AssertionError("no seed gives clear decisions")


def check(policy: Policy, activations: Activations, world: int) -> None:
    """Stored tokens are exact; contexts are within attention's bound over the attended tokens."""
    program = walk(shown(policy), activations)
    twin, seen = attended(lambda: program(PlainMachine(Setting()), *activations.tensors))
    outcome = perform(world, program, activations.tensors)
    outcome.check_cost()
    layers, contexts = list(activations.layers), len(seen)
    assert len(outcome.results) == len(twin) == contexts + 2 * len(layers)
    for got, want in zip(outcome.results[contexts:], twin[contexts:], strict=True):
        assert torch.equal(got, want), "stored keys and values, moved by one-hot rows, are exact"
    prompt = activations.prompt
    for i, (keys, values) in enumerate(seen):
        step, layer = divmod(i, len(layers))
        queries = activations.layers[layers[layer]][0]
        queries = (
            queries[:, :, prompt + step - 1 : prompt + step] if step else queries[:, :, :prompt]
        )
        mask = None if step else causal_mask(prompt)
        bound = bounds.attention(queries, keys, values, TRUNCATION[world], mask) * UNIT
        error = (outcome.results[i] - twin[i]).abs()
        assert bool((error <= bound).all()), (i, (error / bound).max())
        assert float(bound.max()) < 0.1, "another token would show"


CASES = {
    # 24 of 29 tokens stay
    "two levels": MPCache((8, 4), 0.6, 0.8, 0.5, 0.5, 1, 2, True, "extrema"),
    "mean": MPCache((8, 4), 0.6, 0.8, 0.5, 0.5, 1, 2, True),
    "doubled": MPCache((4, 2), 0.6, 0.8, 1.0, 0.5, sink=1, recent=2, observe=3, most_clusters=6),
    "ends only": MPCache((8, 4), coarse_keep=0.1, dynamic_keep=0.1, sink=2, recent=2),
    "no middle coarse": MPCache((12, 4), coarse_keep=0.1, dynamic_keep=0.5, sink=2, recent=2),
    "one level": MPCache((8, 4), coarse_keep=1.0, dynamic_keep=0.4, sink=2, recent=2),
    "nothing but sink and recent": MPCache((4, 2), static_keep=0.1, sink=6, recent=6),
    "everything": MPCache((8, 4), static_keep=1.0, coarse_keep=1.0, dynamic_keep=1.0),
}


QUICK = {"two levels", "nothing but sink and recent"}  # the others are slow with three parties


@pytest.mark.parametrize(
    ("name", "world"),
    [
        pytest.param(name, world, marks=[pytest.mark.slow] * (world == 3 and name not in QUICK))
        for name in CASES
        for world in WORLDS
    ],
)
def test_mpcache(name: str, world: int) -> None:
    policy = CASES[name]
    layers = (0, 2, 3) if name == "two levels" else (2, 3)
    check(policy, clear_activations(policy, 29, 2, layers), world)


@pytest.mark.parametrize("world", WORLDS)
def test_clusters_close_during_decode(world: int) -> None:
    policy = MPCache((4, 2), static_keep=0.9, dynamic_keep=0.5, sink=1, recent=1)
    activations = clear_activations(policy, 9, 8, (0,))
    check(policy, activations, world)
    budget = policy.budget(9, 9)
    assert budget.static == 9 and len(set(budget.dynamic)) > 2


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("prompt", [1, 7])
def test_full(prompt: int, world: int) -> None:
    check(Full(), random_activations(2, [0, 1], 2, 2, prompt, 2, 4), world)


def test_full_is_causal_attention() -> None:
    activations = random_activations(2, [0, 1], 2, 3, 7, 4, 6)
    results = walk(Full(), activations)(PlainMachine(Setting()), *activations.tensors)
    for i, (queries, keys, values) in enumerate(activations.layers.values()):
        got = torch.cat(results[i:10:2], 2)
        want = torch.nn.functional.scaled_dot_product_attention(
            queries, keys.unsqueeze(1), values.unsqueeze(1), is_causal=True
        )
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-9)


def test_choices_without_selection_cost_nothing_extra() -> None:
    """While all tokens fit, MPCache's steps cost what full attention costs."""
    policy = MPCache((8, 4), static_keep=1.0, coarse_keep=1.0, dynamic_keep=1.0)
    activations = random_activations(2, [0], 1, 1, 7, 2, 4)
    ours = perform(2, walk(policy, activations), activations.tensors).ledgers[0]
    full = perform(2, walk(Full(), activations), activations.tensors).ledgers[0]
    assert ours.transcript.hexdigest() == full.transcript.hexdigest()
