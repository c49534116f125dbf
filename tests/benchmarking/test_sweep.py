"""Sweeps refuse bad input before they start, and tables say what the lines say."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mpcache.benchmarking import job as jobs
from mpcache.benchmarking import readme, sweep, tables
from mpcache.benchmarking.layers import PrefillJob
from mpcache.benchmarking.measure import Measured
from mpcache.benchmarking.sweep import Sweep
from mpcache.cli import app
from mpcache.errors import UsageError
from mpcache.protocols.ledger import Entry


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("decode --contexts 12,x", "--contexts 'x'"),
        ("decode --contexts 0", "1 to"),
        ("decode --contexts -5", "whole numbers"),
        ("decode --caches mpcahe", "did you mean mpcache"),
        ("decode --caches ,", "no cache"),
        ("decode --protocols replicated", "unknown"),
        ("decode --networks moon", "unknown"),
        ("decode --networks 10:-1", "not below 0"),
        ("decode --networks nan:1", "finite"),
        ("decode --networks 1:2:3", "not understood"),
        ("decode --layers 0", "--layers 0"),
        ("decode --layers 25", "24 layers"),
        ("decode --layers every", "or all"),
        ("decode --layers all --model llama-2-7b", "this machine has"),
        ("decode --parties 4", "expected 2 or 3"),
        ("decode --parties 2,3", "suite dealer has two"),
        ("decode --parties two", "--parties 'two'"),
        ("decode --profiles wan --protocols crypten", "profile"),
        ("decode --profiles moon", "profile"),
        ("decode --devices tpu", "unknown"),
        ("decode --devices cuda", "no GPU"),
        ("decode --repeat 0", "--repeat 0"),
        ("decode --keep 1.5", "--keep"),
        ("decode --keep nan", "--keep"),
        ("decode --model opt-9b", "unknown model"),
        ("ops --only nonsense", "no operator"),
        ("decode --out .", "is a folder"),
        ("readme --lines nowhere", "no *.jsonl"),
    ],
)
def test_bad_input_is_refused_before_work(
    arguments: str, says: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sweep, "measure", lambda job: pytest.fail("work began"))
    result = CliRunner().invoke(app, ["bench", *arguments.split()])
    assert result.exit_code == 2, result.output
    assert says in result.output


def _measured(job: Any) -> Any:
    times = {"seconds": 0.05, "wait_seconds": 0.01, "transfer_seconds": 0.02}
    scopes = tuple(
        {"attention/softmax": Entry(rounds=7, sent_bytes=sent, busy_seconds=0.015, **times)}
        for sent in (1500, 2500)
    )
    return Measured((0.2, 0.1, 0.4), scopes, {}, 3_000_000, 0.05, {}, (0.001, 0.003), 0.003)


def test_a_sweep_writes_lines_and_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))  # no calibration there
    monkeypatch.setattr(sweep, "measure", _measured)
    out = tmp_path / "lines" / "decode.jsonl"
    result = CliRunner().invoke(
        app,
        [
            *("bench", "decode", "--contexts", "512,1024", "--networks", "local,20:100"),
            *("--protocols", "dealer,crypten", "--out", str(out)),
        ],
    )
    assert result.exit_code == 0, result.output
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 2 * 2 * 2 * 2
    assert rows == sweep.read_lines(out)
    row = rows[0]
    assert row["seconds"] == {"median": 0.2, "min": 0.1, "max": 0.4, "count": 3}
    assert (row["sent_bytes"], row["dealt_bytes"], row["rounds"]) == ([1500, 2500], 3_000_000, 7)
    assert row["parts"][1] == {
        "compute": pytest.approx(0.02), "wait": 0.01, "transfer": 0.02, "dealer": 0.0,
        "busy": 0.015,
    }  # fmt: skip
    assert {row["network"]: row["emulated"] for row in rows} == {
        "local": None,
        "20,100": {"rtt_ms": 20.0, "mbps": 100.0},
    }
    shown = tables.cells(row)
    assert shown == {
        "cache": "mpcache 20%",
        "tokens": "512",
        "layers": "1",
        "protocol": "dealer",
        "parties": "2",
        "profile": "the usual",
        "network": "local",
        "device": "cpu",
        "seconds": "200 ms",
        "least to most": "100 ms to 400 ms",
        "predicted": "-",
        "attention": "50 ms",
        "rounds": "7",
        "sent": "2.5 kB",
        "dealt": "3 MB",
        "dealer": "50 ms",
        "ahead": "3 ms",
        "plaintext": "2 ms",
    }
    emulated = next(row for row in rows if row["emulated"])
    assert "20,100 (emulated)" in tables.cells(emulated).values()
    assert "cores" in tables.caption(rows)
    assert "layers 1;" in tables.caption(rows)
    assert "parties" not in tables.caption(rows)


def test_every_combination_is_a_job() -> None:
    made = list(
        sweep.jobs(
            Sweep(
                "prefill",
                "opt-125m",
                None,
                (64, 128),
                ("full",),
                ("crypten",),
                ("lan", "wan"),
                (2, 3),
                repeat=3,
            )
        )
    )
    assert len(made) == 2 * 2 * 2
    facts, job = made[-1]
    assert (job.parties, job.steps, job.network) == (3, 4, (40.0, 400.0))
    assert isinstance(job, PrefillJob)
    assert job.whole and job.spec.layers == facts["layers"] == 12
    assert facts["context"] == job.tokens == 128
    text = tables.cells({**sweep.row_of("prefill", facts, job, _measured(job), {})})
    assert (text["layers"], text["parties"]) == ("12 (whole model)", "3")


def test_profiles_reach_the_setting_where_it_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "PROFILES", ("lan", "wan"))
    made = list(sweep.jobs(Sweep("ops", only="relu", profiles=("lan", "wan"))))
    assert [job.profile for _, job in made] == ["lan", "wan"]
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(jobs, "Setting", lambda **given: seen.append(given))
    made[1][1].setting()
    replace(made[1][1], profile="").setting()
    assert seen == [
        {"suite": "dealer", "world": 2, "profile": "wan"},
        {"suite": "dealer", "world": 2},
    ]


def test_the_readme_is_filled_between_its_markers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "measure", _measured)
    rows = sweep.run(Sweep("ops", only="relu"), lambda row: None)
    sweep.write_lines(tmp_path / "ops.jsonl", rows)
    page = tmp_path / "README.md"
    begin, end = "<!-- bench ops: begin -->", "<!-- bench ops: end -->"
    page.write_text(f"before\n{begin}\nold\n{end}\nafter\n")
    assert readme.write(tmp_path, page) == ["ops"]
    text = page.read_text()
    assert text.startswith(f"before\n{begin}\n| operator |")
    assert text.endswith(f"\n{end}\nafter\n")
    assert "old" not in text
    assert "| relu 8192 | 200 ms | 100 ms to 400 ms | 7 |" in text
    readme.write(tmp_path, page)
    assert page.read_text() == text  # nothing grows
    page.write_text("no markers")
    with pytest.raises(UsageError, match="once each"):
        readme.write(tmp_path, page)
    assert page.read_text() == "no markers"


def test_lines_that_are_no_lines_are_refused(tmp_path: Path) -> None:
    for text in ("{", "[1]", '{"a": 1}'):
        path = tmp_path / "x.jsonl"
        path.write_text(text)
        with pytest.raises(UsageError):
            readme.bodies(tmp_path)
