"""What the suite dealer has beside a suite's usual primitives: exact, at the declared cost."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcache.protocols import softmax
from mpcache.protocols.correlation import OneHot, Steps, Triple
from mpcache.protocols.dealer import DealerSuite
from mpcache.protocols.operation import SecureMachine
from mpcache.protocols.secret import Kept, cat
from mpcache.protocols.selection import best
from mpcache.protocols.softmax import attention

from .harness import UNIT
from .test_dealer import deal_and_run, normal, perform
from .test_operations import softmax_of

WORD = 2**64


def random_ring(*shape: int) -> torch.Tensor:
    return torch.randint(-(2**63), 2**63 - 1, shape)


def suite_of(machine: SecureMachine) -> DealerSuite:
    assert isinstance(machine.suite, DealerSuite)
    return machine.suite


def run(build: Any, *values: torch.Tensor) -> Any:
    """Ring results of `build(suite, *secrets)`, opened; party 0 holds the values."""

    def program(machine: SecureMachine, rank: int | None) -> list[Any]:
        suite = suite_of(machine)
        given = [suite.share(v if rank == 0 else None, tuple(v.shape), 0, 0) for v in values]
        return [suite.open(value, 1, "test") for value in build(suite, *given)]

    done = deal_and_run(program)
    done.check_cost()
    return done


# --- operands that stay --------------------------------------------------------------------------


def test_products_of_what_was_kept() -> None:
    """On either side, on both, after every linear map of shape; and the bits are exact."""
    x, y = random_ring(2, 3, 7), random_ring(2, 7, 5)

    def build(suite: DealerSuite, x: Any, y: Any) -> list[Any]:
        kx, ky = suite.keep(x), suite.keep(y)
        turned = suite.keep(y.transpose(1, 2).contiguous()).transpose(1, 2)
        longer = cat([ky, ky], 2)
        assert isinstance(longer, Kept) and isinstance(turned, Kept)
        return [
            suite.matmul(kx, y),
            suite.matmul(x, turned),
            suite.matmul(kx, ky),
            suite.multiply(kx, kx),
            suite.matmul(x, longer),
            suite.matmul(x[:, :1], ky[..., 1:3].times(3)),
            suite.matmul(x, ky.sum(2, keepdim=True)),
            kx,
            kx + x,
            suite.keep(kx),
        ]

    got = run(build, x, y).values
    want = [
        x @ y, x @ y, x @ y, x * x, x @ torch.cat([y, y], 2), x[:, :1] @ (3 * y[..., 1:3]),
        x @ y.sum(2, keepdim=True), x, 2 * x, x,
    ]  # fmt: skip
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)


def test_a_product_with_what_was_kept_opens_the_other_operand_alone() -> None:
    x, y = random_ring(1, 4), random_ring(4, 1000)
    kept = run(lambda suite, x, y: [suite.matmul(x, suite.keep(y))], x, y).ledgers[0].total()
    both = run(lambda suite, x, y: [suite.matmul(x, y)], x, y).ledgers[0].total()
    assert kept.rounds == both.rounds + 1
    twice = run(
        lambda suite, x, y: (lambda k: [suite.matmul(x, k), suite.matmul(x, k)])(suite.keep(y)),
        x,
        y,
    )
    opened = 8 * 1000  # what the test opens, at party 1
    more = twice.ledgers[0].total().sent_bytes - kept.sent_bytes
    assert 8 * 4 < more < opened + 8 * 4 + 200
    assert Triple(torch.matmul, (1, 4), (4, 9), (1, 9), "y").dealt_bytes == 8 * 9


def test_products_in_a_smaller_ring() -> None:
    x, y = random_ring(3, 8), random_ring(8, 5)

    def build(suite: DealerSuite, x: Any, y: Any) -> list[Any]:
        return [suite.matmul(suite.keep(x), y, 32), suite.matmul(x, y, 32)]

    done = run(build, x, y)
    low = (1 << 32) - 1
    for got in done.values:
        assert torch.equal(got & low, (x @ y) & low)


def test_coarse_drops_bits_at_no_cost() -> None:
    x = torch.randint(-(2**40), 2**40, (500,))
    done = run(lambda suite, x: [suite.coarse(x.halved(30), 16)], x)
    moved = (done.values[0] - (x >> 14)) & ((1 << 50) - 1)
    assert set(moved.tolist()) <= {0, (1 << 50) - 1}
    assert done.ledgers[0].total().rounds == 1  # the opening


# --- steps ---------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(
    values=st.lists(st.integers(-(2**61), 2**61), min_size=1, max_size=9),
    steps=st.lists(st.integers(-(2**61), 2**61), min_size=1, max_size=9),
)
def test_steps_are_exact(values: list[int], steps: list[int]) -> None:
    x = torch.tensor([*values, *(s - 1 for s in steps), *steps, 0])
    thresholds = torch.tensor(sorted(steps))
    done = run(lambda suite, x: list(suite.steps(x, thresholds)), x)
    reached, products = done.values
    want = (x.unsqueeze(-1) >= thresholds).long()
    assert torch.equal(reached, want)
    assert torch.equal(products, want * x.unsqueeze(-1))


def test_steps_take_one_round() -> None:
    x, thresholds = torch.tensor([[5, -5]]), torch.arange(-3, 3)
    done = run(lambda suite, x: [suite.steps(x, thresholds)[0]], x)
    assert done.ledgers[0].total().rounds == 2  # and the opening
    words = 61 * 4 + 1 + 2 * 4
    assert Steps((1,)).dealt_bytes == 8 * (2 + words)


# --- one-hot rows --------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [16, 64])
@pytest.mark.parametrize("bits", [1, 5, 6])
def test_one_hot_rows_are_exact(bits: int, width: int) -> None:
    x = torch.arange(1 << bits).repeat(3)
    (rows,) = run(lambda suite, x: [suite.one_hot(x, 0, bits, width)], x).values
    wanted = torch.nn.functional.one_hot(x, 1 << bits).t()
    assert torch.equal(rows & ((1 << min(width, 62)) - 1), wanted)
    assert OneHot((1,), 6, 16).dealt_bytes == 64 * 2


def test_one_hot_rows_of_cut_values_miss_by_one_cell_at_most() -> None:
    x = torch.arange(0, 1 << 12, 7)
    (rows,) = run(lambda suite, x: [suite.one_hot(x.halved(8), 0, 4)], x).values
    assert bool((rows.sum(0) == 1).all())
    cell = rows.argmax(0)
    assert set(((x >> 8) - cell).remainder(16).tolist()) <= {0, 1}


@pytest.mark.parametrize(("size", "k"), [(1, 1), (2, 1), (9, 4), (33, 7)])
def test_best_rows_in_order_of_rank(size: int, k: int) -> None:
    x = normal(3, size)
    done = perform(lambda machine, x: best(machine, x, k), [x])
    order = x.argsort(-1, descending=True)[:, :k]
    assert torch.equal(done.values[0].long(), torch.nn.functional.one_hot(order, size))


# --- attention -----------------------------------------------------------------------------------


@pytest.mark.parametrize("few", [True, False], ids=["ceiling", "maximum"])
@pytest.mark.parametrize("spread", [0.1, 1.0, 6.0])
def test_masked_attention(few: bool, spread: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whichever way the maximum is found; scores of one row from flat to far apart."""
    monkeypatch.setattr(softmax, "CEILED", 1 << 20 if few else 0)
    queries, keys, values = normal(2, 3, 9, 4, spread=spread), normal(2, 9, 4), normal(2, 9, 4)
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
    # a weight is off by 2^-17, while their total is e^-3 at least, and by 2^-14 of itself; the
    # total is off as the weights are, and 1 / total by 2^-15
    lost = 9 * 2.0**-17 * math.e**3 if few else 9 * 2.0**-17
    relative, largest = 3 * 2.0**-14 + lost, float(values.abs().max())
    assert bool(
        (probabilities - exact[:, :, 5:])
        .abs()
        .le(exact[:, :, 5:] * relative + lost / 9 + 3 * UNIT)
        .all()
    )
    wanted = torch.einsum("hgqk,hkd->hgqd", exact, values)
    assert bool((context - wanted).abs().le(largest * relative + 3 * UNIT).all())


def test_a_softmax_of_scores_around_the_ends_of_its_cells() -> None:
    """Rows whose greatest score is anywhere from -120 to 120, and others far below."""
    tops = torch.arange(-120.0, 121.0, 6.0, dtype=torch.float64)
    scores = tops.unsqueeze(-1) - torch.tensor([0.0, 0.5, 3.0, 40.0], dtype=torch.float64)
    scores = scores.clamp(min=-127.0)
    values = torch.eye(4, dtype=torch.float64)

    def operation(machine: SecureMachine, scores: Any, values: Any) -> Any:
        return softmax.attend(machine, scores, values).context

    done = perform(operation, [scores, values])
    wanted = torch.stack([softmax_of(row) for row in scores])
    assert bool(
        (done.values[0] - wanted).abs().le(3 * 2.0**-14 + 4 * 2.0**-17 * math.e**3 + 3 * UNIT).all()
    )
