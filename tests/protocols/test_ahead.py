"""What party 1 works out before a token: the same bits, less to do when the token comes."""

from __future__ import annotations

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
from mpcache.protocols.ahead import Ahead
from mpcache.protocols.dealer import DealerSuite, OwnedWeight, Use, no_mask
from mpcache.protocols.dealer_roles import Foreseeing, OnlineDealer
from mpcache.protocols.operation import SecureMachine

from .test_dealer import deal_and_run

SHAPES = ((24, 40), (40, 8))
PROMPT = 3
ROWS = (PROMPT, 1, 1)  # a prompt and two tokens


def run(seconds: float | None) -> list[tuple[int, bool]]:
    """Rows go through two weights; at party 1, of each product: its rows, and whether it was
    worked out before.

    Args:
        seconds: for working ahead, None for not at all.
    """
    weights = [torch.randint(-(2**15), 2**15, shape) for shape in SHAPES]
    x = torch.randint(-(2**30), 2**30, (sum(ROWS), SHAPES[0][0]))
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
            uses = [Use(n, (rows, SHAPES[n][0]), 64) for rows in ROWS for n in (0, 1)]
            suite.work_ahead(uses, seconds)
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


@pytest.mark.parametrize(("seconds", "before"), [(None, False), (0.0, False), (60.0, True)])
def test_results_are_the_same_whenever_products_are_worked_out(
    seconds: float | None, before: bool
) -> None:
    assert run(seconds) == [(PROMPT, False)] * 2 + [(1, before)] * 4


def test_masks_are_those_that_are_drawn_when_the_token_comes() -> None:
    early = Ahead(Stream(bytes(16), 9), [_weight(6)])
    early.work([Use(0, (2, 6), 48), Use(0, (1, 6), 48)])
    stream = Stream(bytes(16), 9)
    assert early.take(Use(0, (2, 6), 48)) is None
    stream.ring((2, 6))
    got = early.take(Use(0, (1, 6), 48))
    assert got is not None and torch.equal(got, stream.ring((1, 6)) & ((1 << 48) - 1))
    assert early.take(Use(0, (1, 6), 48)) is None  # nothing was foreseen


def test_what_was_not_foreseen_is_an_error() -> None:
    early = Ahead(Stream(bytes(16)), [_weight(4)])
    early.work([Use(0, (1, 4), 64)])
    with pytest.raises(MpcacheError, match=r"weight=0.* was worked out ahead, and .*weight=1"):
        early.take(Use(1, (1, 4), 64))


def _weight(side: int) -> OwnedWeight:
    """The identity: a product with it shows the mask."""
    return OwnedWeight(torch.eye(side, dtype=torch.int64), 16, no_mask, 0)


@pytest.mark.parametrize("policy", [name for name in POLICY_NAMES if name != "oracle"])
def test_every_step_uses_the_weights_alike(policy: str) -> None:
    """So that a walk through one of them tells of all."""
    config = load(None, {"max_new_tokens": 4, "cache": {"policy": policy}})
    spec, suite = find("smollm2", "synthetic", 0).spec, Foreseeing(program.setting_of(config))
    program._walk(config, spec, SecureMachine(suite, suite.prediction), 40)
    assert program.uses_of(config, spec, 40) == suite.uses["prefill"] + suite.uses["decode"]
