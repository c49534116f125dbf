"""Weights that no party knows: `launch --sharing shared`, and parties by hand with split ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import yaml

from mpcache.parties.local import loopback_addresses
from mpcache.parties.tls import make_keys

from .conftest import CANARY, PROMPT, Start
from .processes import LIMIT, Running, all_there


@pytest.fixture(scope="module")
def split(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("split")
    splitting = Running(("split", "--model", str(tiny), "--out", "shares"), folder, folder)
    assert splitting.end() == 0, splitting.err
    return folder / "shares"


@pytest.mark.parametrize("own", [True, False], ids=["split by launch", "split before"])
def test_launch(
    start: Start,
    tiny: Path,
    tmp_path: Path,
    scratch: Path,
    split: Path,
    prompt_file: Path,
    own: bool,
) -> None:
    running = start(
        *("launch", "--sharing", "shared", "--model", tiny, "--prompt-file", prompt_file),
        *("--max-new-tokens", "3", "--verify", "--report", "run"),
        *(() if own else ("--shares", split)),
    )
    assert running.end() == 0, running.err
    assert ("launch itself splits the weights" in running.out.replace("\n", " ")) == own
    assert not any(path.is_file() for path in scratch.rglob("*"))  # no shares stay behind
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert all(report["checks"].values())
    assert report["token_ids"] == report["plaintext"]["token_ids"]
    assert report["agreement"]["equal_tokens"] == 3
    assert 0 < report["agreement"]["max_logit_error"] < 0.1
    assert report["config"]["sharing"] == "shared"
    (said,) = [line for line in report["warnings"] if "neither knows them" in line]
    assert ("launch split them itself" in said) == own
    zero, one = report["secure"]["setup"]["sent_bytes"]
    assert one > zero > 0  # both send every matrix, and party 1 the prompt's length
    page = (tmp_path / "run" / "report.html").read_text()
    assert "no party saw the weights" in page


def by_hand(start: Start, tmp_path: Path, model: list[Path], shares: list[Path]) -> list[Running]:
    make_keys(tmp_path / "keys", 3, days=1)
    hosts = [f"{host}:{port}" for host, port in loopback_addresses(3)]
    values = {
        "max_new_tokens": 2,
        "sharing": "shared",
        "network": {"addresses": hosts, "keys": str(tmp_path / "keys")},
    }
    (tmp_path / "prompt.txt").write_text(PROMPT)
    running = []
    for rank in range(3):
        own = {"shares": str(shares[rank])} if rank < 2 else {}
        config = tmp_path / f"run-{rank}.yaml"
        config.write_text(yaml.safe_dump({**values, **own, "model": str(model[rank])}))
        program = ("deal",) if rank == 2 else ("party", "--rank", str(rank))
        prompt = ("--prompt-file", "prompt.txt") if rank == 1 else ()
        running.append(start(*program, "--config", config, *prompt))
    return running


def test_parties_by_hand_have_no_weights(
    start: Start, tiny: Path, tmp_path: Path, split: Path
) -> None:
    """Their folders of the model hold its shape and tokenizer alone."""
    hollow = tmp_path / "hollow"
    shutil.copytree(tiny, hollow)
    (hollow / "model.safetensors").unlink()
    parties = by_hand(start, tmp_path, [hollow] * 3, [split, split / "party-1"])
    for process in parties:
        assert process.end() == 0, process.err
        assert CANARY not in process.out + process.err
    assert "party 0: its share of" in parties[0].err
    plain = start("generate", "--model", tiny, "--prompt", PROMPT, "--max-new-tokens", "2")
    assert plain.end() == 0
    assert plain.out.splitlines()[0] == parties[1].out.strip()


def test_shares_of_two_splits(start: Start, tiny: Path, tmp_path: Path, split: Path) -> None:
    other = start("split", "--model", tiny, "--out", "other", "--weights", "synthetic")
    assert other.end() == 0, other.err
    parties = by_hand(start, tmp_path, [tiny] * 3, [split, tmp_path / "other"])
    there = all_there(parties)
    for rank in (0, 1):
        assert parties[rank].end(there, LIMIT) == 1
        assert "shares differs: " in parties[rank].err
        assert "Traceback" not in parties[rank].err
    assert "warning: synthetic weights: the text is meaningless" in parties[1].err
    assert "warning: synthetic" not in parties[0].err
