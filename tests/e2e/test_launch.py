"""`mpcache launch` on a tiny model, to the end: the report, the text, and where the prompt goes."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from mpcache import config, launching
from mpcache.errors import MpcacheError

from .conftest import CANARY, PROMPT, Start
from .processes import Running, alive, told_to, wait_for

FIELDS = {
    "": "version id config machine parties protocol network model prompt_tokens new_tokens text"
    " token_ids cache plaintext agreement secure predicted checks openings warnings outlook"
    " ranges truncation",
    "network": "emulated rtt_ms mbps",
    "model": "name family weights origin layers hidden heads kv_heads parameters",
    "cache": "policy static_kept clusters dynamic_kept",
    "plaintext": "token_ids prefill_seconds decode_seconds_per_token",
    "agreement": "equal_tokens total_tokens max_logit_error mean_logit_error near_ties choices"
    " differing_choices followed_tokens",
    "secure": "setup prefill decode",
    "secure.setup": "seconds rounds sent_bytes dealt_bytes by_scope",
    "secure.prefill": "seconds rounds sent_bytes dealt_bytes by_scope",
    "secure.decode": "seconds rounds sent_bytes dealt_bytes by_scope per_token",
    "predicted": "prefill decode",
    "predicted.decode": "rounds sent_bytes dealt_bytes",
    "checks": "sent_equals_received rounds_agree measured_equals_predicted kept_equals_budget",
}


def section(report: dict[str, Any], path: str) -> Any:
    for name in filter(None, path.split(".")):
        report = report[name]
    return report


def files_with(text: str, *folders: Path) -> list[Path]:
    paths = [path for folder in folders for path in folder.rglob("*") if path.is_file()]
    assert paths
    return [path for path in paths if text.encode() in path.read_bytes()]


def run_watched(running: Running, scratch: Path, processes: int) -> None:
    """Look, while the parties run, for the prompt where others on the host could read it."""
    assert wait_for(lambda: len(running.parties()) == processes)
    running.until("prefill ...")
    for pid in (running.pid, *running.seen.values()):
        assert b"mpcache" in told_to(pid)
        assert CANARY.encode() not in told_to(pid)
    assert files_with("addresses", scratch)
    assert files_with(CANARY, scratch) == []
    assert running.end() == 0, running.err
    assert not any(alive(pid) for pid in running.seen.values())
    assert not any(path.is_file() for path in scratch.rglob("*"))  # no keys stay behind


@pytest.mark.parametrize(("protocol", "processes"), [("crypten", 2), ("dealer", 3)])
def test_two_parties_to_the_end(
    start: Start,
    tiny: Path,
    tmp_path: Path,
    scratch: Path,
    prompt_file: Path,
    protocol: str,
    processes: int,
) -> None:
    running = start(
        *("launch", "--parties", "2", "--protocol", protocol, "--model", tiny, "--verify"),
        *("--prompt-file", prompt_file, "--max-new-tokens", "4", "--report", "run"),
    )
    run_watched(running, scratch, processes)
    assert CANARY not in running.out + running.err
    folder = tmp_path / "run"
    assert {path.name for path in folder.iterdir()} == {
        *("config.yaml", "report.html", "report.json", "report.md")
    }
    assert files_with(CANARY, folder) == []
    assert "prompt" not in (folder / "config.yaml").read_text()
    assert config.load(folder / "config.yaml").model == str(tiny)
    report = json.loads((folder / "report.json").read_text())
    for path, names in FIELDS.items():
        extra = {"dealer"} if (protocol, path) == ("dealer", "secure") else set()
        assert set(section(report, path)) == set(names.split()) | extra, path
    assert all(report["checks"].values())
    if protocol == "dealer":
        assert report["ranges"]["says"] == "not calibrated: run mpcache calibrate"
        assert "Not calibrated: run mpcache calibrate." in (folder / "report.md").read_text()
    assert report["truncation"] is None
    memory = report["machine"]["peak_memory"]
    each = memory["by_process"]
    assert len(each) == processes + 1 and min(each.values()) > 10**8
    assert max(each.values()) < memory["together"] <= memory["sum"]
    assert report["model"]["weights"] == "pretrained"
    assert report["token_ids"] == report["plaintext"]["token_ids"]
    assert report["new_tokens"] == report["agreement"]["equal_tokens"] == 4
    followed = 4 if report["agreement"]["choices"] else None
    assert report["agreement"]["followed_tokens"] == followed
    assert report["text"].isalpha()
    assert f"text: {report['text']}\n" in running.out
    assert report["text"] in (folder / "report.md").read_text()
    assert 0 < report["agreement"]["max_logit_error"] < 0.1
    for phase in ("prefill", "decode"):
        for name in ("rounds", "sent_bytes", "dealt_bytes"):
            assert report["secure"][phase][name] == report["predicted"][phase][name]
    token = report["secure"]["decode"]["per_token"]
    assert 0 < token["median_seconds"] <= token["slowest_seconds"] < 3 * token["seconds"]
    wanted = {"next token", "verify: logits", "verify: choices"}
    assert {item["why"] for item in report["openings"]} == wanted
    assert all(item["to"] == "client" for item in report["openings"])


def test_three_parties_with_synthetic_weights(
    start: Start, tiny: Path, tmp_path: Path, scratch: Path, prompt_file: Path
) -> None:
    running = start(
        *("launch", "--parties", "3", "--protocol", "crypten", "--model", tiny),
        *("--prompt-file", prompt_file, "--weights", "synthetic", "--max-new-tokens", "2"),
    )
    run_watched(running, scratch, 3)
    assert CANARY not in running.out + running.err
    assert "text (MEANINGLESS: synthetic weights): " in running.out
    assert "warning: synthetic weights: the text is meaningless" in running.out
    (folder,) = (tmp_path / "runs").iterdir()
    assert files_with(CANARY, folder) == []
    report = json.loads((folder / "report.json").read_text())
    assert all(report["checks"].values())
    assert report["parties"] == 3
    assert report["model"]["weights"] == "synthetic"
    assert "meaningless" in report["warnings"][0]
    assert report["agreement"]["max_logit_error"] is None
    assert {item["why"] for item in report["openings"]} == {"next token"}
    assert "Answer (meaningless: synthetic weights)" in (folder / "report.md").read_text()


@pytest.mark.slow
def test_sampled_tokens_are_held_against_the_likeliest(
    tiny: Path, tmp_path: Path, start: Start, prompt_file: Path
) -> None:
    running = start(
        *("launch", "--model", tiny, "--prompt-file", prompt_file, "--max-new-tokens", "6"),
        *("--temperature", "5", "--report", "run"),
    )
    assert running.end() == 0, running.err
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert all(report["checks"].values())
    assert report["config"]["temperature"] == 5.0
    found = report["agreement"]
    assert (found["total_tokens"], found["near_ties"]) == (6, [])
    said = "sampled at temperature 5, so agreement below 100% is expected"
    assert said in running.out
    assert said in (tmp_path / "run" / "report.md").read_text()


def test_a_failing_check_is_no_result(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The prediction of party 1 is off by one byte; the parties themselves are real."""
    honest = launching.PredictedParty.of

    def off_by_one(ledger: Any) -> Any:
        said = honest(ledger)
        scope = "prefill/next-token"
        entry = {**said.scopes[scope]}
        entry["sent_bytes"] += ledger.rank
        return dataclasses.replace(said, scopes={**said.scopes, scope: entry})

    monkeypatch.setattr(launching.PredictedParty, "of", staticmethod(off_by_one))
    values = {"model": str(tiny), "max_new_tokens": 1, "protocol": "crypten"}
    settings = config.load(None, {**values, "prompt": PROMPT, "report": str(tmp_path / "run")})
    with pytest.raises(MpcacheError, match=r"measured_equals_predicted.*party 1, prefill/next"):
        launching.launch(settings, Console(highlight=False))
    checks = json.loads((tmp_path / "run" / "report.json").read_text())["checks"]
    assert [name for name, passed in checks.items() if not passed] == ["measured_equals_predicted"]
    assert not (tmp_path / "run" / "report.md").exists()
    shown = capsys.readouterr().out
    assert "secret-shared" not in shown
    assert "report:" not in shown
