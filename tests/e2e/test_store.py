"""Correlations dealt ahead: `launch --store`, parties by hand, a kill, and what is refused."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path

import pytest
import yaml

from mpcache.parties.local import loopback_addresses
from mpcache.parties.store import Store
from mpcache.parties.tls import make_keys

from .conftest import CANARY, PROMPT, Start
from .processes import LIMIT, Running, alive, all_there, wait_for

TOKENS = 41  # of PROMPT, by the tiny model's tokenizer


@pytest.fixture(scope="module")
def dealt(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sessions for PROMPT and two new tokens, never used."""
    folder = tmp_path_factory.mktemp("dealt")
    dealing = Running(
        (
            *("deal", "--sessions", "2", "--prompt-tokens", str(TOKENS), "--store", "store"),
            *("--model", str(tiny), "--max-new-tokens", "2"),
        ),
        *(folder, folder),
    )
    assert dealing.end() == 0, dealing.err
    assert "dealt 2 sessions in " in dealing.out
    return folder / "store"


@pytest.fixture
def store(dealt: Path, tmp_path: Path) -> Path:
    """Each test has its own copy: one made before the first use is as good as the store."""
    shutil.copytree(dealt, tmp_path / "store")
    return tmp_path / "store"


def launch(start: Start, tiny: Path, prompt_file: Path, report: str) -> Running:
    return start(
        *("launch", "--model", tiny, "--prompt-file", prompt_file, "--max-new-tokens", "2"),
        *("--store", "store", "--report", report),
    )


def test_launch_uses_each_session_once(
    start: Start, tiny: Path, tmp_path: Path, prompt_file: Path, store: Path
) -> None:
    told = []
    for number in (1, 2):
        running = launch(start, tiny, prompt_file, f"run-{number}")
        running.until("setup ...")
        assert set(running.parties()) <= {0, 1}  # and no dealer
        assert running.end() == 0, running.err
        assert f"session {number} of 2 from the store store, dealt ahead" in running.out
        report = json.loads((tmp_path / f"run-{number}" / "report.json").read_text())
        assert all(report["checks"].values())
        assert report["agreement"]["equal_tokens"] == 2
        dealer = report["secure"]["dealer"]
        dealt = [sum(report["secure"][p]["dealt_bytes"]) for p in ("setup", "prefill", "decode")]
        assert (dealer["source"], dealer["seconds"]) == ("store", 0.0)
        assert dealer["dealt_bytes"] == sum(dealt) > 0
        assert any("nobody has read both parties' stores" in line for line in report["warnings"])
        ahead = report["secure"]["setup"]["by_scope"]["ahead"]["by_party"]["seconds"]
        assert ahead[0] == 0.0 < ahead[1]  # party 1's products for the token
        told.append(report["token_ids"])
        assert "dealt ahead from a store" in (tmp_path / f"run-{number}" / "report.md").read_text()
    assert told[0] == told[1]
    used_up = launch(start, tiny, prompt_file, "run-3")
    assert used_up.end() == 2
    assert used_up.err.startswith("error: the store store/party-0 is used up: all of its 2 ")
    assert used_up.err.count("\n") == 1
    assert not (tmp_path / "run-3").exists()


def test_after_a_kill_the_next_session_is_used(
    start: Start, tiny: Path, tmp_path: Path, prompt_file: Path, store: Path
) -> None:
    running = launch(start, tiny, prompt_file, "run-1")
    assert wait_for(lambda: len(running.parties()) == 2)
    running.until("setup ...")
    assert wait_for(lambda: not (store / "party-1" / "session-0.corrections").exists())
    killed = running.signal(signal.SIGKILL)
    assert running.end(killed, LIMIT) == -9
    assert wait_for(lambda: not any(alive(pid) for pid in running.seen.values()), LIMIT)
    again = launch(start, tiny, prompt_file, "run-2")
    assert again.end() == 0, again.err
    assert "session 2 of 2" in again.out


def test_a_longer_prompt_and_a_copy_are_refused(
    start: Start, tiny: Path, tmp_path: Path, prompt_file: Path, store: Path
) -> None:
    prompt_file.write_text(PROMPT + " Also.")
    longer = launch(start, tiny, prompt_file, "run")
    assert longer.end() == 2
    assert f"was dealt for {TOKENS} prompt tokens and 2 new tokens, and this run" in longer.err
    assert CANARY not in longer.err
    for rank in (0, 1):
        Store(store / f"party-{rank}", rank).claim(0).close()
    store.rename(tmp_path / "original")
    shutil.copytree(tmp_path / "original", store)
    prompt_file.write_text(PROMPT)
    copied = launch(start, tiny, prompt_file, "run")
    assert copied.end() == 2
    assert "was copied, restored or changed since its first use" in copied.err


def by_hand(start: Start, tiny: Path, tmp_path: Path, stores: list[Path]) -> list[Running]:
    """Both parties, with three addresses configured: the dealer's is not needed."""
    make_keys(tmp_path / "keys", 3, days=1)
    hosts = [f"{host}:{port}" for host, port in loopback_addresses(3)]
    values = {
        "model": str(tiny),
        "max_new_tokens": 2,
        "network": {"addresses": hosts, "keys": str(tmp_path / "keys")},
    }
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(values))
    (tmp_path / "prompt.txt").write_text(PROMPT)
    return [
        start(
            *("party", "--rank", str(rank), "--config", "run.yaml", "--store", stores[rank]),
            *(("--prompt-file", "prompt.txt") if rank == 1 else ()),
        )
        for rank in (0, 1)
    ]


def test_parties_by_hand(start: Start, tiny: Path, tmp_path: Path, store: Path) -> None:
    parties = by_hand(start, tiny, tmp_path, [store / "party-0", store / "party-1"])
    for rank, party in enumerate(parties):
        assert party.end() == 0, party.err
        assert f"party {rank}: session 1 of 2 from its store" in party.err
    assert len(parties[1].out.strip()) == 2


def test_stores_of_two_dealers(start: Start, tiny: Path, tmp_path: Path, store: Path) -> None:
    other = start(
        *("deal", "--sessions", "1", "--prompt-tokens", str(TOKENS), "--store", "other"),
        *("--model", tiny, "--max-new-tokens", "2"),
    )
    assert other.end() == 0, other.err
    parties = by_hand(start, tiny, tmp_path, [store / "party-0", tmp_path / "other" / "party-1"])
    there = all_there(parties)
    for rank, party in enumerate(parties):
        assert party.end(there, LIMIT) == 1
        assert f"error: party {1 - rank}: refused" in party.err
        assert "store differs: " in party.err
        assert "Traceback" not in party.err
    swapped = start(
        *("party", "--rank", "0", "--config", "run.yaml", "--store", store / "party-1"),
    )
    assert swapped.end() == 2
    assert "was dealt for party 1, and this is party 0" in swapped.err


def test_an_interrupted_deal_leaves_nothing(start: Start, tiny: Path, tmp_path: Path) -> None:
    before = set(tmp_path.iterdir())
    dealing = start(
        *("deal", "--sessions", "50", "--prompt-tokens", "100", "--store", "store"),
        *("--model", tiny, "--max-new-tokens", "2"),
    )
    dealing.until("session 1/50")
    stopped = dealing.signal(signal.SIGINT)
    assert dealing.end(stopped, LIMIT) == 130
    assert set(tmp_path.iterdir()) == before
