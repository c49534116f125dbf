"""Gates: where they come from, and who sees them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from protocols.test_dealer import perform
from safetensors.torch import save_file
from typer.testing import CliRunner

from mpcache.cli import app
from mpcache.errors import UsageError
from mpcache.eviction.attention_gate import AttentionGate, gates_of, trained_path
from mpcache.eviction.registry import policy_at
from mpcache.models.known import KNOWN
from mpcache.protocols.dealer import DealerSuite

from .harness import SPEC, random_activations, walk

SMOLLM2 = KNOWN["smollm2"].spec


@pytest.fixture(autouse=True)
def _nothing_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def put(layers: int, value: float = 0.5) -> Path:
    path = trained_path(SPEC)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({str(i): torch.full((12, 1), value + i) for i in range(layers)}, path)
    return path


def test_those_of_smollm2_come_along_and_are_small() -> None:
    found = gates_of(SMOLLM2)
    assert found is not None and len(found.layers) == 30
    assert {tuple(layer.shape) for layer in found.layers} == {(384, 3)}
    assert len({float(layer.sum()) for layer in found.layers}) == 30
    (file,) = (Path(__file__).parents[2] / "mpcache/eviction/gates").glob("*.safetensors")
    assert file.stat().st_size < 100_000
    policy = policy_at("attention-gate", 90, 896)
    policy.require(SMOLLM2)
    fitted = policy.fitted(SMOLLM2)
    assert fitted == AttentionGate(90, 32, 4, gates=found) and found.name in repr(fitted)
    assert fitted.fitted(SPEC) == fitted, "a cut of the model has the model's gates"


def test_a_model_without_gates_is_told_how_to_make_them() -> None:
    policy = policy_at("attention-gate", 9, 40)
    with pytest.raises(UsageError, match=r"no gates for tiny; train them with `mpcache eval gates"):
        policy.require(SPEC)
    assert policy.fitted(SPEC) == policy


def test_own_gates_come_first_and_in_the_order_of_layers() -> None:
    put(12)
    found = gates_of(SPEC)
    assert found is not None
    assert [float(layer[0, 0]) for layer in found.layers] == [0.5 + i for i in range(12)]
    policy_at("attention-gate", 9, 40).require(SPEC)
    put(12, 3.0)
    again = gates_of(SPEC)
    assert again is not None and float(again.layers[0][0, 0]) == 3.0 and again.name != found.name


def test_damaged_gates_are_told() -> None:
    put(2).write_bytes(b"no gates at all")
    with pytest.raises(UsageError, match=r"gates .* cannot be read .*; train them anew"):
        gates_of(SPEC)


def test_party_one_never_holds_a_gate(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: dict[int, list[torch.Tensor]] = {0: [], 1: []}
    original = DealerSuite.matrix

    def spy(self: DealerSuite, *args: object) -> object:
        made = original(self, *args)  # type: ignore[arg-type]
        if not self.hollow:
            kept[self.rank].append(made.share)
        return made

    monkeypatch.setattr(DealerSuite, "matrix", spy)
    activations = random_activations(1, [0, 1], 1, 2, 13, 1, 4)
    perform(walk(AttentionGate(6, 2, 1), activations), activations.tensors)
    assert len(kept[0]) == len(kept[1]) == 2
    for own, masked in zip(kept[0], kept[1], strict=True):
        assert not (own.long() == masked).any()


@pytest.mark.parametrize(
    "command",
    [
        ("launch", "--parties", 2, "--cache", "attention-gate"),
        ("generate", "--cache", "attention-gate"),
        ("eval", "perplexity", "--policies", "attention-gate"),
    ],
    ids=["launch", "generate", "eval"],
)
def test_commands_refuse_before_work_starts(command: tuple[object, ...], tmp_path: Path) -> None:
    model = ("--model", "opt-125m", "--weights", "synthetic")
    out = ("--out", tmp_path / "out") if command[0] == "eval" else ()
    done = CliRunner().invoke(app, [*map(str, (*command, *model, *out))])
    assert done.exit_code == 2, done.output
    assert "attention-gate has no gates for opt-125m" in done.output.replace("\n", " ")
    assert not (tmp_path / "out").exists()
