"""What is learnt ahead: layers' preferences and gates, on a tiny model, against brute force."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import yaml

from mpcache.evaluation import ahead, runner
from mpcache.evaluation.lanes import Asked
from mpcache.evaluation.texts import load_docstrings
from mpcache.eviction.attention_gate import AttentionGateCache, gates_of, trained_path
from mpcache.eviction.registry import policy_at
from mpcache.models.rotary_tables import rotary_tables
from mpcache.protocols.rotary import rotary

from .tiny import SPEC, call, engine, source


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(runner, "find", source)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def asked(tokens: int, seed: int = 3) -> Asked:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    return Asked(draw(2, 2, tokens, 4), draw(2, tokens, 4), draw(2, tokens, 4))


def probabilities(given: Asked, head: int, member: int, at: int) -> list[float]:
    """Attention of the query at a position to the tokens up to it, one by one."""
    query, keys = given.queries[head, member, at].double(), given.keys[head].double()
    e = [math.exp(float(query @ keys[t]) / 2) for t in range(at + 1)]
    return [x / sum(e) for x in e]


def test_dispersion_and_shift_by_hand() -> None:
    given, observed, tokens = asked(19), 5, 19
    entropy = variance = 0.0
    for head in range(2):
        for member in range(2):
            rows = [
                probabilities(given, head, member, at)[: tokens - observed]
                for at in range(tokens - observed, tokens)
            ]
            entropy -= sum(p * math.log(p) for row in rows for p in row)
            for column in zip(*rows, strict=True):
                mean = sum(column) / observed
                variance += sum((p - mean) ** 2 for p in column) / observed
    found = ahead.dispersion_and_shift(given, observed)
    assert found == pytest.approx((entropy, variance), rel=1e-5)


def test_worths_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ahead, "SINK", 1)
    monkeypatch.setattr(ahead, "RECENT", 2)
    given = asked(32)
    span, (found, known) = 4, ahead.worths(given)
    for head in range(2):
        for token in range(32):
            logs = []
            for end in (12, 16, 20, 24, 28):
                if not 1 <= token < end - 2:
                    continue
                drawn = [
                    probabilities(given, head, member, at)[token]
                    for at in range(end, end + span)
                    for member in range(2)
                ]
                logs.append(math.log(sum(drawn) / len(drawn) + ahead.LEAST))
            assert bool(known[token]) == bool(logs)
            if logs:
                assert float(found[token, head]) == pytest.approx(sum(logs) / len(logs), rel=1e-4)


def test_least_squares_find_a_line() -> None:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(500, 6, generator=generator)
    line = torch.randn(6, 2, generator=generator)
    squares = ahead.Squares(6, 2)
    for part in x.split(100):
        squares.add(part, part @ line + 7)
    torch.testing.assert_close(squares.solved().float(), line, rtol=0, atol=0.01)


def test_preferences_command(tmp_path: Path, text: Path) -> None:
    table = tmp_path / "new" / "table.yaml"
    options = ("--model", "tiny", "--text", text, "--context", 300, "--windows", 2, "--out", table)
    done = call("preferences", *options)
    assert done.exit_code == 0, done.output
    (entry,) = yaml.safe_load(table.read_text())
    assert entry["shape"] == SPEC.digest() and "2 windows of 300 tokens, seed 0" in entry["made"]
    given = ahead.lessons(
        runner.Settings(tmp_path, "tiny", texts=(str(text),), context=300, decode=1, windows=2)
    )
    total = [0.0] * SPEC.layers
    for window in range(2):
        layers = engine().prefill(given.windows[window]).asked
        both = [ahead.dispersion_and_shift(layers[i]) for i in range(SPEC.layers)]
        own = [h ** (1 / ahead.TAU[0]) * v ** (1 / ahead.TAU[1]) for h, v in both]
        total = [a + b / sum(own) * SPEC.layers for a, b in zip(total, own, strict=True)]
    want = [round(100 * x / 2) for x in total]
    assert entry["preferences"] == pytest.approx(want, abs=1) and len(set(want)) > 1
    # another model's entry stays, the same model's gives way
    table.write_text(yaml.safe_dump([{"shape": "other", "preferences": [1]}, entry]))
    assert call("preferences", *options).exit_code == 0
    assert [one["shape"] for one in yaml.safe_load(table.read_text())] == ["other", SPEC.digest()]
    table.write_text("- no table")
    assert "is no table of preferences" in call("preferences", *options).output


def test_trained_gates_are_found_and_used(text: Path) -> None:
    assert gates_of(SPEC) is None
    done = call("gates", "--model", "tiny", "--text", text, "--context", 320, "--windows", 2)
    assert done.exit_code == 0, done.output
    trained = gates_of(SPEC)
    assert trained is not None and str(trained_path(SPEC)) in done.output.replace("\n", "")
    assert [tuple(layer.shape) for layer in trained.layers] == [(16, 2)] * SPEC.layers
    # the policy reads of a token what the gate was fitted to
    runs = engine()
    layers = runs.prefill(list(range(40))).asked
    cache = policy_at("attention-gate", 9, 40).start(SPEC, 40, 2)
    assert isinstance(cache, AttentionGateCache)
    for layer, one in layers.items():
        got = cache._worth(runs.machine, layer, one.keys, one.values)
        want = ahead.inputs_of(SPEC, one, runs) @ trained.layers[layer]
        torch.testing.assert_close(got, want.t(), rtol=1e-4, atol=1e-4)


def test_inputs_do_not_tell_the_position() -> None:
    """One key at two places: turned back they are the same."""
    runs, key = engine(), torch.randn(2, 1, 4)
    cos, sin = rotary_tables(SPEC, 0, 9)
    keys = rotary(runs.machine, key.expand(2, 9, 4), cos, sin)
    values = torch.zeros(2, 9, 4)
    inputs = ahead.inputs_of(SPEC, Asked(torch.zeros(2, 2, 9, 4), keys, values), runs)
    torch.testing.assert_close(inputs, inputs[:1].expand(9, -1), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--context", 200), "--context 200: expected 288 tokens or more"),
        (("--windows", 0), "--windows 0: expected 1 or more"),
        (("--context", 9999), "--context 9999 needs 9999 positions"),
    ],
)
def test_mistakes_are_told(options: tuple[object, ...], message: str, text: Path) -> None:
    for command in ("preferences", "gates"):
        done = call(command, "--model", "tiny", "--text", text, *options)
        assert done.exit_code == 2 and message in done.output.replace("\n", " ")


def test_synthetic_weights_teach_nothing(monkeypatch: pytest.MonkeyPatch, text: Path) -> None:
    from mpcache.models import registry

    monkeypatch.setattr(runner, "find", registry.find)
    done = call("gates", "--model", "opt-125m", "--weights", "synthetic", "--text", text)
    assert done.exit_code == 2 and "synthetic weights here, which teach nothing" in done.output


def test_docstrings_are_a_long_text() -> None:
    found = load_docstrings()
    assert len(found.content) > 300_000 and "library" in found.origin
