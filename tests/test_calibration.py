"""Fitted speeds, where they are kept, and what is said without them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from records import make_record
from typer.testing import CliRunner

from mpcache import calibration
from mpcache.benchmarking import calibrate as measuring
from mpcache.calibration import Load, Pace, Speeds, fit
from mpcache.cli import app
from mpcache.config import load as load_config
from mpcache.models.known import KNOWN
from mpcache.report import tables
from mpcache.report.build import build_report

TRUE = (2e-4, 3e-9, 0.0, 5e-10, 1e-11)
PACE, STILL = Pace(TRUE, TRUE), Pace((0,) * 5, (0,) * 5)
SHORT = {"party": [1], "dealer": [1]}


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def _samples(noise: float) -> tuple[Any, Any]:
    rng = np.random.default_rng(3)
    scale = np.array([1e3, 1e7, 1e7, 1e8, 1e10])
    rows = rng.uniform(0.05, 1, (20, 5)) * scale
    return rows, rows @ np.array(TRUE) * rng.uniform(1 - noise, 1 + noise, 20)


def test_a_fit_finds_the_speeds_and_none_is_negative() -> None:
    rows, seconds = _samples(0.0)
    assert np.allclose(fit(rows, seconds), TRUE, rtol=1e-6, atol=1e-15)
    rows, seconds = _samples(0.3)
    found = np.array(fit(rows, seconds))
    assert (found >= 0).all()
    assert np.abs(rows @ found / seconds - 1).max() < 0.4


def test_a_feature_that_never_occurs_costs_nothing() -> None:
    rows, seconds = _samples(0.0)
    rows[:, 1] = 0.0
    found = fit(rows, rows @ np.array(TRUE))
    assert found[1] == 0.0
    assert np.isfinite(found).all()
    assert len(seconds) == len(rows)


def test_seconds_are_the_longest_of_what_must_be_done() -> None:
    piece = Load("decode", rounds=100, sent_bytes=1e6, dealt_bytes=2e6, operands=0, multiply_adds=0)
    pace = Pace((1e-3, 0, 0, 0, 0), (0, 0, 2e-7, 0, 0))
    speeds = Speeds(STILL, pace, 0.1, 3)
    assert speeds.seconds(piece) == pytest.approx(0.4)  # the dealer
    assert speeds.seconds(piece, (40.0, 8.0)) == pytest.approx(0.1 + 2.0 + 1.0)
    assert speeds.seconds(piece, (0.0, 0.0), (2, 1)) == pytest.approx(0.6)  # in turns
    assert speeds.seconds(piece, (0.0, 0.0), (2, 64)) == pytest.approx(0.4)
    assert Speeds(pace, STILL, 0.1, 3).seconds(piece) == 0


def test_speeds_are_kept_for_this_machine_and_version(tmp_path: Path) -> None:
    speeds = Speeds(PACE, PACE, 0.2, 9)
    assert "not calibrated" in calibration.load("dealer")[1]
    file = calibration.save({"dealer": speeds})
    assert file.is_relative_to(tmp_path)
    assert calibration.load("dealer") == (speeds, "")
    assert "suite crypten" in calibration.load("crypten")[1]
    content = json.loads(file.read_text())
    for damage, says in (
        ({"version": "0"}, "another machine"),
        ({"machine": {}}, "another machine"),
        (
            {"suites": {"dealer": {"prefill": SHORT, "decode": SHORT, "worst": 0, "samples": 1}}},
            "read",
        ),
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
    calibration.save({"dealer": Speeds(PACE, PACE, 0.2, 9)})
    shown = _cost("--prompt-tokens", "8")
    assert "predicted seconds" in shown.output
    assert "off by 20%" in shown.output
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
    piece = {"token": Load("decode", 1, 1, 1, 1, 1)}
    assert calibration.run_seconds(config, piece) is None
    calibration.save({"dealer": Speeds(PACE, PACE, 0.2, 9)})
    found = calibration.run_seconds(config, piece)
    assert found is not None
    assert found["token"] > 0


def test_a_small_calibration_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    small = replace(KNOWN["smollm2"].spec, layers=1, hidden=128, heads=2, kv_heads=2, ffn=192)
    monkeypatch.setattr(measuring, "_spec", lambda model: small)
    for name, lengths in (("DECODE", (40, 64)), ("PREFILL", (8,))):
        monkeypatch.setattr(measuring, name, {"dealer": {"smollm2": lengths}})
    lines: list[str] = []
    speeds = measuring.calibrate("dealer", lines.append)
    assert len(lines) == speeds.samples == 5
    for pace in (speeds.prefill, speeds.decode):
        assert sum(pace.party) > 0 and sum(pace.dealer) > 0
