"""Real `mpcache` processes: start one, follow its output, find its children, see them gone."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest

ROOT = Path(__file__).resolve().parents[2]
WAIT = 240.0  # seconds that a busy machine may take for what has no limit of its own
LIMIT = 30.0  # and to end all processes after a failure: idle ones take 1 to 10, a hang more
PROC = Path("/proc")
DEALER = 2  # its place among the processes of a two-party run


class Running:
    """One `mpcache` process; `out` and `err` grow as it writes."""

    def __init__(self, arguments: tuple[str, ...], cwd: Path, scratch: Path) -> None:
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "HF_HUB_OFFLINE": "1",
            "TMPDIR": str(scratch),
        }
        self.began = time.monotonic()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "mpcache", *arguments],
            cwd=cwd,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        self.out, self.err = "", ""
        self.seen: dict[int, int] = {}  # rank -> pid of a party that this process started
        self._readers = [
            threading.Thread(target=self._read, args=pair, daemon=True)
            for pair in (("out", self.process.stdout), ("err", self.process.stderr))
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, name: str, stream: IO[bytes]) -> None:
        while data := os.read(stream.fileno(), 4096):
            setattr(self, name, getattr(self, name) + data.decode(errors="replace"))

    @property
    def pid(self) -> int:
        return self.process.pid

    def until(self, text: str, stream: str = "out") -> None:
        """Wait until `text` was written; the test fails if the process ends without."""
        found = wait_for(lambda: text in getattr(self, stream) or self.process.poll() is not None)
        if not found or text not in getattr(self, stream):
            pytest.fail(f"no {text!r} in {stream}:\n{self.out}\n{self.err}")

    def until_any(self, stream: str = "out") -> None:
        """Wait until something was written; the test fails if the process ends without."""
        if not wait_for(lambda: bool(getattr(self, stream)) or self.process.poll() is not None):
            pytest.fail(f"nothing in {stream}")

    def parties(self) -> dict[int, int]:
        """The processes that this one has started and that live: rank -> pid, the dealer last."""
        found = {}
        for pid in _children(self.pid):
            words = _file(pid, "cmdline").split(b"\0")
            if b"--rank" in words:
                found[int(words[words.index(b"--rank") + 1])] = pid
            elif b"deal" in words:
                found[DEALER] = pid
        self.seen.update(found)
        return found

    def signal(self, number: int, pid: int | None = None) -> float:
        """Send a signal, to this process or to `pid`; returns when, in monotonic seconds."""
        os.kill(self.pid if pid is None else pid, number)
        return time.monotonic()

    def end(self, since: float | None = None, limit: float = WAIT) -> int:
        """The exit code; the test fails if it takes longer than `limit` seconds `since` then."""
        left = limit if since is None else since + limit - time.monotonic()
        try:
            code = self.process.wait(max(0.0, left))
        except subprocess.TimeoutExpired:
            pytest.fail(f"still running after {limit} s:\n{self.out}\n{self.err}")
        for reader in self._readers:
            reader.join(5.0)
        return code

    def kill(self) -> None:
        """Leave nothing behind, whatever the test found."""
        if self.process.poll() is None:
            self.parties()
        for pid in (self.pid, *self.seen.values()):
            if pid != self.pid or self.process.poll() is None:
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
        self.process.wait()


def all_there(parties: list[Running]) -> float:
    """Wait until every one of them looks for its peers; returns when, in monotonic seconds."""
    for party in parties:
        party.until("connect", "err")
    return time.monotonic()


def _children(parent: int) -> list[int]:
    found = []
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            fields = _file(int(entry.name), "stat").rpartition(b")")[2].split()
            if len(fields) > 1 and int(fields[1]) == parent:
                found.append(int(entry.name))
    return found


def _file(pid: int, name: str) -> bytes:
    try:
        return (PROC / str(pid) / name).read_bytes()
    except OSError:
        return b""


def told_to(pid: int) -> bytes:
    """What anyone on this host, or a core dump, could read of how a process was started."""
    return _file(pid, "cmdline") + _file(pid, "environ")


def alive(pid: int) -> bool:
    """Whether a process runs or is stopped; one that only waits to be reaped does not."""
    fields = _file(pid, "stat").rpartition(b")")[2].split()
    return bool(fields) and fields[0] != b"Z"


def wait_for(done: Callable[[], bool], seconds: float = WAIT) -> bool:
    """Whether `done` became true within `seconds`."""
    end = time.monotonic() + seconds
    while not done():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True
