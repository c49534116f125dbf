"""Two processes measure what was predicted, or nothing is reported."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch

from mpcache.benchmarking import measure as measuring
from mpcache.benchmarking import processes
from mpcache.benchmarking.job import Job, Side
from mpcache.benchmarking.layers import DecodeJob, PrefillJob
from mpcache.benchmarking.measure import measure, predicted
from mpcache.benchmarking.operators import OPERATORS, OperatorJob
from mpcache.errors import MpcacheError
from mpcache.eviction.registry import make_policy, policy_at, policy_names
from mpcache.models.spec import ModelSpec
from mpcache.protocols.arithmetic import multiply
from mpcache.protocols.correlation import Triple, Truncated
from mpcache.protocols.operation import Machine
from mpcache.protocols.work import Call, held_bytes

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


@pytest.mark.parametrize(("suite", "parties"), [("dealer", 2), ("crypten", 2), ("crypten", 3)])
def test_a_job_is_measured(suite: str, parties: int) -> None:
    found = measure(_Products(suite, 3, LOCAL, parties=parties))
    assert len(found.seconds) == len(found.plain_seconds) == 2
    assert found.ahead_seconds == 0, "there are no weights"
    assert len(found.steps) == parties
    assert len({entry.rounds for entry in found.steps}) == 1 <= found.steps[0].rounds
    sent, received = (
        sum(getattr(entry, name) for entry in found.steps)
        for name in ("sent_bytes", "received_bytes")
    )
    assert sent == received > 0
    assert (found.dealt_bytes > 0) is (suite == "dealer")


def test_times_are_told_apart_by_scope() -> None:
    found = measure(_Products("dealer", 3, LOCAL), plain=False)
    assert found.work["multiply"].calls.keys() == {Call("scope", 0), *_triple_and_cut()}
    for scopes in found.scopes:
        entry = scopes["multiply"]
        assert entry.wait_seconds + entry.transfer_seconds <= entry.seconds
        assert 0 < entry.wire_busy_seconds <= entry.busy_seconds
    assert found.dealer_scopes["multiply"].busy_seconds > 0
    assert sum(entry.rounds for entry in found.scopes[0].values()) == found.steps[0].rounds


def _triple_and_cut() -> set[Call]:
    return {
        Call(type(correlation).__name__, held_bytes(correlation.pieces))
        for correlation in (Triple(torch.mul, (3,), (3,), (3,)), Truncated((3,), 16))
    }


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
    whole = processes.deal

    def more(job: Job, seeds: Any) -> Any:
        dealt = whole(job, seeds)
        return replace(dealt, items=[*dealt.items, torch.zeros(1)])

    monkeypatch.setattr(processes, "deal", more)
    with pytest.raises(MpcacheError, match="left over"):
        measure(_Products("dealer", 2, LOCAL))


def test_other_bytes_dealt_than_used_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = processes.deal

    def less(job: Job, seeds: Any) -> Any:
        dealt = whole(job, seeds)
        return replace(dealt, last_bytes=dealt.last_bytes - 8)

    monkeypatch.setattr(processes, "deal", less)
    with pytest.raises(MpcacheError, match="nothing is reported"):
        measure(_Products("dealer", 2, LOCAL))


def test_bytes_that_got_lost_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = processes.run

    def lossy(*arguments: Any) -> Any:
        results = whole(*arguments)
        next(iter(results[1].entries.values())).received_bytes -= 1
        results[1].entries["step1/multiply"].received_bytes -= 1
        return results

    monkeypatch.setattr(processes, "run", lossy)
    with pytest.raises(MpcacheError, match="differs from its prediction"):
        measure(_Products("crypten", 2, LOCAL))


@pytest.mark.parametrize("suite", ["dealer", "crypten"])
@pytest.mark.parametrize("cache", ["mpcache", "full"])
@pytest.mark.parametrize("kind", [DecodeJob, PrefillJob])
def test_layers_are_measured(kind: Any, cache: str, suite: str) -> None:
    policy = make_policy(cache, clusters=(4, 2), sink=1, recent=2, dynamic_keep=0.4)
    found = measure(kind(suite, 2, LOCAL, TINY, policy, 20))
    assert found.steps[0].rounds > 10
    assert found.total_work.multiply_adds > 0
    assert 0 < found.attention[0].rounds < found.steps[0].rounds


@pytest.mark.parametrize("kind", [DecodeJob, PrefillJob])
def test_a_whole_model_has_more_than_its_layers(kind: Any) -> None:
    policy = make_policy("full")
    whole, cut = (
        measure(kind("dealer", 2, LOCAL, TINY, policy, 9, whole=whole), plain=whole)
        for whole in (True, False)
    )
    assert {"embed/embed", "head/linear", "next-token"} <= whole.scopes[0].keys()
    assert whole.steps[0].rounds > cut.steps[0].rounds
    assert whole.plain_seconds and whole.ahead_seconds > 0


def test_every_policy_has_a_decode_step() -> None:
    for name in policy_names():
        policy = policy_at(name, 8, 32).fitted(TINY)
        job = DecodeJob("dealer", 1, LOCAL, TINY, policy, 32)
        if job.policy.oblivious:
            assert predicted(job).ranks[0].total("step0").rounds > 0, name


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
            assert predicted(job).ranks[0].total("step0").rounds > 0, operator.name
        assert measuring._plain(OperatorJob("dealer", 1, LOCAL, operator))


def test_small_operators_run() -> None:
    for name in ("relu 8192", "layernorm 2048", "one-hot of"):
        operator = next(op for op in OPERATORS if op.name.startswith(name))
        shapes = tuple((*shape[:-1], shape[-1] // 16) for shape in operator.shapes)
        small = replace(operator, shapes=shapes)
        assert measure(OperatorJob("dealer", 2, LOCAL, small)).steps[0].rounds > 0
