"""Far out of range a result saturates and never wraps; and any values, in any shape."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcache.protocols.activation import relu, silu
from mpcache.protocols.arithmetic import matmul, multiply
from mpcache.protocols.comparison import at_least, maximum
from mpcache.protocols.functions import clipped, stairs
from mpcache.protocols.greatest import argmax
from mpcache.protocols.selection import rank, top_k
from mpcache.protocols.softmax import softmax

from . import bounds
from .harness import TRUNCATION, UNIT, WORLDS, grid, listed, perform, plain

few = settings(max_examples=6)
worlds = st.sampled_from(WORLDS)
units = st.integers(-(2**24), 2**24)  # values up to 256
seeds = st.integers(0, 2**32)


@pytest.mark.parametrize("world", WORLDS)
def test_softmax_of_scores_of_thousands(world: int) -> None:
    scores = torch.tensor(
        [
            [2000.0, -2000, 0, 1999],
            [-2000, -2000, -2000, -1990],
            [2000, 2000, -2000, 2000],
            [-2000, -1500, -500, -300],
        ],
        dtype=torch.float64,
    )
    (got,) = perform(world, softmax, [scores]).results
    want = torch.softmax(scores, -1)
    bound = bounds.softmax(scores, TRUNCATION[world]) * UNIT
    assert bool(((got - want).abs() <= bound).all())
    assert bool((got[want < 1e-9].abs() <= bound[want < 1e-9]).all())
    assert float(got.sum(-1).sub(1).abs().max()) <= 4 * float(bound.max())


@pytest.mark.parametrize("world", WORLDS)
def test_hidden_scores_count_nothing_even_when_they_are_greatest(world: int) -> None:
    scores = torch.tensor([[1500.0, 1, 2, 1999], [-2047, 2000, 2000, 2000]]).double()
    visible = torch.tensor([[0, 1, 1, 0], [1, 0, 0, 0]])
    (got,) = perform(world, softmax, [scores], visible=visible).results
    bound = bounds.softmax(scores, TRUNCATION[world], visible=visible) * UNIT
    want = torch.softmax(scores.masked_fill(visible == 0, -math.inf), -1)
    assert bool(((got - want).abs() <= bound).all())
    assert float(got[visible == 0].abs().max()) <= TRUNCATION[world] * UNIT


@pytest.mark.parametrize("world", WORLDS)
def test_silu_saturates(world: int) -> None:
    x = torch.tensor([1000.0, -1000, 100, -100, 17, -17, 16, -16, 0], dtype=torch.float64)
    (got,) = perform(world, silu, [x]).results
    want = torch.nn.functional.silu(x)
    assert bool(((got - want).abs() <= bounds.silu(x, TRUNCATION[world]) * UNIT).all())
    assert float((got / x.abs().clamp(min=1) - (x > 0).double()).abs().max()) < 1e-3


@few
@given(world=worlds, values=st.lists(units, min_size=1, max_size=63), low=units)
def test_comparisons_are_exact_for_any_values(world: int, values: list[int], low: int) -> None:
    x = torch.tensor(values, dtype=torch.float64) * UNIT

    def operation(machine: Any, x: Any) -> list[Any]:
        return [
            relu(machine, x),
            at_least(machine, x, low * UNIT),
            clipped(machine, x, low * UNIT),
            maximum(machine, x, 0),
        ]

    outcome = perform(world, operation, [x])
    outcome.check_cost()
    for got, want in zip(outcome.results, operation(plain(), x), strict=True):
        assert torch.equal(got, want)


@few
@given(
    world=worlds,
    values=st.lists(st.integers(-4, 4), min_size=1, max_size=9),  # many of them equal
    data=st.data(),
)
def test_ranks_and_rows_are_exact_with_ties(world: int, values: list[int], data: Any) -> None:
    x = torch.tensor(values, dtype=torch.float64)
    k = data.draw(st.integers(0, len(values)))

    def operation(machine: Any, x: Any) -> list[Any]:
        return [rank(machine, x), top_k(machine, x, k), argmax(machine, x)]

    outcome = perform(world, operation, [x])
    outcome.check_cost()
    ranks, rows, best = outcome.results
    twin_ranks, twin_rows, _ = operation(plain(), x)
    assert torch.equal(ranks, twin_ranks) and torch.equal(rows, twin_rows)
    assert sorted(ranks.tolist()) == list(range(len(values)))
    assert rows.sum(-1).tolist() == [1.0] * k, "each row picks one element"
    assert values[int(best)] == max(values)


@few
@given(
    world=worlds,
    seed=seeds,
    batch=st.lists(st.integers(1, 3), max_size=2),
    sizes=st.tuples(*[st.integers(1, 17)] * 3),
)
def test_products_of_any_shape(
    world: int, seed: int, batch: list[int], sizes: tuple[int, int, int]
) -> None:
    generator = torch.Generator().manual_seed(seed)
    n, k, m = sizes
    x = grid(torch.randn(*batch, n, k, generator=generator))
    y = grid(torch.randn(k, m, generator=generator))

    def operation(machine: Any, x: Any, y: Any) -> list[Any]:
        return [matmul(machine, x, y), multiply(machine, x[..., :1], y[:1, :1])]

    outcome = perform(world, operation, [x, y])
    outcome.check_cost()
    for got, want in zip(outcome.results, operation(plain(), x, y), strict=True):
        assert float((got - want).abs().max()) <= TRUNCATION[world] * UNIT


@few
@given(world=worlds, steps=st.lists(units, min_size=1, max_size=7, unique=True), seed=seeds)
def test_stairs_are_exact_on_any_steps(world: int, steps: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    thresholds = torch.tensor(sorted(steps), dtype=torch.float64) * UNIT
    table = grid(torch.randn(len(steps) + 1, generator=generator) * 100)
    x = torch.cat([thresholds, thresholds - UNIT, thresholds + UNIT])
    outcome = perform(world, lambda machine, x: stairs(machine, x, thresholds, table), [x])
    outcome.check_cost()
    assert torch.equal(outcome.results[0], listed(stairs(plain(), x, thresholds, table))[0])


@few
@given(world=worlds, seed=seeds, size=st.integers(1, 63), spread=st.floats(0.01, 100))
def test_softmax_of_any_scores(world: int, seed: int, size: int, spread: float) -> None:
    scores = grid(torch.randn(2, size, generator=torch.Generator().manual_seed(seed)) * spread)
    outcome = perform(world, softmax, [scores])
    outcome.check_cost()
    bound = bounds.softmax(scores, TRUNCATION[world]) * UNIT
    assert bool(((outcome.results[0] - torch.softmax(scores, -1)).abs() <= bound).all())
