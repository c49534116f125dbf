"""What `--device cuda` covers, and that nothing else takes it in silence."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from records import make_record
from typer.testing import CliRunner

from mpcache import launching
from mpcache.cli import app
from mpcache.config import load
from mpcache.report.build import warnings

ON_GPU = ("--set", "device=cuda")


@pytest.mark.parametrize(
    "command",
    [
        ("party", "--rank", "0"),
        ("deal",),
        ("deal", "--sessions", "1", "--prompt-tokens", "9", "--store", "stock"),
    ],
    ids=" ".join,
)
def test_parties_and_dealer_refuse_it(
    command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(app, [*command, *ON_GPU])
    assert done.exit_code == 2, done.output
    assert "device cuda is for the plaintext twin" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_launch_keeps_it_for_the_twin(tmp_path: Path) -> None:
    config = load(None, {"device": "cuda", "network": {"tls": False}})
    path = launching._party_config(config, tmp_path)
    assert yaml.safe_load(path.read_text())["device"] == "cpu"


def test_the_report_says_where_what_ran() -> None:
    there = make_record(config=load(None, {"parties": 2, "device": "cuda"}))
    (said,) = [text for text in warnings(there) if "GPU" in text]
    assert "twin ran on the GPU and the parties' shares on the CPU" in said
    here = make_record(config=load(None, {"parties": 2}))
    assert not [text for text in warnings(here) if "GPU" in text]
