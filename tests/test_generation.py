"""Prefill and greedy decoding, read by the twin, for its cost, and by parties."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from protocols.harness import WORLDS
from protocols.tiny import FULL, LLAMA, MPCACHE, OPT, PROMPT, SPECS, config, run, weights

from mpcache.errors import MpcacheError
from mpcache.eviction.base import Policy
from mpcache.eviction.full import Full
from mpcache.eviction.registry import make_policy
from mpcache.generation import Generation, Request, generate
from mpcache.models.decoder import forward, load_weights
from mpcache.models.spec import ModelSpec
from mpcache.protocols.counting import counting_machine
from mpcache.protocols.operation import PlainMachine
from mpcache.protocols.setting import Setting

POLICIES = {"full": Full(), "mpcache": make_policy(str(MPCACHE["policy"]), **MPCACHE)}


def twin(spec: ModelSpec, policy: Policy, request: Request, **options: Any) -> Generation:
    machine = PlainMachine(Setting())
    return generate(machine, load_weights(machine, spec, weights(spec)), policy, request, **options)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())
def test_every_token_is_the_likeliest_after_those_before(spec: ModelSpec) -> None:
    """With the full cache: each one as if everything had been read in one prefill."""
    result = twin(spec, Full(), Request(PROMPT, 13, 5, keep_logits=True))
    machine, ids = PlainMachine(Setting()), list(PROMPT)
    model = load_weights(machine, spec, weights(spec))
    for token, logits in zip(result.ids, result.logits, strict=True):
        cache = Full().start(spec, len(ids), 1)
        want = forward(
            machine, model, machine.tokens(ids, len(ids), spec.vocab), 0, len(ids), cache
        )
        torch.testing.assert_close(logits, want[0], atol=1e-4, rtol=0)
        assert token == int(want.argmax())
        ids.append(token)
    assert len(result.ids) == 5


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES.keys())
def test_forced_tokens_are_followed(policy: Policy) -> None:
    own = twin(LLAMA, policy, Request(PROMPT, 13, 4, keep_logits=True))
    again = twin(LLAMA, policy, Request(PROMPT, 13, 4, forced=own.ids, keep_logits=True))
    assert again.ids == own.ids
    other = [(token + 1) % LLAMA.vocab for token in own.ids]
    forced = twin(LLAMA, policy, Request(PROMPT, 13, 4, forced=other, keep_logits=True))
    assert forced.ids[0] == own.ids[0] and torch.equal(forced.logits[0], own.logits[0])
    assert not torch.allclose(forced.logits[1], own.logits[1])


def test_tokens_are_told_as_they_come() -> None:
    told: list[tuple[int, int | None]] = []
    result = twin(
        LLAMA, Full(), Request(PROMPT, 13, 3), on_token=lambda at, token: told.append((at, token))
    )
    assert told == list(enumerate(result.ids))
    assert result.logits == [] and result.prefill_seconds > 0 and result.decode_seconds > 0


def test_one_token_needs_no_decode_step() -> None:
    machine = counting_machine(Setting())
    model = load_weights(machine, OPT, None)
    result = generate(machine, model, Full(), Request(None, 13, 1))
    assert result.ids == []
    assert machine.ledger.ranks[0].total("prefill").rounds > 0  # type: ignore[attr-defined]
    assert machine.ledger.ranks[0].total("decode").rounds == 0  # type: ignore[attr-defined]


def test_a_prompt_of_another_length_is_refused() -> None:
    with pytest.raises(MpcacheError, match="expected 12 token ids"):
        twin(LLAMA, Full(), Request(PROMPT, 12, 1))
    with pytest.raises(MpcacheError, match="expected 13 token ids"):
        twin(LLAMA, Full(), Request(None, 13, 1))


def test_steps_are_fed_in_order_of_position() -> None:
    """Positions begin at 0 and go on by one, whatever the policy evicts."""
    starts: list[tuple[int, int]] = []
    inner = PlainMachine.tokens

    class Spy(PlainMachine):
        def tokens(self, ids: Any, count: int, vocab: int) -> Any:
            starts.append((count, len(ids)))
            return inner(self, ids, count, vocab)

    machine = Spy(Setting())
    model = load_weights(machine, LLAMA, weights(LLAMA))
    generate(machine, model, POLICIES["mpcache"], Request(PROMPT, 13, 4))
    assert starts == [(13, 13), (1, 1), (1, 1), (1, 1)]


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize(
    ("spec", "cache"), [(LLAMA, MPCACHE), (OPT, FULL)], ids=["llama-mpcache", "opt-full"]
)
def test_parties_generate_the_twins_tokens(spec: ModelSpec, cache: Any, world: int) -> None:
    """The client learns the tokens and nobody else; without `verify` nobody learns logits."""
    settings = config(world, cache)
    policy = make_policy(cache["policy"], **cache)
    request = Request(PROMPT, 13, settings.max_new_tokens, keep_logits=True)
    expected = twin(spec, policy, request)
    parties = run(settings, spec)
    for rank, party in enumerate(parties):
        known = expected.ids if rank == settings.client else [None] * len(expected.ids)
        assert party.generation.ids == [token for token in known if token is not None]
        assert party.told == list(enumerate(known))
        assert party.generation.logits == []
        assert party.generation.cache is not None
        assert party.generation.cache.kept.matches(policy.budget(13, 3))
        assert [(o.why, o.to, o.values) for o in party.ledger.openings] == [
            ("next token", "client", settings.max_new_tokens)
        ]
