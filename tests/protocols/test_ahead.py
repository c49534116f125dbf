"""Products of masks with weights for many tokens at once: the same bits, less to do for each."""

from __future__ import annotations

import math
from typing import Any
from unittest import mock

import pytest
import torch

from mpcache import program
from mpcache.config import load
from mpcache.errors import MpcacheError
from mpcache.eviction.names import POLICY_NAMES
from mpcache.kernels.prg import Stream
from mpcache.models.registry import find
from mpcache.protocols import ahead
from mpcache.protocols.ahead import Ahead
from mpcache.protocols.dealer import DealerSuite, Use
from mpcache.protocols.dealer_roles import Dealing, Foreseeing, OnlineDealer
from mpcache.protocols.operation import SecureMachine

from .test_dealer import deal_and_run

SHAPES = ((24, 40), (40, 8))
PROMPT, TOKENS = 3, 5
ROWS = (PROMPT, *[1] * TOKENS)


@pytest.fixture(autouse=True)
def _two_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "AT_ONCE", 2)


def run(seconds: float | None, dealer: bool) -> list[tuple[int, bool]]:
    """Rows go through two weights; at party 1, of each product: its rows, and whether it was
    worked out with others.

    Args:
        seconds: for working ahead, None where party 1 foresees nothing.
        dealer: whether the dealer foresees.
    """
    weights = [torch.randint(-(2**15), 2**15, shape) for shape in SHAPES]
    x = torch.randint(-(2**30), 2**30, (sum(ROWS), SHAPES[0][0]))
    uses = [Use(n, (rows, SHAPES[n][0]), 64) for rows in ROWS for n in (0, 1)]
    asked: list[tuple[int, bool]] = []
    ask = OnlineDealer.worked_ahead

    def watched(suite: OnlineDealer, use: Use) -> torch.Tensor | None:
        done = ask(suite, use)
        if suite.rank == 1:
            asked.append((use.x[0], done is not None))
        return done

    def passes(machine: SecureMachine, rank: int | None) -> list[Any]:
        suite = machine.suite
        assert isinstance(suite, DealerSuite)
        owned = [suite.matrix(w if rank == 0 else None, tuple(w.shape), 16) for w in weights]
        if isinstance(suite, OnlineDealer) and seconds is not None:
            suite.foresee(uses, seconds)
        if isinstance(suite, Dealing) and dealer:
            suite.foresee(uses)
        given = suite.share(x if rank == 0 else None, tuple(x.shape), 0, 0)
        results, begin = [], 0
        for rows in ROWS:
            y = suite.matmul(suite.matmul(given[begin : begin + rows], owned[0]), owned[1])
            results.append(suite.open(y, 1, "test"))
            begin += rows
        return results

    with mock.patch.object(OnlineDealer, "worked_ahead", watched):
        done = deal_and_run(passes)
    done.check_cost()
    for got, part in zip(done.values, x.split(ROWS), strict=True):
        assert torch.equal(got, part @ weights[0] @ weights[1])
    return asked


@pytest.mark.parametrize("dealer", [False, True])
@pytest.mark.parametrize("seconds", [None, 0.0, 60.0])
def test_results_are_the_same_whenever_products_are_worked_out(
    seconds: float | None, dealer: bool
) -> None:
    together = seconds is not None
    assert run(seconds, dealer) == [(PROMPT, False)] * 2 + [(1, together)] * 2 * TOKENS


def test_the_dealer_deals_the_same_bytes_and_expands_a_mask_once_for_some_tokens() -> None:
    dealt, expanded = [], []
    for foresees in (False, True):
        suite, items, made = _dealing()
        weight = suite.matrix(None, (6, 4), 16)
        assert not made
        if foresees:
            suite.foresee([Use(0, (rows, 6), 64) for rows in ROWS])
        for rows in ROWS:
            suite.matmul(suite.share(None, (rows, 6), 0, 0), weight)
        dealt.append(torch.cat(items))
        expanded.append(len(made))
    assert torch.equal(*dealt)
    assert expanded == [1 + TOKENS, 1 + math.ceil(TOKENS / 2)]


def _dealing() -> tuple[Dealing, list[torch.Tensor], list[int]]:
    """A dealer that keeps no masks, what it deals, and a number for each weight mask it expands."""
    items: list[torch.Tensor] = []
    made: list[int] = []

    class Watched(Stream):
        def branch(self, number: int) -> Stream:
            if number == 1:  # the first weight's
                made.append(number)
            return super().branch(number)

    setting = program.setting_of(load(None, {}))
    suite = Dealing(setting, (Watched(bytes(16)), Stream(bytes([1] * 16))), items.append)
    suite._room = 0
    return suite, items, made


@pytest.mark.parametrize("seconds", [0.0, 60.0])
def test_masks_are_those_that_are_drawn_when_the_token_comes(seconds: float) -> None:
    uses = [Use(0, (2, 6), 48), *[Use(0, (1, 6), 48), Use(0, (1, 1, 6), 64)] * 2]
    early, stream = Ahead(Stream(bytes(16), 9), uses, identity), Stream(bytes(16), 9)
    early.work(seconds)
    for use in uses:
        drawn, got = stream.ring(use.x), early.take(use)
        if use.of_a_token:
            assert got is not None and got.shape == use.x
            assert torch.equal(got, drawn & ((1 << 48) - 1) if use.width == 48 else drawn)
        else:
            assert got is None  # a prompt's product is left to the caller
    assert early.take(uses[0]) is None  # nothing more was foreseen


def test_a_weight_is_read_once_for_tokens_that_are_worked_out_together() -> None:
    read: list[int] = []

    def weight(number: int) -> torch.Tensor:
        read.append(number)
        return identity(number)

    uses = [Use(n, (1, 6), 64) for _ in range(TOKENS) for n in (0, 1)]
    early = Ahead(Stream(bytes(16)), uses, weight)
    early.work(0.0)
    assert read == []
    for place, use in enumerate(uses):
        early.take(use)
        assert len(read) == 2 * (place // 4) + min(2, place % 4 + 1)


def test_what_was_not_foreseen_is_an_error() -> None:
    early = Ahead(Stream(bytes(16)), [Use(0, (1, 6), 64)], identity)
    with pytest.raises(MpcacheError, match=r"weight=0.* was worked out ahead, and .*weight=1"):
        early.take(Use(1, (1, 6), 64))


def identity(number: int) -> torch.Tensor:
    """A product with it shows the mask."""
    return torch.eye(6, dtype=torch.int64)


@pytest.mark.parametrize("model", ["smollm2", "opt-350m"])
@pytest.mark.parametrize("policy", [name for name in POLICY_NAMES if name != "oracle"])
def test_every_step_and_every_layer_of_a_kind_use_their_weights_alike(
    policy: str, model: str
) -> None:
    """So that a walk through one of them tells of all."""
    config = load(None, {"max_new_tokens": 4, "cache": {"policy": policy}})
    spec, suite = find(model, "synthetic", 0).spec, Foreseeing(program.setting_of(config))
    found: list[Use] = []
    with mock.patch.object(suite, "foreseen", found.append):
        program._walk(config, spec, SecureMachine(suite, suite.prediction), 40)
    assert program.uses_of(config, spec, 40) == found
