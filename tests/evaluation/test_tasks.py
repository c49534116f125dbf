"""Each task beside a computation of its own, on a tiny model."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from protocols.tiny import MPCACHE

from mpcache.evaluation import tasks
from mpcache.evaluation.lanes import Engine
from mpcache.evaluation.recall import recall
from mpcache.evaluation.texts import Text, Windows
from mpcache.eviction.base import Policy
from mpcache.eviction.full import Full
from mpcache.eviction.mpcache import MPCache
from mpcache.generation import Request, generate
from mpcache.models.decoder import forward
from mpcache.models.tokenizer import ByteTokenizer

from .tiny import SPEC, TEXT, engine

SMALL = MPCache(**{key: value for key, value in MPCACHE.items() if key != "policy"})  # type: ignore[arg-type]
POLICIES: dict[tuple[str, float], Policy] = {("full", 100.0): Full(), ("mpcache", 50.0): SMALL}
CODEC = ByteTokenizer(SPEC.vocab)
IDS = CODEC.encode(TEXT)[:40]


def quiet(what: str) -> None:
    pass


def results(batches: Any) -> dict[tuple[str, float], dict[str, Any]]:
    return {key: result for batch in batches for key, result in batch.items()}


def loss_of_whole_text(runner: Engine, ids: list[int], last: int) -> float:
    """From one pass over all tokens, without any cache between them."""
    with torch.inference_mode():
        tokens = runner.machine.tokens(ids, len(ids), SPEC.vocab)
        cache = Full().start(SPEC, len(ids), 1)
        every = forward_all(runner, tokens, len(ids), cache)
        logs = torch.log_softmax(every.double(), -1)
    return -sum(float(logs[at - 1, ids[at]]) for at in range(len(ids) - last, len(ids))) / last


def forward_all(runner: Engine, tokens: torch.Tensor, count: int, cache: Any) -> torch.Tensor:
    """Logits [tokens, vocab] of every position: the last one's of each beginning."""
    rows = []
    for end in range(1, count + 1):
        fresh = Full().start(SPEC, end, 1)
        rows.append(forward(runner.machine, runner.model, tokens[:end], 0, end, fresh).reshape(-1))
    return torch.stack(rows)


@pytest.mark.parametrize("lanes", [1, 16])
def test_perplexity_is_that_of_a_direct_computation(lanes: int) -> None:
    runner, decode = engine(), 9
    got = results(tasks.perplexity(runner, IDS, decode, POLICIES, lanes, quiet))
    want = loss_of_whole_text(runner, IDS, decode)
    assert got["full", 100.0]["nll"] == pytest.approx(want, abs=1e-4)
    assert got["full", 100.0]["tokens"] == decode
    forced = IDS[-decode - 1 : -1]
    prompt = IDS[: -decode - 1]
    request = Request(prompt, len(prompt), decode + 1, forced=forced, keep_logits=True)
    rows = generate(runner.machine, runner.model, SMALL, request).logits[1:]
    losses = [
        -float(torch.log_softmax(row.double(), -1)[token])
        for row, token in zip(rows, IDS[-decode:], strict=True)
    ]
    assert got["mpcache", 50.0]["nll"] == pytest.approx(sum(losses) / decode, abs=1e-4)
    assert abs(got["mpcache", 50.0]["nll"] - want) > 1e-3


def test_agreement_counts_equal_tokens_of_the_full_cache() -> None:
    runner, decode = engine(), 40
    starved = replace(SMALL, static_keep=0.1, dynamic_keep=0.05)
    policies: dict[tuple[str, float], Policy] = {**POLICIES, ("mpcache", 50.0): starved}
    got = results(tasks.agreement(runner, IDS, decode, policies, 16, quiet))
    assert got["full", 100.0] == {"equal": decode, "tokens": decode, "prefix": decode}
    guide = generate(runner.machine, runner.model, Full(), Request(IDS, len(IDS), decode + 1)).ids
    request = Request(IDS, len(IDS), decode + 1, forced=guide[:-1], keep_logits=True)
    rows = generate(runner.machine, runner.model, starved, request).logits[1:]
    same = [int(row.argmax()) == token for row, token in zip(rows, guide[1:], strict=True)]
    assert not all(same)
    assert got["mpcache", 50.0] == {
        "equal": sum(same),
        "tokens": decode,
        "prefix": same.index(False),
    }


def test_recall_is_whole_for_the_full_cache_and_less_for_a_small_one() -> None:
    got = results(recall(engine(), IDS, 6, POLICIES, quiet))
    full, small = got["full", 100.0], got["mpcache", 50.0]
    assert full["mass"] == pytest.approx(1, abs=1e-6)
    assert full["mass_without_sink"] == pytest.approx(1, abs=1e-6)
    assert 0.1 < small["mass"] < 0.99
    assert 0.1 < small["mass_without_sink"] < 0.99


@pytest.mark.parametrize(
    ("answer", "exact", "digits"),
    [
        (" 12345.", True, 1.0),
        ("is 12345, and 99999", True, 1.0),
        ("123456", True, 1.0),  # the model went on; the key stands first
        ("12045", False, 0.8),
        ("2345", False, 0.0),
        ("99999 or 12345", False, 0.0),
        ("1234", False, 0.8),
        ("none", False, 0.0),
        ("", False, 0.0),
    ],
)
def test_the_first_number_of_an_answer_counts(answer: str, exact: bool, digits: float) -> None:
    assert tasks.score_passkey(answer, "12345") == (exact, pytest.approx(digits))


def test_a_passkey_is_hidden_once_at_its_depth_in_a_prompt_of_the_asked_length() -> None:
    filler = CODEC.encode("abcdefghij" * 50)
    hidden = [tasks.hide(CODEC, filler, 350, number, 7) for number in range(8)]
    for one in hidden:
        text = CODEC.decode(one.ids)
        assert len(one.ids) == 350 and len(one.key) == 5
        assert text.count(tasks.needle(one.key)) == 1
        assert text.startswith(tasks.INTRODUCTION) and text.endswith(tasks.QUESTION)
    assert len({one.key for one in hidden}) == 8
    gaps = sorted(one.depth for one in hidden)
    assert gaps[0] < 0.2 and gaps[-1] > 0.8
    assert max(b - a for a, b in pairwise(gaps)) < 0.25
    assert tasks.hide(CODEC, filler, 350, 3, 7) == hidden[3]
    assert tasks.hide(CODEC, filler, 350, 3, 8).key != hidden[3].key
    bare = tasks.passkey_tokens(CODEC)
    assert len(tasks.hide(CODEC, [], bare, 0, 0).ids) == bare


def test_passkey_answers_are_the_greedy_tokens() -> None:
    runner = engine()
    hidden = tasks.hide(CODEC, CODEC.encode(TEXT), 250, 0, 0)
    got = results(tasks.passkey(runner, CODEC, hidden, POLICIES, 16, quiet))
    for key, policy in POLICIES.items():
        request = Request(hidden.ids, len(hidden.ids), tasks.ANSWER_TOKENS)
        ids = generate(runner.machine, runner.model, policy, request).ids
        assert got[key]["answer"] == CODEC.decode(ids)


def test_decoding_stops_at_a_stop_token_and_leaves_it_out() -> None:
    runner = engine()
    prefill = runner.prefill(IDS)
    free = tasks.decoded(runner, {0: runner.start(Full(), prefill, 9)}, 9, quiet)[0]
    stop = free[4]
    cut = tasks.decoded(runner, {0: runner.start(Full(), prefill, 9)}, 9, quiet, [stop])[0]
    assert cut == free[: free.index(stop)] and len(cut) < len(free)


def test_windows_do_not_overlap_and_stay_the_same_when_more_are_read() -> None:
    few, many = (Windows(CODEC, Text("t", TEXT), 50, count, 3) for count in (2, 20))
    assert [few[i] for i in range(2)] == [many[i] for i in range(2)]
    assert len({tuple(many[i]) for i in range(20)}) == 20
    assert Windows(CODEC, Text("t", TEXT), 50, 20, 4)[0] != many[0]
