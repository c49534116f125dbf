"""Token-selective propagation: who goes on, where those stand, and what is left of the prefill."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from protocols.harness import WORLDS, counts
from protocols.tiny import PROMPT, SPECS, config, run, weights

from mpcache.eviction.fastkv import FastKV, FastKVCache
from mpcache.eviction.registry import policy_at
from mpcache.generation import Request, generate
from mpcache.models.decoder import forward, load_weights
from mpcache.models.folding import VALUES, Folded
from mpcache.models.known import KNOWN
from mpcache.models.spec import ModelSpec
from mpcache.program import Twin, expected_kept, kept_of, predict
from mpcache.protocols.operation import PlainMachine
from mpcache.protocols.setting import Setting

from .harness import random_activations, walk
from .naive import best_of, walk_naive
from .naive_layers import LAYERED, Walker, pooled

CACHE = {"policy": "fastkv", "keep": 0.3}  # of 13 tokens 4 stay and go on
PARTED = 4  # with so few tokens before the window sums over 5 neighbours are the same sums
LOGITS = 0.02  # as in tests of other caches


@settings(max_examples=30)
@given(
    data=st.data(),
    seed=st.integers(0, 2**32),
    heads=st.integers(1, 2),
    group=st.integers(1, 2),
    prompt=st.integers(6, 40),
    last=st.integers(0, 2),
)
def test_a_replay_equals_brute_force(
    data: st.DataObject, seed: int, heads: int, group: int, prompt: int, last: int
) -> None:
    observed = data.draw(st.integers(1, 4))
    passed = data.draw(st.integers(observed, prompt))
    tokens = data.draw(st.integers(1, passed))
    pooled = data.draw(st.sampled_from([1, 5] if passed - observed > PARTED else [1]))
    policy = FastKV(tokens, observed, pooled, passed=passed, last=last)
    activations = random_activations(seed, [0, 1, 2], heads, group, prompt, 2, 4)
    results = walk(policy, activations)(PlainMachine(Setting()), *activations.tensors)
    expected = walk_naive(LAYERED, policy, activations)
    for got, want in zip(results, expected, strict=False):
        torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)


def best_and_window(votes: list[float], policy: FastKV, count: int, tokens: int) -> list[int]:
    edge = tokens - policy.observed
    best = best_of(pooled(votes[:edge], policy.pooled), count - policy.observed)
    return [*sorted(best), *range(edge, tokens)]


def by_hand(spec: ModelSpec, policy: FastKV, seed: int) -> tuple[torch.Tensor, dict[int, list]]:
    """Logits [vocab] behind the prompt; by layer, each head's stored keys and values."""
    walker, stored = Walker(spec, weights(spec, seed), PROMPT), {}
    for layer in range(spec.layers):
        _, keys, values, given = walker.layer(layer)
        tokens = len(given[0])
        votes = [
            [sum(row[t] for row in rows[-policy.observed :] if t < len(row)) for t in range(tokens)]
            for rows in given
        ]
        every = []
        for head in range(spec.kv_heads):
            own = votes[head * spec.group : (head + 1) * spec.group]
            total = [sum(column) for column in zip(*own, strict=True)]
            kept = best_and_window(total, policy, policy.tokens, tokens)
            every.append((keys[head, kept], values[head, kept]))
        stored[layer] = every
        if layer == policy.last:
            total = [sum(column) for column in zip(*votes, strict=True)]
            going = best_and_window(total, policy, policy.passed, tokens)
            positions = sorted(walker.x)
            walker.x = {positions[i]: walker.x[positions[i]] for i in going}
    return walker.logits(), stored


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_the_decoder_equals_brute_force(spec: ModelSpec, seed: int) -> None:
    policy = FastKV(5, 2, 3, passed=7).fitted(spec)
    assert policy.last == 0
    machine = PlainMachine(Setting())
    model = load_weights(machine, spec, weights(spec, seed))
    cache = policy.start(spec, len(PROMPT), 2)
    got = forward(machine, model, machine.tokens(PROMPT, 13, spec.vocab), 0, 13, cache)
    want, stored = by_hand(spec, policy, seed)
    torch.testing.assert_close(got[0], want, rtol=1e-4, atol=1e-4)
    folded = Folded(spec, weights(spec, seed))
    for layer, heads in stored.items():
        scales = folded.balance(f"layers.{layer}.", *VALUES).reshape(spec.kv_heads, spec.head_dim)
        for head, (keys, values) in enumerate(heads):
            torch.testing.assert_close(cache.keys[layer][head], keys, rtol=1e-4, atol=1e-4)
            scaled = values * scales[head]
            torch.testing.assert_close(cache.values[layer][head], scaled, rtol=1e-4, atol=1e-4)


def test_the_last_token_goes_on_alone() -> None:
    """With a window of one and nobody else the positions are public, and behind `last` is one."""
    spec = SPECS["llama"]
    policy = FastKV(1, 1, passed=1, last=0)
    machine = PlainMachine(Setting())
    model = load_weights(machine, spec, weights(spec))
    cache = policy.start(spec, 13, 2)
    got = forward(machine, model, machine.tokens(PROMPT, 13, spec.vocab), 0, 13, cache)
    assert isinstance(cache, FastKVCache) and cache.going is not None and cache.going.placed is None
    assert [cache.keys[layer].shape[1] for layer in (0, 1)] == [1, 1]
    walker = Walker(spec, weights(spec), PROMPT)
    walker.layer(0)
    walker.x = {12: walker.x[12]}
    walker.layer(1)
    torch.testing.assert_close(got[0], walker.logits(), rtol=1e-4, atol=1e-4)


def test_where_all_go_on_nothing_is_different() -> None:
    spec = SPECS["llama"]
    machine = PlainMachine(Setting())
    model = load_weights(machine, spec, weights(spec))
    request = Request(PROMPT, 13, 4, keep_logits=True)
    every = [
        generate(machine, model, policy, request)
        for policy in (FastKV(13, 2, passed=13), policy_at("snapkv", 13, 13))
    ]
    for one, other in zip(*(found.logits for found in every), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_whole_runs_on_shares(spec: ModelSpec) -> None:
    settings = config(2, CACHE, protocol="dealer", verify=True)
    parties = run(settings, spec)
    client = parties[1].generation
    twin = Twin(settings, spec, weights(spec)).generate(PROMPT, forced=client.ids)
    assert client.ids == twin.ids
    for opened, plain in zip(client.logits, twin.logits, strict=True):
        assert float((opened - plain.reshape(-1)).abs().max()) < LOGITS
    for party, prediction in zip(parties, predict(settings, spec, len(PROMPT)).ranks, strict=True):
        assert counts(party.ledger) == counts(prediction)
        assert party.ledger.transcript.hexdigest() == prediction.transcript.hexdigest()
        assert kept_of(party.generation) == expected_kept(settings, spec, len(PROMPT))


@pytest.mark.parametrize("world", WORLDS)
def test_whole_runs_of_the_baseline(world: int) -> None:
    settings, spec = config(world, CACHE, max_new_tokens=2), SPECS["llama"]
    parties = run(settings, spec)
    for party, prediction in zip(parties, predict(settings, spec, len(PROMPT)).ranks, strict=True):
        assert counts(party.ledger) == counts(prediction)
        assert party.ledger.transcript.hexdigest() == prediction.transcript.hexdigest()


def test_two_prompts_of_one_length_leave_one_transcript() -> None:
    settings, spec = config(2, CACHE, protocol="dealer", max_new_tokens=2), SPECS["llama"]
    other = [(token * 7 + 3) % spec.vocab for token in PROMPT]
    one, two = run(settings, spec, PROMPT), run(settings, spec, other)
    assert one[1].generation.ids != two[1].generation.ids
    for first, second in zip(one, two, strict=True):
        assert first.ledger.transcript.hexdigest() == second.ledger.transcript.hexdigest()
        assert counts(first.ledger) == counts(second.ledger)


def test_layers_behind_work_on_fewer_tokens() -> None:
    spec = SPECS["llama"]
    sent = [
        predict(config(2, cache, protocol="dealer"), spec, 60).ranks[0]
        for cache in (CACHE, {"policy": "snapkv", "keep": 0.3})
    ]
    fast, slow = (ledger.total("prefill/layer1").sent_bytes for ledger in sent)
    assert fast < 0.45 * slow
    fast, slow = (ledger.total("prefill/layer0/ffn").sent_bytes for ledger in sent)
    assert fast < 0.4 * slow


def test_the_middle_layer_is_the_last_whole_one() -> None:
    policy = policy_at("fastkv", 90, 896)
    assert isinstance(policy, FastKV) and policy.passed == 180
    fitted = policy.fitted(KNOWN["smollm2"].spec)
    assert fitted.last == 14 and fitted.fitted(SPECS["llama"]) == fitted
    assert [fitted.layer_kind(layer) for layer in (0, 13, 14, 15, 29)] == [0, 0, 1, 2, 2]
    assert {fitted.layer_budget(layer, 896, 2) for layer in range(30)} == {policy.budget(896, 2)}
    few = FastKV(tokens=50, observed=4, passed=20, last=1)
    assert [few.layer_budget(layer, 99, 1).static for layer in (0, 1, 2)] == [50, 50, 20]
