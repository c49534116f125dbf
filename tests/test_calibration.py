"""Where speeds are kept, and what is said with them and without."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from made_up_speeds import GRID, SPEEDS, WIRE
from records import make_record
from typer.testing import CliRunner

from mpcache import calibration
from mpcache.benchmarking import calibrate as measuring
from mpcache.benchmarking import micro
from mpcache.benchmarking.calibrate import DecodeJob, Piece, PrefillJob
from mpcache.cli import app
from mpcache.config import load as load_config
from mpcache.models.known import KNOWN
from mpcache.report import tables
from mpcache.report.build import build_report
from mpcache.speeds import Kernels, Load


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_speeds_are_kept_for_this_machine_and_version(tmp_path: Path) -> None:
    assert "not calibrated" in calibration.load("dealer")[1]
    file = calibration.save({"dealer": SPEEDS})
    assert file.is_relative_to(tmp_path)
    assert calibration.load("dealer") == (SPEEDS, "")
    assert "suite crypten" in calibration.load("crypten")[1]
    content = json.loads(file.read_text())
    for damage, says in (
        ({"version": "0"}, "another machine"),
        ({"machine": {}}, "another machine"),
        ({"suites": {"dealer": {"party": {}}}}, "read"),
        ({"suites": 3}, "read"),
    ):
        file.write_text(json.dumps(content | damage))
        found, why = calibration.load("dealer")
        assert found is None
        assert says in why
        assert "--calibrate" in why


def _cost(*arguments: str) -> Any:
    return CliRunner().invoke(app, ["cost", "--model", "opt-125m", *arguments])


def test_cost_says_whether_it_can_tell_seconds() -> None:
    assert "not calibrated" in _cost("--prompt-tokens", "8").output
    calibration.save({"dealer": SPEEDS})
    shown = _cost("--prompt-tokens", "8")
    assert "predicted seconds" in shown.output
    assert "off by 12% in the middle and 20% at most" in " ".join(shown.output.split())
    told = json.loads(_cost("--prompt-tokens", "8", "--json").stdout)["seconds"]
    assert list(told) == ["local", "lan", "wan"]
    assert told["wan"]["token"] > told["lan"]["token"] > 0
    assert _cost().exit_code == 2
    one = json.loads(_cost("--prompt-tokens", "8", "--max-new-tokens", "1", "--json").stdout)
    assert set(one["seconds"]["lan"]) == {"prefill"}


def test_a_report_shows_predicted_beside_measured() -> None:
    report = build_report(make_record(predicted_seconds={"prefill": 1.0, "token": 2.5}))
    rows = tables.against_prediction(report)
    assert ("prefill, seconds", "2.000 s", "1.000 s (-50%)") in rows
    assert ("a token, seconds", "2.000 s", "2.500 s (+25%)") in rows
    assert len(tables.against_prediction(build_report(make_record()))) == 6


def test_without_a_calibration_a_run_has_no_predicted_seconds() -> None:
    config = load_config(None, {})
    piece = {"token": Load(1, 1, 1)}
    assert calibration.run_seconds(config, piece) is None
    calibration.save({"dealer": SPEEDS})
    found = calibration.run_seconds(config, piece)
    assert found is not None
    assert found["token"] > 0
    plain = calibration.run_seconds(load_config(None, {"network": {"tls": False}}), piece)
    assert plain is not None
    assert plain["token"] < found["token"]


def test_a_small_calibration_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    small = replace(
        KNOWN["smollm2"].spec, layers=1, hidden=128, heads=2, kv_heads=2, ffn=192, vocab=99
    )
    pieces = [
        Piece(DecodeJob, "smollm2", 40),
        Piece(DecodeJob, "smollm2", 64, "full"),
        Piece(PrefillJob, "smollm2", 8, whole=True),
    ]
    monkeypatch.setattr(measuring, "_spec", lambda model: small)
    monkeypatch.setattr(measuring, "PIECES", {"dealer": pieces})
    lines: list[str] = []
    kernels = Kernels(GRID, GRID, GRID, GRID, 2e-10)
    speeds = measuring.calibrate_suite("dealer", kernels, (WIRE, WIRE), lines.append)
    assert len(lines) == speeds.held_out.count == speeds.held_out_busy.count == 3
    assert all(value >= 0 for value in (*speeds.party.values(), *speeds.dealer.values()))
    assert {"scope uses", "owned products", "Truncated bytes"} <= speeds.party.keys()
    assert speeds.dealer.keys() == speeds.party.keys()
    assert speeds.plain.round_busy >= WIRE.round_busy  # never faster than alone


def test_small_kernels_and_wires_are_measured() -> None:
    kernels = micro.measure_kernels(((1, 3), (8, 16), (8,)))
    for grid in (kernels.by_inputs, kernels.by_outputs, kernels.narrow, kernels.torch):
        assert grid.call > 0
        assert len(grid.rates[0]) == 2
    plain, tls = micro.measure_wires((8, 4096), 5)
    assert plain.round_seconds > 0 and tls.round_seconds > 0
    assert tls.sent_busy > 0 and tls.taken_busy >= 0


def test_products_too_large_to_measure_go_at_the_speed_of_fewer_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(micro, "MOST", 8 * 16 * 4)
    grid = micro.measure_grid(lambda x, y: x @ y, (1, 4, 64), (8,), (16,))
    assert grid.rates[2] == grid.rates[1]


def test_a_line_through_exchanges_is_found() -> None:
    rows = [(size, 5e-5 + 2e-9 * size, 4e-5 + 1e-9 * size) for size in micro.SIZES]
    wire = micro.fit_wire(rows, 3e-10, 7e-10)
    assert wire.round_seconds == pytest.approx(5e-5)
    assert wire.byte_seconds == pytest.approx(2e-9)
    assert (wire.round_busy, wire.byte_busy) == (pytest.approx(4e-5), pytest.approx(1e-9))
