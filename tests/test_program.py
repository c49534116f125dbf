"""One text, four readings: prediction equals measurement, and nothing depends on a secret."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import pytest
import torch
from protocols.harness import UNIT, WORLDS, counts
from protocols.tiny import FULL, LLAMA, MPCACHE, OPT, OPT_350M, PROMPT, Party, config, run, weights

import mpcache
from mpcache.errors import MpcacheError
from mpcache.generation import ALLOWED_OPENINGS, Generation
from mpcache.models.spec import ModelSpec
from mpcache.parties.local import run_parties
from mpcache.parties.transport import Wires
from mpcache.program import (
    Twin,
    expected_kept,
    kept_of,
    policy_of,
    predict,
    run_secure,
    setting_of,
)

PACKAGE = Path(mpcache.__file__).parent
OTHER_PROMPT = [30, 1, 1, 1, 1, 1, 7, 36, 36, 4, 19, 28, 12]
RUNS = {
    "llama": (LLAMA, MPCACHE),
    "opt": (OPT, MPCACHE),
    "opt-350m-full": (OPT_350M, FULL),
}


def check_prediction(parties: list[Party], settings: Any, spec: ModelSpec) -> None:
    prediction = predict(settings, spec, len(PROMPT))
    for party, predicted in zip(parties, prediction.ranks, strict=True):
        assert counts(party.ledger) == counts(predicted)
        assert party.ledger.transcript.hexdigest() == predicted.transcript.hexdigest()
        assert party.ledger.openings == predicted.openings
        for phase in ("setup", "prefill", "decode"):
            assert party.ledger.total(phase).sent_bytes == predicted.total(phase).sent_bytes
    totals = [party.ledger.total() for party in parties]
    assert sum(t.sent_bytes for t in totals) == sum(t.received_bytes for t in totals)
    assert len({t.rounds for t in totals}) == 1


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("name", RUNS)
def test_measured_equals_predicted_in_every_scope(name: str, world: int) -> None:
    spec, cache = RUNS[name]
    settings = config(world, cache, max_new_tokens=2)
    parties = run(settings, spec)
    check_prediction(parties, settings, spec)
    scopes = set(counts(parties[0].ledger))
    context = "decode/layer1/attention/softmax/values/matmul"
    assert {context, "prefill/next-token/argmax/negative"} <= scopes
    want = expected_kept(settings, spec, len(PROMPT))
    assert all(kept_of(party.generation) == want for party in parties)


@pytest.mark.parametrize("world", WORLDS)
def test_two_prompts_of_one_length_leave_one_transcript(world: int) -> None:
    settings = config(world, owner=world - 1, client=0, max_new_tokens=2)
    first, second = run(settings, LLAMA), run(settings, LLAMA, OTHER_PROMPT)
    assert first[0].generation.ids != second[0].generation.ids, "the prompts do matter"
    for one, two in zip(first, second, strict=True):
        assert one.ledger.transcript.hexdigest() == two.ledger.transcript.hexdigest()
        assert counts(one.ledger) == counts(two.ledger)
        assert one.ledger.openings == two.ledger.openings
    check_prediction(first, settings, LLAMA)


def test_a_longer_prompt_or_answer_leaves_another_transcript() -> None:
    settings = config(2)
    digests = {
        predict(settings, LLAMA, 13).ranks[0].transcript.hexdigest(),
        predict(settings, LLAMA, 14).ranks[0].transcript.hexdigest(),
        predict(config(2, max_new_tokens=4), LLAMA, 13).ranks[0].transcript.hexdigest(),
        predict(config(2, FULL), LLAMA, 13).ranks[0].transcript.hexdigest(),
    }
    assert len(digests) == 4


@pytest.mark.parametrize("world", WORLDS)
def test_verify_opens_logits_to_the_client_alone(world: int) -> None:
    settings = config(world, FULL, verify=True, max_new_tokens=2)
    parties = run(settings, LLAMA)
    twin = Twin(config(2, FULL, max_new_tokens=2), LLAMA, weights(LLAMA))
    expected = twin.generate(PROMPT)
    for rank, party in enumerate(parties):
        assert [(o.why, o.to, o.values) for o in party.ledger.openings] == [
            ("next token", "client", 2),
            ("verify: logits", "client", 2 * LLAMA.vocab),
        ]
        if rank != settings.client:
            assert party.generation.logits == [] and party.generation.ids == []
    assert {o.why for o in parties[0].ledger.openings} == ALLOWED_OPENINGS - {"verify: choices"}
    opened = parties[settings.client].generation
    assert opened.ids == expected.ids
    for got, want in zip(opened.logits, expected.logits, strict=True):
        assert float((got - want).abs().max()) < 1200 * UNIT  # as in tests of the decoder
    check_prediction(parties, settings, LLAMA)


def test_only_three_reasons_to_open_are_allowed() -> None:
    assert {"next token", "verify: logits", "verify: choices"} == ALLOWED_OPENINGS


# --- who holds what ------------------------------------------------------------------------------


def secure(settings: Any, tensors: dict[int, Any], prompts: dict[int, Any]) -> list[Generation]:
    def program(wires: Wires) -> Generation:
        return run_secure(settings, LLAMA, wires, tensors.get(wires.rank), prompts.get(wires.rank))

    return run_parties(settings.parties, program)


def test_the_owner_must_have_weights_and_the_client_a_prompt() -> None:
    settings = config(2, FULL)
    with pytest.raises(MpcacheError, match="party 0 has no value to share"):
        secure(settings, {}, {1: PROMPT})
    with pytest.raises(MpcacheError, match="party has no prompt"):
        secure(settings, {0: weights(LLAMA)}, {})


def test_weights_and_prompts_of_other_parties_count_nothing() -> None:
    settings = config(3, FULL, max_new_tokens=1)
    right = secure(settings, {0: weights(LLAMA)}, {1: PROMPT})
    wrong = {1: weights(LLAMA, 2), 2: weights(LLAMA, 3)}
    both = secure(settings, {0: weights(LLAMA), **wrong}, {0: OTHER_PROMPT, 1: PROMPT})
    assert both[1].ids == right[1].ids
    assert not both[0].ids and not both[2].ids


def test_weights_of_another_shape_are_refused() -> None:
    tensors = weights(LLAMA)
    tensors["final.norm.gain"] = tensors["final.norm.gain"][:-1]
    with pytest.raises(
        MpcacheError, match=r"weight final\.norm\.gain: expected \[16\], not \[15\]"
    ):
        secure(config(2, FULL), {0: tensors}, {1: PROMPT})


@pytest.mark.parametrize("length", [0, 62, 10**6, -1])
def test_an_announced_length_that_does_not_fit(length: int) -> None:
    """The others check what the client says: 64 positions, 3 of them for the answer."""
    settings = config(2, FULL)

    def program(wires: Wires) -> None:
        if wires.rank == settings.client:
            with wires.ledger.scope("setup"):
                wires.exchange("prompt-length", {0: [torch.tensor([length])]}, {})
                wires.exchange("seeds", {}, {0: []})
        else:
            run_secure(settings, LLAMA, wires, weights(LLAMA), None)

    with pytest.raises(MpcacheError, match=f"party 1 announced a prompt of {length} tokens"):
        run_parties(2, program)


def test_settings_follow_the_configuration() -> None:
    settings = config(3, MPCACHE, owner=2, client=0, ring={"frac": 18})
    setting = setting_of(settings)
    assert (setting.world, setting.owner, setting.client, setting.frac) == (3, 2, 0, 18)
    policy = policy_of(settings, 13)
    assert {name: getattr(policy, name) for name in MPCACHE if name != "policy"} == {
        name: value for name, value in MPCACHE.items() if name != "policy"
    }


def test_steps_in_which_layers_differ_show() -> None:
    result = Twin(config(2), LLAMA, weights(LLAMA)).generate(PROMPT)
    want = expected_kept(config(2), LLAMA, 13)
    assert kept_of(result) == want
    assert result.cache is not None
    result.cache.kept.dynamic[1][1] += 1
    first, second = want["dynamic"]
    assert kept_of(result) == {**want, "dynamic": [first, [second, second + 1]]}
    assert kept_of(Generation()) == {"static": [], "dynamic": []}


# --- one door out --------------------------------------------------------------------------------

DOORS = {
    "reveal": {"protocols/crypten.py"},
    "reveal_batch": set(),
    "get_plain_text": set(),
    "suite.open": {"protocols/operation.py"},
    "machine.open": {"generation.py", "benchmarking/layers.py"},
}


def doors_used(source: str) -> set[str]:
    """Which names that turn shares into values a source text calls."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute):
            name = ast.unparse(node)
            found |= {door for door in DOORS if f".{name}".endswith(f".{door}")}
            if node.attr == "open" and isinstance(node.ctx, ast.Load) and "suite" in name:
                found.add("suite.open")
    return found


def test_values_leave_through_one_door() -> None:
    used: dict[str, set[str]] = {door: set() for door in DOORS}
    for path in PACKAGE.rglob("*.py"):
        for door in doors_used(path.read_text()):
            used[door].add(str(path.relative_to(PACKAGE)))
    assert used == DOORS


@pytest.mark.parametrize(
    ("source", "door"),
    [
        ("x = _stock(v).reveal()", "reveal"),
        ("f = share.get_plain_text", "get_plain_text"),
        ("machine.suite.open(x, None, 'why')", "suite.open"),
        ("my_suite.open(x)", "suite.open"),
        ("self.machine.open(x, 'client', 'why')", "machine.open"),
        ("path.open()", None),
    ],
)
def test_the_doors_are_seen(source: str, door: str | None) -> None:
    assert doors_used(source) == ({door} if door else set())
