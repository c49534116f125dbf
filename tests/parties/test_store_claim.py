"""Two parties claim together: one store, one number, and none twice in twenty kills."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mpcache.errors import PeerError, UsageError
from mpcache.parties.store import Session, Store
from mpcache.parties.store_claim import claim_together

from .stocked import TERMS, corrections_of, seed_of, stock

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return stock(tmp_path / "store", 5)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, two = socket.socketpair()
    yield one, two
    one.close()
    two.close()


def together(folders: list[Path]) -> list[Any]:
    """What each party got over a new connection: a session, or the exception that ended it."""
    socks = socket.socketpair()
    outcomes: list[Any] = [None, None]

    def run(rank: int) -> None:
        try:
            store = Store(folders[rank], rank)
            outcomes[rank] = claim_together(socks[rank], store, 1 - rank, 5.0)
        except BaseException as error:
            outcomes[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(15)
    for sock, outcome in zip(socks, outcomes, strict=True):
        sock.close()
        if isinstance(outcome, Session):
            outcome.close()
    return outcomes


def parties(folder: Path) -> list[Path]:
    return [folder / "party-0", folder / "party-1"]


def numbers(outcomes: list[Any]) -> list[int]:
    return [outcome.number for outcome in outcomes]


def test_both_get_the_same_session_again_and_again(folder: Path) -> None:
    for number in range(5):
        outcomes = together(parties(folder))
        assert numbers(outcomes) == [number, number]
        assert [session.seed for session in outcomes] == [seed_of(0, number), seed_of(1, number)]


@pytest.mark.parametrize("ahead", [0, 1])
def test_the_larger_number_counts(folder: Path, ahead: int) -> None:
    Store(folder / f"party-{ahead}", ahead).claim(2).close()
    assert numbers(together(parties(folder))) == [3, 3]
    assert numbers(together(parties(folder))) == [4, 4]


def test_a_copy_from_before_the_first_use_is_caught_up_by_the_peer(
    folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(folder / "party-1", tmp_path / "copy")
    assert numbers(together(parties(folder))) == [0, 0]
    assert numbers(together([folder / "party-0", tmp_path / "copy"])) == [1, 1]


def test_another_store_is_refused_by_both_and_nothing_is_used(folder: Path, tmp_path: Path) -> None:
    other = stock(tmp_path / "other", 5)
    outcomes = together([folder / "party-0", other / "party-1"])
    for rank, outcome in enumerate(outcomes):
        assert isinstance(outcome, PeerError)
        assert outcome.exit_code == 1
        assert outcome.peer == f"party {1 - rank}"
        assert "store differs: " in str(outcome) and "(at store)" in str(outcome)
    assert numbers(together(parties(folder))) == [0, 0]


def test_other_terms_are_refused_by_both(
    folder: Path, pair: tuple[socket.socket, socket.socket]
) -> None:
    store = Store(folder / "party-0", 0)
    object.__setattr__(store.header, "terms", {**TERMS, "prompt_tokens": 82})
    refused = pytest.raises(PeerError, match="party 1: refused: what the store was dealt for")
    with _peer(pair[1], Store(folder / "party-1", 1)) as told, refused:
        claim_together(pair[0], store, 1, 5.0)
    assert isinstance(told[0], PeerError)


class _peer:
    """Party 1 in a thread; the list gets its outcome."""

    def __init__(self, sock: socket.socket, store: Store) -> None:
        self.told: list[Any] = []

        def run() -> None:
            try:
                self.told.append(claim_together(sock, store, 0, 5.0))
            except BaseException as error:
                self.told.append(error)

        self.thread = threading.Thread(target=run)

    def __enter__(self) -> list[Any]:
        self.thread.start()
        return self.told

    def __exit__(self, *_: object) -> None:
        self.thread.join(10)


@pytest.mark.parametrize("number", [5, 10**9, "1", True, None, 0.5])
def test_a_peer_beyond_the_end_is_refused(
    folder: Path, pair: tuple[socket.socket, socket.socket], number: Any
) -> None:
    store = Store(folder / "party-0", 0)
    hello = {"store": store.header.store, "terms": store.header.digest}
    _say(pair[1], {**hello, "next": number})
    with pytest.raises(PeerError, match=r"party 1: refused: (party 1 is at|the peer sent)"):
        claim_together(pair[0], store, 1, 5.0)
    with contextlib.closing(Store(folder / "party-0", 0)) as again:
        assert again.next == 0


@pytest.mark.parametrize("answer", [b"", b"\xff\xff\xff\xff", b"\x02\0\0\0[]", b"\x02\0\0\0{}"])
def test_a_peer_that_says_something_else(
    folder: Path, pair: tuple[socket.socket, socket.socket], answer: bytes
) -> None:
    pair[1].sendall(answer)
    if not answer:
        pair[1].close()
    with pytest.raises(PeerError, match=r"party 1: .*\(at store\)"):
        claim_together(pair[0], Store(folder / "party-0", 0), 1, 1.0)
    with contextlib.closing(Store(folder / "party-0", 0)) as again:
        assert again.next == 0


def test_a_silent_peer(folder: Path, pair: tuple[socket.socket, socket.socket]) -> None:
    with pytest.raises(PeerError, match=r"party 1: no answer for 0.2 s \(at store\)"):
        claim_together(pair[0], Store(folder / "party-0", 0), 1, 0.2)


def test_a_damaged_session_is_told_to_the_peer_without_details(folder: Path) -> None:
    """Party 1's next session is sound, but the peer is further, where it is damaged."""
    Store(folder / "party-0", 0).claim(0)
    path = folder / "party-1" / "session-1.corrections"
    path.write_bytes(bytes(300))
    zero, one = together(parties(folder))
    assert isinstance(one, UsageError) and "its checksum differs" in str(one)
    assert isinstance(zero, PeerError)
    assert str(zero) == ("party 1: refused this party: its store cannot be used (at store)")
    assert numbers(together(parties(folder))) == [2, 2]


def _say(sock: socket.socket, message: dict[str, Any]) -> None:
    data = json.dumps(message).encode()
    sock.sendall(struct.pack("<I", len(data)) + data)


# --- twenty kills --------------------------------------------------------------------------------

# One party: claims a session, notes durably what it is about to use, uses it, and so on.
CHILD = """
import hashlib, os, random, socket, sys, time
from pathlib import Path
from mpcache.errors import MpcacheError
from mpcache.parties.store import Store
from mpcache.parties.store_claim import claim_together

rank, folder, log, descriptor = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
sock = socket.socket(fileno=descriptor)
log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
try:
    while True:
        session = claim_together(sock, Store(folder, rank), 1 - rank, 10.0)
        used = session.seed
        if session.corrections is not None:
            with open(session.corrections, "rb") as file:
                used += file.read()
        os.write(log, f"{session.number} {hashlib.sha256(used).hexdigest()}\\n".encode())
        os.fsync(log)
        time.sleep(random.random() * 0.004)
except MpcacheError as error:
    print(error, file=sys.stderr)
    sys.exit(error.exit_code)
"""


def _start(folder: Path, logs: list[Path]) -> list[subprocess.Popen[bytes]]:
    socks = socket.socketpair()
    running = []
    for rank in (0, 1):
        number = socks[rank].fileno()
        party = [str(rank), str(folder / f"party-{rank}"), str(logs[rank]), str(number)]
        running.append(
            subprocess.Popen(
                [sys.executable, "-c", CHILD, *party],
                pass_fds=[number],
                env={**os.environ, "PYTHONPATH": str(ROOT)},
                stderr=subprocess.PIPE,
            )
        )
    for sock in socks:
        sock.close()
    return running


def _uses(log: Path) -> list[tuple[int, str]]:
    lines = log.read_text().splitlines() if log.exists() else []
    return [(int(line.split()[0]), line.split()[1]) for line in lines]


def test_twenty_kills_use_no_session_twice(tmp_path: Path) -> None:
    chance = random.Random(20)
    folder = stock(tmp_path / "store", 600)
    logs = [tmp_path / "log-0", tmp_path / "log-1"]
    for kill in range(20):
        before = [len(_uses(log)) for log in logs]
        running = _start(folder, logs)
        try:
            end = time.monotonic() + 120
            while len(_uses(logs[0])) == before[0] and time.monotonic() < end:
                assert running[0].poll() is None, running[0].communicate()[1]
                time.sleep(0.001)
            time.sleep(chance.random() * 0.2)
            victims = chance.choice([[0], [1], [0, 1], [1, 0]])
            for victim in victims:
                running[victim].send_signal(signal.SIGKILL)
            said = [process.communicate(timeout=60)[1].decode() for process in running]
        finally:
            for process in running:
                process.kill()
        for rank in {0, 1} - set(victims):
            assert running[rank].returncode == 1, said[rank]
            assert f"party {1 - rank}: the connection ended" in said[rank]
        new = [
            [number for number, _ in _uses(log)[since:]]
            for log, since in zip(logs, before, strict=True)
        ]
        shared = min(map(len, new))
        assert new[0][:shared] == new[1][:shared], f"kill {kill}: the parties disagree"
        assert max(map(len, new)) - shared <= 1
    for rank, log in enumerate(logs):
        uses = _uses(log)
        used = [number for number, _ in uses]
        assert len(used) >= 20 - 10 * rank  # party 1 may be killed before it notes its first
        assert used == sorted(set(used)), "a session was used twice"
        assert len({content for _, content in uses}) == len(uses)
        for number, content in uses:
            data = seed_of(rank, number) + (corrections_of(number) if rank else b"")
            assert content == hashlib.sha256(data).hexdigest()
        left = {path.name for path in (folder / f"party-{rank}").iterdir()}
        assert not any(f"session-{number}.seed" in left for number in used)
