"""Two processes measure what was predicted, or nothing is reported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from mpcache.benchmarking import pair
from mpcache.benchmarking.layers import DecodeJob, PrefillJob
from mpcache.benchmarking.operators import OPERATORS, OperatorJob
from mpcache.benchmarking.pair import Job, Side, measure
from mpcache.errors import MpcacheError
from mpcache.eviction.registry import make_policy
from mpcache.models.spec import ModelSpec
from mpcache.protocols.arithmetic import multiply
from mpcache.protocols.operation import Machine

TINY = ModelSpec(
    name="tiny",
    family="opt",
    layers=4,
    hidden=8,
    heads=2,
    kv_heads=2,
    head_dim=4,
    ffn=12,
    vocab=21,
    context=64,
    norm="layer",
    norm_eps=1e-5,
    activation="relu",
    positions="learned",
    biases=True,
    gated=False,
)
LOCAL = (0.0, 0.0)


@dataclass(frozen=True)
class _Products(Job):
    """A product a step; with `extra`, party 0 makes one more than anybody expects."""

    extra: bool = False
    broken: bool = False

    def prepare(self, machine: Machine, side: Side) -> Callable[[int], None]:
        x: Any = side.share(machine, torch.ones(3))

        def step(number: int) -> None:
            if self.broken and side.rank == 1:
                raise ZeroDivisionError("on purpose")
            for _ in range(1 + (self.extra and side.rank in (0, 1))):
                multiply(machine, x, x)

        return step


@pytest.mark.parametrize("suite", ["dealer", "crypten"])
def test_a_job_is_measured(suite: str) -> None:
    found = measure(_Products(suite, 3, LOCAL))
    assert len(found.seconds) == len(found.plain_seconds) == 2
    assert found.steps[0].rounds == found.steps[1].rounds > 0
    assert found.steps[0].sent_bytes == found.steps[1].received_bytes
    assert (found.dealt_bytes > 0) is (suite == "dealer")


def test_counts_that_were_not_predicted_are_refused() -> None:
    with pytest.raises(MpcacheError, match="not send what was predicted"):
        measure(_Products("crypten", 2, LOCAL, extra=True))


def test_too_few_corrections_are_refused() -> None:
    with pytest.raises(MpcacheError, match="party 1: "):
        measure(_Products("dealer", 2, LOCAL, extra=True))


def test_a_party_that_fails_is_named() -> None:
    with pytest.raises(MpcacheError, match="party 1: ZeroDivisionError"):
        measure(_Products("dealer", 2, LOCAL, broken=True))


def test_corrections_left_over_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = pair._deal

    def more(job: Job, seeds: Any) -> Any:
        items, seconds, dealt = whole(job, seeds)
        return [*items, torch.zeros(1)], seconds, dealt

    monkeypatch.setattr(pair, "_deal", more)
    with pytest.raises(MpcacheError, match="left over"):
        measure(_Products("dealer", 2, LOCAL))


def test_other_bytes_dealt_than_used_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = pair._deal

    def less(job: Job, seeds: Any) -> Any:
        items, seconds, dealt = whole(job, seeds)
        return items, seconds, dealt - 8

    monkeypatch.setattr(pair, "_deal", less)
    with pytest.raises(MpcacheError, match="nothing is reported"):
        measure(_Products("dealer", 2, LOCAL))


@pytest.mark.parametrize("suite", ["dealer", "crypten"])
@pytest.mark.parametrize("cache", ["mpcache", "full"])
@pytest.mark.parametrize("kind", [DecodeJob, PrefillJob])
def test_layers_are_measured(kind: Any, cache: str, suite: str) -> None:
    policy = make_policy(cache, clusters=(4, 2), sink=1, recent=2, dynamic_keep=0.4)
    found = measure(kind(suite, 2, LOCAL, TINY, policy, 20))
    assert found.steps[0].rounds > 10
    assert found.work.multiply_adds >= found.work.operands > 0


def test_an_emulated_network_takes_its_time() -> None:
    job = _Products("dealer", 2, (40.0, 0.0))
    found = measure(job, plain=False)
    assert found.seconds[0] >= found.steps[0].rounds * 0.020
    assert found.plain_seconds == ()


def test_every_operator_reads_alike_in_all_suites() -> None:
    """The counting and the plain reading of each; shapes are too large for all runs here."""
    for operator in OPERATORS:
        for suite in operator.suites:
            job = OperatorJob(suite, 1, LOCAL, operator)
            assert pair.predicted(job).ranks[0].total("step0").rounds > 0, operator.name
        assert pair._plain(OperatorJob("dealer", 1, LOCAL, operator))


def test_small_operators_run() -> None:
    for name in ("relu 8192", "layernorm 2048", "one-hot of"):
        operator = next(op for op in OPERATORS if op.name.startswith(name))
        shapes = tuple((*shape[:-1], shape[-1] // 16) for shape in operator.shapes)
        small = replace(operator, shapes=shapes)
        assert measure(OperatorJob("dealer", 2, LOCAL, small)).steps[0].rounds > 0
