"""Replaying a prefill equals running it, and lanes equal runs of their own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
import torch
from eviction.gates import drawn
from protocols.test_dealer_runs import LOGITS
from protocols.tiny import LLAMA, MPCACHE, OPT, OPT_350M, PROMPT, weights

from mpcache.errors import MpcacheError
from mpcache.evaluation.fixed import FixedMachine
from mpcache.evaluation.lanes import Engine, Lane
from mpcache.eviction.base import Policy
from mpcache.eviction.full import Full
from mpcache.eviction.mpcache import MPCache
from mpcache.eviction.registry import policy_at, policy_names
from mpcache.generation import Request, generate
from mpcache.models.decoder import load_weights
from mpcache.models.spec import ModelSpec
from mpcache.protocols.operation import PlainMachine
from mpcache.protocols.setting import Setting

SMALL = MPCache(**{key: value for key, value in MPCACHE.items() if key != "policy"})  # type: ignore[arg-type]
NEW = 6
FORCED = [9, 1, 33, 4, 20]
SPECS = {"llama": LLAMA, "opt": OPT, "opt-350m": OPT_350M}


def engine(spec: ModelSpec, machine: PlainMachine | FixedMachine | None = None) -> Engine:
    machine = machine or PlainMachine(Setting())
    return Engine(machine, load_weights(machine, spec, weights(spec)))


def state(value: Any, seen: frozenset[int] = frozenset()) -> list[torch.Tensor]:
    """Every tensor that an object holds, in the order of its fields."""
    if isinstance(value, torch.Tensor):
        return [value]
    if id(value) in seen or value is None or isinstance(value, str | int | float):
        return []
    seen |= {id(value)}
    if isinstance(value, dict):
        return [tensor for key in sorted(value, key=str) for tensor in state(value[key], seen)]
    if isinstance(value, list | tuple | set):
        return [tensor for item in value for tensor in state(item, seen)]
    return state(vars(value), seen) if hasattr(value, "__dict__") else []


POLICIES: list[Policy] = [SMALL, *(policy_at(name, 8, len(PROMPT)) for name in policy_names())]


@pytest.mark.parametrize("policy", POLICIES, ids=lambda policy: policy.name)
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_replay_equals_the_real_prefill_bit_for_bit(spec: ModelSpec, policy: Policy) -> None:
    runner = engine(spec)
    with drawn():
        lane = runner.start(policy, runner.prefill(PROMPT), NEW)
        request = Request(PROMPT, len(PROMPT), 1, keep_logits=True)
        real = generate(runner.machine, runner.model, policy, request)
        assert torch.equal(lane.logits, real.logits[0].reshape(-1))
        cache = policy.start(spec, len(PROMPT), NEW)
        runner._forward(PROMPT, cache)
    assert cache.kept == lane.cache.kept
    mine, theirs = state(lane.cache), state(cache)
    assert len(mine) == len(theirs) > 2 * spec.layers - 1
    assert all(torch.equal(one, two) for one, two in zip(mine, theirs, strict=True))


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_lanes_equal_runs_of_their_own(spec: ModelSpec) -> None:
    runner = engine(spec)
    prefill = runner.prefill(PROMPT)
    lanes = [runner.start(policy, prefill, NEW) for policy in (Full(), SMALL, Full())]
    logits = [[lane.logits] for lane in lanes]
    for token in FORCED:
        runner.step(lanes, [token, token, (token + 1) % spec.vocab])
        for row, lane in zip(logits, lanes, strict=True):
            row.append(lane.logits)
    others = [(token + 1) % spec.vocab for token in FORCED]
    for rows, policy, forced in zip(
        logits, (Full(), SMALL, Full()), (FORCED, FORCED, others), strict=True
    ):
        request = Request(PROMPT, len(PROMPT), NEW, forced=forced, keep_logits=True)
        want = generate(runner.machine, runner.model, policy, request)
        for got, own in zip(rows, want.logits, strict=True):
            torch.testing.assert_close(got, own.reshape(-1), atol=2e-5, rtol=0)
    assert float((logits[0][-1] - logits[2][-1]).abs().max()) > 0.01


def test_lanes_must_stand_together() -> None:
    runner = engine(LLAMA)
    prefill = runner.prefill(PROMPT)
    ahead, behind = (runner.start(Full(), prefill, NEW) for _ in range(2))
    runner.step([ahead], [3])
    with pytest.raises(MpcacheError, match=r"positions \[13, 14\]"):
        runner.step([ahead, behind], [1, 1])


def test_a_policy_that_alters_the_prefill_runs_it() -> None:
    @dataclass(frozen=True)
    class Blind(Full):
        alters_prefill: ClassVar[bool] = True

        def start(self, spec: ModelSpec, prompt_tokens: int, new_tokens: int) -> Any:
            cache = super().start(spec, prompt_tokens, new_tokens)
            inner = cache.prefill
            cache.prefill = lambda *asked: inner(*asked) * 0  # type: ignore[method-assign]
            return cache

    runner = engine(LLAMA)
    prefill = runner.prefill(PROMPT)
    blind: Lane = runner.start(Blind(), prefill, NEW)
    assert float((blind.logits - prefill.logits.reshape(-1)).abs().max()) > 0.01
    later = [lane.cache.keys[1] for lane in (blind, runner.start(Full(), prefill, NEW))]
    assert not torch.equal(*later)


def test_lanes_in_fixed_point() -> None:
    machine = FixedMachine(Setting(suite="dealer"))
    runner = engine(LLAMA, machine)
    lanes = [runner.start(policy, runner.prefill(PROMPT), NEW) for policy in (Full(), SMALL)]
    runner.step(lanes, [4, 4])
    want = generate(machine, runner.model, SMALL, Request(PROMPT, len(PROMPT), 2, forced=[4],
                                                          keep_logits=True))  # fmt: skip
    torch.testing.assert_close(lanes[1].logits, want.logits[1].reshape(-1), atol=LOGITS, rtol=0)
