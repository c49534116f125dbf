"""Attention in suite dealer beside exact arithmetic, however the maximum of scores is found."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from mpcache.protocols import softmax
from mpcache.protocols.operation import SecureMachine
from mpcache.protocols.softmax import attention

from .harness import UNIT, grid
from .test_dealer import normal, perform


@pytest.mark.parametrize("few", [True, False], ids=["ceiling", "maximum"])
def test_masked_attention_in_attentions_ring(few: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Queries, keys and values as a decoder leaves them: cut and kept modulo 2^48. Scores below 0
    must not lose against hidden places."""
    monkeypatch.setattr(softmax, "CEILED", 1 << 20 if few else 0)
    queries, keys, values = normal(2, 3, 9, 64), normal(2, 9, 64), normal(2, 9, 64)
    keys = keys - 0.5 * queries.sum((1, 2)).unsqueeze(1)  # far from every query
    mask = torch.ones(9, 9, dtype=torch.int64).tril()

    def operation(machine: SecureMachine, *given: Any) -> Any:
        q, k, v = (machine.suite.settle_kept(x) for x in given)
        assert q.width == k.width == v.width == 48
        return attention(machine, q, k, v, mask, 0)[0]

    done = perform(operation, [queries, keys, values], [32, 32, 32])
    done.check_cost()
    scores = torch.einsum("hgqd,hkd->hgqk", queries, keys) / 8
    assert float(scores.amax(-1).min()) < -1
    exact = torch.softmax(scores.masked_fill(mask == 0, -1e9), -1)
    wanted = torch.einsum("hgqk,hkd->hgqd", exact, values)
    assert float((done.values[0] - wanted).abs().max()) < 3e-3


def weight_unit(tokens: int, few: bool) -> float:
    """A unit of a weight beside the least total that such weights can have: e^-3 where the ceiling
    may miss the maximum by 3, else 1; and each of them is off by a unit."""
    return UNIT / ((math.exp(-3) if few else 1.0) - tokens * UNIT)


@pytest.mark.parametrize("few", [True, False], ids=["ceiling", "maximum"])
@pytest.mark.parametrize("spread", [0.1, 1.0, 6.0])
def test_masked_attention(few: bool, spread: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever way the maximum is found; scores of one row from flat to far apart."""
    monkeypatch.setattr(softmax, "CEILED", 1 << 20 if few else 0)
    queries, keys, values = normal(2, 3, 9, 4, spread=spread), normal(2, 9, 4), normal(2, 9, 4)
    farthest = float(torch.einsum("hgqd,hkd->hgqk", queries, keys).abs().max()) / 2
    queries = grid(queries * min(1.0, 60 / farthest))  # scores between the ends that are stated
    keys, values = grid(keys), grid(values)
    mask = torch.ones(9, 9, dtype=torch.int64).tril()

    def operation(machine: SecureMachine, q: Any, k: Any, v: Any) -> list[Any]:
        context, probabilities = attention(machine, q, machine.keep(k), machine.keep(v), mask, 4)
        return [context, probabilities]

    done = perform(operation, [queries, keys, values])
    done.check_cost()
    scores = torch.einsum("hgqd,hkd->hgqk", queries, keys) / 2
    shown = scores.masked_fill(mask == 0, -1e9)
    exact = torch.softmax(shown, -1)
    context, probabilities = done.values
    # of 9 weights each is off by a unit at most, and by 2^-14 of itself; their total is as they
    # are, and 1 / total by 2^-15
    lost, relative = weight_unit(9, few), 3 * 2.0**-14
    expected = exact[:, :, 5:]
    allowed = expected * (relative + 9 * lost) + lost + 3 * UNIT
    assert bool((probabilities - expected).abs().le(allowed).all())
    wanted = torch.einsum("hgqk,hkd->hgqd", exact, values)
    largest = float(values.abs().max()) * (relative + 2 * 9 * lost)
    assert bool((context - wanted).abs().le(largest + 3 * UNIT).all())


def attended_rows(scores: torch.Tensor, width: int = 64) -> torch.Tensor:
    """The weights of each row, as contexts of unit vectors."""

    def operation(machine: SecureMachine, scores: Any, values: Any) -> Any:
        return softmax.attend(machine, scores.modulo(width), values).context

    done = perform(operation, [scores, torch.eye(scores.shape[1]).double()], [32, 16])
    done.check_cost()
    return done.values[0]


# (1 - p) of a weight's own unit and p of the others' count, where p is what it should be
WEIGHT_BOUND = 3 * 2.0**-14 + 3 * weight_unit(4, few=True) + 3 * UNIT


@pytest.mark.parametrize("few", [True, False], ids=["ceiling", "maximum"])
def test_a_softmax_of_scores_up_to_the_ends_of_its_cells(
    few: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows whose greatest score is anywhere from -63.5 to 65.5, and others down to -2^12."""
    monkeypatch.setattr(softmax, "CEILED", 1 << 20 if few else 0)
    tops = torch.tensor([*torch.arange(-63.5, 66.0, 3.7).tolist(), 65.5], dtype=torch.float64)
    scores = tops.unsqueeze(-1) - torch.tensor([0.0, 0.5, 3.0, 4000.0], dtype=torch.float64)
    wanted = torch.softmax(scores, -1)
    assert bool((attended_rows(scores) - wanted).abs().le(WEIGHT_BOUND).all())


LEAST_TOTAL = 0.75 * 2.0**-6  # where the lines of 1 / x begin, for x from 2^-6

FAR_ROWS = torch.tensor(
    [
        [8191.0, 8190.0, 70.0, -3.0],  # those from 66 on count as equal
        [4096.0, -4096.0, 8000.0, 67.0],
        [67.0, 67.5, 66.5, 67.0],
        [-8191.0, -8190.0, -7000.0, -78.0],  # nothing is left
        [-8191.0, 8191.0, 0.0, 5.0],
    ],
    dtype=torch.float64,
)


@pytest.mark.parametrize("width", [64, 48])
def test_far_beyond_its_cells_a_softmax_saturates(width: int) -> None:
    got = attended_rows(FAR_ROWS, width)
    equal = torch.tensor(
        [[1.0, 1, 1, 0], [1, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0]],
        dtype=torch.float64,
    )
    wanted = equal / equal.sum(-1, keepdim=True).clamp(min=1)
    # where nothing is left a weight's unit is divided by the least total that has an inverse
    allowed = torch.full((5, 1), WEIGHT_BOUND).double()
    allowed[3] = UNIT / LEAST_TOTAL + UNIT
    assert bool((got - wanted).abs().le(allowed).all()), got
    # below its cells a row fades: never more than it should be, never negative by more than that
    faint = torch.arange(-79.0, -64, 1.5, dtype=torch.float64).unsqueeze(-1)
    faint = faint - torch.tensor([0.0, 9.0], dtype=torch.float64)
    rows = attended_rows(faint)
    assert bool((rows >= -allowed[3]).all() and (rows <= 1 + WEIGHT_BOUND).all())
    assert bool((rows[:, 0].diff() >= -2 * allowed[3]).all())


@pytest.mark.parametrize("width", [64, 48])
def test_with_an_exact_maximum_a_softmax_of_thousands_is_exact(
    width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(softmax, "CEILED", 0)
    wanted = torch.softmax(FAR_ROWS, -1)
    assert bool((attended_rows(FAR_ROWS, width) - wanted).abs().le(WEIGHT_BOUND).all())
