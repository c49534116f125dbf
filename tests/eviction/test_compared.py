"""The policies that are there to be compared: by brute force, and on shares."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from protocols.test_dealer import perform

from mpcache.evaluation.pricing import Clock, decode_price
from mpcache.eviction.base import Policy
from mpcache.eviction.registry import POLICIES, policy_at
from mpcache.models.known import KNOWN
from mpcache.protocols.comparison import negative
from mpcache.protocols.operation import Operation, PlainMachine
from mpcache.protocols.selection import best, rank, top_k
from mpcache.protocols.setting import Setting

from .harness import SPEC, Activations, random_activations, walk
from .naive import walk_naive
from .naive_known import NAMED
from .naive_layers import LAYERED

NAIVE = {**NAMED, **LAYERED}
# Shares move what is compared by some tens of units, of 2^-16.
CLEAR = 0.001


class MarginMachine(PlainMachine):
    """Remembers the smallest gap that a decision hung on."""

    def __init__(self) -> None:
        super().__init__(Setting())
        self.margin = float("inf")

    def perform(self, operation: Operation, *args: Any, **options: Any) -> Any:
        if operation is negative:
            gaps = args[0].abs()
            self._note(gaps[gaps > 0])  # what equals the maximum does so on shares, too
        if operation in (rank, top_k, best):
            ordered = args[0].sort(-1, descending=True).values
            gaps = ordered.diff(dim=-1).abs()
            if operation is top_k:
                gaps = gaps[..., args[1] - 1 : args[1]]
            elif operation is best:
                gaps = gaps[..., : args[1]]
            self._note(gaps[gaps > 0])  # of equal integers the first wins, on shares, too
        return super().perform(operation, *args, **options)

    def _note(self, gaps: torch.Tensor) -> None:
        self.margin = min([self.margin, *gaps.flatten().tolist()])


@pytest.mark.parametrize("name", NAIVE)
@settings(max_examples=15, deadline=None)
@given(
    data=st.data(),
    seed=st.integers(0, 2**32),
    heads=st.integers(1, 2),
    group=st.integers(1, 2),
    prompt=st.integers(20, 70),
    steps=st.integers(1, 4),
)
def test_equals_brute_force(
    name: str, data: st.DataObject, seed: int, heads: int, group: int, prompt: int, steps: int
) -> None:
    budget = data.draw(st.integers(1, prompt))
    policy = policy_at(name, budget, prompt).fitted(SPEC)
    activations = random_activations(seed, [0, 1], heads, group, prompt, steps, 4)
    results = walk(policy, activations)(PlainMachine(Setting()), *activations.tensors)
    expected = walk_naive(NAIVE, policy, activations)
    for got, want in zip(results, expected, strict=False):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NAIVE)
def test_budgets_are_about_what_was_asked(name: str) -> None:
    for prompt in (1, 2, 5, 63, 500, 1024):
        for budget in {1, 2, prompt // 10, prompt // 2, prompt} & set(range(1, prompt + 1)):
            counts = policy_at(name, budget, prompt).budget(prompt, 3)
            assert 1 <= counts.static <= prompt
            assert all(0 < count <= prompt + 2 for count in counts.dynamic)
            if prompt >= 500 and budget >= 50:
                assert 0.6 * budget <= counts.dynamic[0] <= budget + 18, (budget, counts)


@functools.cache
def clear(policy: Policy, heads: int, group: int, prompt: int, steps: int) -> Activations:
    """Activations on which no decision is close."""
    for seed in range(3000):
        activations = random_activations(seed, [0, 1], heads, group, prompt, steps, 4)
        machine = MarginMachine()
        walk(policy, activations)(machine, *activations.tensors)
        if machine.margin > CLEAR:
            return activations
    raise AssertionError("no seed gives clear decisions")


@pytest.mark.parametrize("name", [name for name in NAIVE if POLICIES[name].oblivious])
def test_on_shares(name: str) -> None:
    """Contexts and stored tokens are near the twin's, at the cost predicted and dealt."""
    policy = policy_at(name, 6, 13)
    activations = clear(policy, 1, 2, 13, 2)
    program = walk(policy, activations)
    twin = program(PlainMachine(Setting()), *activations.tensors)
    done = perform(program, activations.tensors)
    done.check_cost()
    assert len(done.values) == len(twin)
    for got, want in zip(done.values, twin, strict=True):
        torch.testing.assert_close(got, want, rtol=0, atol=0.01)


@pytest.mark.parametrize("name", [name for name in POLICIES if POLICIES[name].oblivious])
def test_every_budget_has_a_price(name: str) -> None:
    """Counts that are powers of two, a token at most, all of them: what divisions depend on."""
    spec = dataclasses.replace(KNOWN["smollm2"].spec, layers=2)
    for prompt in (40, 63):
        for budget in (1, 2, 3, 7, 8, 31, prompt):
            price = decode_price(spec, policy_at(name, budget, prompt), prompt, Clock(None, ""))
            assert price is not None and price["rounds"] > 0
