"""MPCache in plaintext against brute force: the same tokens, the same context, the same counts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcache.eviction.mpcache import MPCache
from mpcache.protocols.operation import PlainMachine
from mpcache.protocols.setting import Setting

from .harness import (
    Activations,
    attended,
    policies,
    random_activations,
    shown,
    stacked,
    walk,
    walk_reference,
)


def ordered(keys: torch.Tensor) -> torch.Tensor:
    """Keys [heads, tokens, head_dim] in an order of their own: which are there is what counts."""
    return torch.tensor([sorted(head) for head in keys.tolist()], dtype=keys.dtype)


def check(policy: MPCache, activations: Activations, tolerance: float) -> None:
    """The plain reading keeps what the reference keeps, everywhere."""
    layers = list(activations.layers)
    expected = walk_reference(policy, activations)
    program = walk(shown(policy), activations)
    machine = PlainMachine(Setting())
    results, seen = attended(lambda: program(machine, *activations.tensors))
    for layer, keys, values in zip(
        layers, results[-2 * len(layers) :], results[-len(layers) :], strict=False
    ):
        want_keys, want_values = stacked(expected.reference, layer)
        assert torch.equal(keys, want_keys.to(keys)), f"stored keys of layer {layer}"
        assert torch.equal(values, want_values.to(values))
    steps = seen[len(layers) :]
    assert len(steps) == len(expected.dynamic)
    for i, ((keys, _), kept) in enumerate(zip(steps, expected.dynamic, strict=True)):
        rows = expected.reference.keys[layers[i % len(layers)]]
        want = torch.stack(
            [torch.stack([rows[head][t] for t in kept[head]]) for head in range(len(kept))]
        )
        assert torch.equal(ordered(keys), ordered(want.to(keys))), f"call {i}: attended tokens"
    contexts = results[len(layers) : len(layers) + len(steps)]
    for got, want in zip(contexts, expected.contexts, strict=True):
        torch.testing.assert_close(got, want.to(got), rtol=tolerance, atol=tolerance)
    budget = policy.budget(activations.prompt, activations.steps + 1)
    assert {len(kept) for kept in expected.static.values()} == {budget.static}
    counts = [{len(head) for head in kept} for kept in expected.dynamic]
    assert counts == [{count} for count in budget.dynamic for _ in layers]


@settings(max_examples=40)
@given(
    policy=policies,
    seed=st.integers(0, 2**32),
    heads=st.integers(1, 2),
    group=st.integers(1, 2),
    prompt=st.integers(1, 40),
    steps=st.integers(0, 6),
)
def test_equals_brute_force(
    policy: MPCache, seed: int, heads: int, group: int, prompt: int, steps: int
) -> None:
    activations = random_activations(seed, [0, 1, 2, 3], heads, group, prompt, steps, 4)
    check(policy, activations, 1e-9)


@pytest.mark.parametrize("summary", ["extrema", "mean"])
def test_equals_brute_force_at_the_default_sizes(summary: str) -> None:
    policy = MPCache(summary=summary)  # type: ignore[arg-type]
    check(policy, random_activations(5, [0, 2, 3], 1, 3, 250, 3, 6), 1e-9)


@pytest.mark.parametrize(
    ("options", "prompt", "steps"),
    [
        ({"static_keep": 0.1, "sink": 4, "recent": 4}, 30, 3),  # nothing kept in the middle
        ({"clusters": (8, 4), "coarse_keep": 0.01, "dynamic_keep": 0.5, "sink": 0}, 60, 9),
        ({"clusters": (8, 4), "coarse_keep": 0.01, "dynamic_keep": 0.01}, 60, 9),  # ends only
        ({"clusters": (4, 4), "coarse_keep": 0.5, "dynamic_keep": 0.9}, 61, 9),
        ({"clusters": (8, 2), "dynamic_keep": 1.0, "static_keep": 1.0}, 33, 3),
        ({"clusters": (6, 2), "recent": 0, "sink": 0}, 1, 30),  # all clusters grow in decode
    ],
)
def test_corners(options: dict[str, object], prompt: int, steps: int) -> None:
    policy = MPCache(**{"recent": 2, **options})  # type: ignore[arg-type]
    check(policy, random_activations(9, [0, 1, 2, 3], 2, 2, prompt, steps, 4), 1e-9)


@settings(max_examples=25)
@given(
    policy=policies,
    seed=st.integers(0, 2**32),
    group=st.integers(1, 3),
    prompt=st.integers(1, 40),
    steps=st.integers(1, 5),
)
def test_choosing_among_scores_is_choosing_keys_and_values(
    policy: MPCache, seed: int, group: int, prompt: int, steps: int
) -> None:
    """Whether scores or keys are gathered; and a choice a query head is one of lone heads."""
    machine = PlainMachine(Setting())
    activations = random_activations(seed, [0, 1, 2, 3], 2, group, prompt, steps, 4)
    lone = Activations(
        {
            layer: (
                queries.reshape(2 * group, 1, *queries.shape[2:]),
                keys.repeat_interleave(group, 0),
                values.repeat_interleave(group, 0),
            )
            for layer, (queries, keys, values) in activations.layers.items()
        },
        prompt,
    )
    count = 4 * (steps + 1)
    for each, wanted in [(False, activations), (True, lone)]:
        ours = replace(policy, gather="scores", per_head=each, static_keep=1.0)
        theirs = replace(policy, gather="kv", per_head=False, static_keep=1.0)
        got = walk(ours, activations)(machine, *activations.tensors)[:count]
        want = walk(theirs, wanted)(machine, *wanted.tensors)[:count]
        for a, b in zip(got, want, strict=True):
            torch.testing.assert_close(a, b.reshape(a.shape), rtol=1e-9, atol=1e-9)


def test_first_and_last_cluster_are_always_attended() -> None:
    """Even where their keys point away from every query."""
    policy = MPCache(clusters=(8, 4), static_keep=1.0, dynamic_keep=0.4, sink=0, recent=0)
    activations = random_activations(3, [0], 1, 1, 47, 5, 4)
    queries, keys, values = activations.layers[0]
    queries.copy_(queries.abs())
    keys[:, :4], keys[:, 44:] = -9.0, -9.0
    program = walk(shown(policy), activations)
    _, seen = attended(lambda: program(PlainMachine(Setting()), queries, keys, values))
    for step, (attended_keys, _) in enumerate(seen[1:]):
        tokens = 47 + step + 1
        assert torch.equal(attended_keys[:, :4], keys[:, :4])
        tail = tokens - (tokens - 1) // 4 * 4
        assert torch.equal(attended_keys[:, -tail:], keys[:, tokens - tail : tokens])
        assert attended_keys.shape[1] < tokens


def test_odd_layers_reuse_the_even_layers_choice() -> None:
    for share in (True, False):
        policy = MPCache(clusters=(4, 2), dynamic_keep=0.4, static_keep=1.0, share_layers=share)
        activations = random_activations(4, [0, 1, 2, 3], 1, 1, 40, 1, 4)
        chosen = walk_reference(policy, activations).dynamic
        assert (chosen[3] == chosen[2]) is share
        assert chosen[0] != chosen[1] != chosen[2]
        check(policy, activations, 1e-9)
