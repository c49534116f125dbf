"""`mpcache calibrate`: what a model's operations met, where it is kept, and what `launch` does."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from e2e.tiny import CONTEXT, LAYERS, save_tiny
from rich.console import Console
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from mpcache import launching, ranges, session
from mpcache.cli import app
from mpcache.config import RunConfig, load
from mpcache.errors import UsageError
from mpcache.evaluation.texts import Text
from mpcache.models.registry import Source, find
from mpcache.protocols.activation import Gated
from mpcache.protocols.arithmetic import Linear
from mpcache.protocols.norm import Norm
from mpcache.protocols.softmax import Attend
from mpcache.ranges import FILE, STEPS, Ranges, Row
from mpcache.watching import BEYOND, LEAST, bits_of

WORDS = Text("words", "abacus behold cedar dune echo fable gecko habit iris " * 40)
TOKENS = 48
SMALL = {
    "clusters": [4, 2], "static_keep": 0.75, "dynamic_keep": 0.5, "sink": 1, "recent": 2,
    "least": 0,
}  # fmt: skip


def made_up(rows: Iterable[Row]) -> Ranges:
    return Ranges(ranges.VERSION, "m", "d", "t", "s", 1, 32, ("full",), tuple(rows))


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield tmp_path / "cache"


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return save_tiny(tmp_path / "tiny")


def settings(folder: Path, **more: Any) -> RunConfig:
    cache = {"policy": "mpcache", **SMALL}
    return load(None, {"model": str(folder), "prompt": "a b", "cache": cache, **more})


def source_of(folder: Path) -> Source:
    return find(str(folder), "required")


def measured(folder: Path) -> Ranges:
    return ranges.measure(settings(folder), source_of(folder), WORDS, 2, TOKENS)


def scaled(folder: Path, name: str, factor: float) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights[name] = weights[name] * factor
    save_file(weights, path)


# --- measuring ------------------------------------------------------------------------------------


def test_what_is_recorded_is_what_operations_met(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Held against the operations' own plain texts, spied on: their calls come layer by layer."""
    met: dict[tuple[str, str, int | None], float] = {}
    calls = {"linear": 0, "norm": 0, "gated": 0, "softmax": 0}

    def note(name: str, what: str, each: int, value: torch.Tensor) -> None:
        place = calls[name] % (each * LAYERS + (name in ("linear", "norm")))
        layer = place // each if place < each * LAYERS else None
        key = name, what, layer
        met[key] = max(met.get(key, 0.0), float(value.abs().max()))

    def spied(kind: Any, name: str, look: Any) -> None:
        plain = kind.plain

        def spy(self: Any, machine: Any, *args: Any, **options: Any) -> Any:
            result = plain(self, machine, *args, **options)
            look(result, args, options)
            calls[name] += 1
            return result

        monkeypatch.setattr(kind, "plain", spy)

    def of_linear(result: Any, args: Any, options: Any) -> None:
        note("linear", "wide result" if options.get("wide") else "result", 4, result)

    def of_gated(result: Any, args: Any, options: Any) -> None:
        note("gated", "gate", 1, args[0])
        note("gated", "gate times factor", 1, args[0] * args[1])

    spied(Linear, "linear", of_linear)
    spied(Gated, "gated", of_gated)
    spied(Norm, "norm", lambda r, a, o: note("norm", "sum of squares", 2, a[0].norm(dim=-1) ** 2))
    spied(Attend, "softmax", lambda r, a, o: note("softmax", "any", 1, r.context))
    found = measured(tiny)
    steps = 2 * 2 * (STEPS + 1)  # windows, caches
    assert calls["linear"] == steps * (4 * LAYERS + 1) and calls["softmax"] == steps * LAYERS
    rows = {(row.operation, row.what, row.layer): row for row in found.rows}
    for key, greatest in met.items():
        if key[0] != "softmax":
            assert rows[key].met == math.floor(math.log2(greatest)) + 1, key
    layers = set(range(LAYERS))
    assert {row.layer for row in found.rows if row.operation == "gated"} == layers
    assert rows["linear", "result", None].bits == 18  # the head
    assert rows["norm", "sum of squares", 0].wraps == 31
    for layer in layers:  # contexts are below the sums that are not normalised yet
        context = met["softmax", "any", layer]
        assert context < 2.0 ** rows["softmax", "weighted values", layer].met
    assert "rank" not in {row.operation for row in found.rows}, "a part of best's plain text"
    assert {"argmax", "product", "scale", "rotary", "settled", "best", "gathered"} <= {
        row.operation for row in found.rows
    }


def test_hidden_scores_do_not_count() -> None:
    from mpcache.protocols.operation import PlainMachine
    from mpcache.protocols.setting import Setting
    from mpcache.protocols.softmax import attend

    scores = torch.tensor([[[3.0, 5000.0], [1.0, -9.0]]])
    visible, values = torch.tensor([[1, 0], [1, 1]]), torch.tensor([[[2.0], [-4.0]]])
    machine = PlainMachine(Setting())
    result = attend(machine, scores, values, visible)
    found = {reach.what: v for reach, v in attend.reaches(result, scores, values, visible)}
    assert found["score"].tolist() == [[[3, 0], [1, -9]]]
    assert found["greatest score of a row"].tolist() == [[3, 1]]
    want = math.e * torch.tensor([[[2.0], [2 + 4 * math.exp(-10)]]])
    assert torch.allclose(found["weighted values"], want)


@pytest.mark.parametrize(
    ("greatest", "bits"),
    [(0.0, LEAST), (1e-9, LEAST), (0.75, 0), (1.0, 1), (1.5, 1), (2.0, 2), (2.0**18, 19),
     (2.0**18 - 1, 18), (math.inf, BEYOND)],
)  # fmt: skip
def test_bits_are_a_power_of_two_above(greatest: float, bits: int) -> None:
    assert bits_of(greatest) == bits


def test_a_model_out_of_range_is_named_with_operation_and_layer(
    tiny: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert measured(tiny).broken == []
    scaled(tiny, "model.layers.1.mlp.down_proj.weight", 1e6)
    found = measured(tiny)
    first = found.broken[0]
    assert (first.operation, first.what, first.layer) == ("linear", "result", 1)
    assert {(row.operation, row.layer) for row in found.broken} >= {("linear", 1), ("norm", 2)}
    assert 2**18 <= 2.0 ** (first.met - 1) < 2**24 and first.margin == 18 - first.met
    ranges.save(found, source_of(tiny))
    with pytest.raises(UsageError, match=r"suite dealer's ring: linear, result, layer 1 reached"):
        launching.launch(settings(tiny), Console())
    with pytest.raises(UsageError, match=r"suite dealer's ring: linear, result, layer 1 reached"):
        session.party_main(settings(tiny), 0)  # by hand
    assert "prefill" not in capsys.readouterr().out
    assert ranges.of_run(settings(tiny, protocol="crypten"), source_of(tiny))[0] is None


def test_what_saturates_is_said_and_not_refused() -> None:
    rows = [Row("softmax", "greatest score of a row", 4, 8, 6, None)]
    known = ranges.known(made_up(rows), "")
    assert "layer 4 goes 2 bits beyond its range and saturates" in known.says
    assert known.margin_bits == -2
    # a norm's sum of squares between 2^30 and 2^31 saturates, beyond it wraps
    assert made_up([Row("norm", "sum of squares", 0, 31, 30, 31)]).broken == []
    assert len(made_up([Row("norm", "sum of squares", 0, 32, 30, 31)]).broken) == 1


# --- keeping --------------------------------------------------------------------------------------


def test_a_calibration_is_read_back(tiny: Path) -> None:
    source = source_of(tiny)
    assert ranges.load(source) == (None, "not calibrated: run mpcache calibrate")
    found = measured(tiny)
    assert ranges.save(found, source) == tiny / FILE
    assert ranges.load(source) == (found, "")
    text = (tiny / FILE).read_text()
    assert set(json.loads(text)["rows"][0]) == {
        *("operation", "what", "layer", "met", "bits", "wraps")
    }
    assert "." not in "".join(json.dumps(row) for row in json.loads(text)["rows"]), "no magnitudes"
    row = found.nearest
    says = ranges.of_run(settings(tiny), source)[1].says
    assert says.startswith(f"calibrated: margin of {row.margin} bits at least ({row.where}), on 2")


def test_other_weights_versions_and_damage_are_ignored_with_a_message(
    tiny: Path, own_cache: Path
) -> None:
    found = measured(tiny)
    ranges.save(found, source_of(tiny))
    scaled(tiny, "model.layers.1.mlp.down_proj.weight", 2)
    got, why = ranges.load(source_of(tiny))
    assert got is None and "is of other weights and was ignored; run mpcache calibrate" in why
    source = source_of(tiny)
    digest = ranges.digest_of(source)
    ranges.save(replace(found, digest=digest, version="0.0"), source)
    assert "is of mpcache 0.0 and was ignored" in ranges.load(source)[1]
    (tiny / FILE).write_text('{"rows": []}')
    assert "is damaged and was ignored" in ranges.load(source)[1]
    # the user's cache has one that fits
    right = replace(found, digest=digest)
    ranges.save(right, source, ranges.cache_file(digest))
    assert ranges.cache_file(digest).is_relative_to(own_cache)
    assert ranges.load(source) == (right, "")


def test_without_a_folder_of_its_own_it_goes_to_the_cache(own_cache: Path) -> None:
    source: Any = type("Bare", (), {"folder": None})()
    found = made_up([Row("norm", "sum of squares", 0, 3, 30, 31)])
    assert ranges.save(found, source) == own_cache / "mpcache" / "ranges" / "d.json"


def test_the_command(tiny: Path, tmp_path: Path) -> None:
    text = tmp_path / "words.txt"
    text.write_text(WORDS.content)
    command = ["calibrate", "--model", str(tiny), "--text", str(text), "--windows", "1"]
    said = CliRunner().invoke(app, [*command, "--tokens", "32", "--out", str(tmp_path / "r.json")])
    assert said.exit_code == 0, said.output
    assert "1 window of 32 tokens of words.txt" in " ".join(said.output.split())
    assert "sum of squares" in " ".join(said.output.split()) and not (tiny / FILE).exists()
    assert json.loads((tmp_path / "r.json").read_text())["caches"] == ["full", "mpcache"]


def test_refused() -> None:
    config = load(None, {"model": "opt-125m", "weights": "synthetic", "prompt": "a"})
    from mpcache.calibrating import calibrate_ranges

    with pytest.raises(UsageError, match="synthetic weights here: their ranges say nothing"):
        calibrate_ranges(config, [], 1, 64, None, Console())


def test_windows_that_do_not_fit_are_refused(tiny: Path) -> None:
    for tokens in (STEPS, CONTEXT + 1):
        with pytest.raises(UsageError, match=f"at most {CONTEXT}"):
            ranges.measure(settings(tiny), source_of(tiny), WORDS, 1, tokens)
