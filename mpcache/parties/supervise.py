"""The launcher's side: start party processes, read their events, and leave none behind."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import IO, Any

from mpcache.errors import MpcacheError
from mpcache.parties.names import peer_name, printable

Event = dict[str, Any]
OnEvent = Callable[[int, Event], None]
OnTick = Callable[[Sequence[int]], None]

_TAIL = 50  # lines of stderr that are kept
_MAX_LINE = 1 << 20  # bytes of one line
_KILL = 2.0  # seconds between asking a process to end and killing it
_POLL = 0.1  # seconds
_TICK = 0.5  # seconds between two calls of `on_tick`


@dataclass(frozen=True)
class PartyCommand:
    """One party process. `secrets` go to its stdin."""

    rank: int
    name: str
    argv: Sequence[str]
    secrets: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class PartyExit:
    """How a party ended.

    Args:
        code: its exit code, None if a signal ended it.
        signal: the signal's number, None if it exited.
        ended: whether the launcher ended it, because of another party, a timeout or an interrupt.
        where: how far it had come, from its last event with that field.
        error: its ``error`` event, if it wrote one.
        stderr: the last lines that it wrote there.
        order: when it showed that it failed, in seconds since the start.
    """

    rank: int
    name: str
    code: int | None
    signal: int | None
    ended: bool
    where: str
    error: Event | None
    stderr: tuple[str, ...]
    order: float

    @property
    def failed(self) -> bool:
        return self.code != 0

    @property
    def how(self) -> str:
        """``exited with code 1`` or ``was killed by SIGKILL``."""
        if self.signal is None:
            return f"exited with code {self.code}"
        try:
            return f"was killed by {signal.Signals(self.signal).name}"
        except ValueError:
            return f"was killed by signal {self.signal}"


class _Child:
    """A running party: its process, and the threads that read its streams into `inbox`."""

    def __init__(self, command: PartyCommand, inbox: queue.SimpleQueue[tuple[int, Event]]) -> None:
        self.command, self._inbox = command, inbox
        self.where, self.error = "", None  # type: tuple[str, Event | None]
        self.order = float("inf")
        self.ended = False
        self.gone = threading.Event()
        self._tail: deque[str] = deque(maxlen=_TAIL)
        try:
            self.process = subprocess.Popen(
                list(command.argv),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C reaches the launcher only
            )
        except OSError as error:
            raise MpcacheError(f"cannot start {command.name}: {error}") from error
        self._readers = [
            threading.Thread(target=target, daemon=True)
            for target in (self._feed, self._read_events, self._read_stderr)
        ]
        self._waiter = threading.Thread(target=self._wait, daemon=True)
        for thread in (*self._readers, self._waiter):
            thread.start()

    def _feed(self) -> None:
        """Hand over the secrets; stdin then stays open until this process ends."""
        assert self.process.stdin is not None
        with contextlib.suppress(OSError, ValueError):
            self.process.stdin.write(json.dumps(dict(self.command.secrets)).encode() + b"\n")
            self.process.stdin.flush()

    def _read_events(self) -> None:
        assert self.process.stdout is not None
        for line in _lines(self.process.stdout):
            try:
                event = json.loads(line)
            except (ValueError, RecursionError):
                event = None
            if not isinstance(event, dict) or not isinstance(event.get("event"), str):
                message = f"{self.command.name} wrote a line of {len(line)} bytes that is no event"
                event = {"event": "error", "message": message, "garbled": True}
            self._inbox.put((self.command.rank, event))

    def _read_stderr(self) -> None:
        assert self.process.stderr is not None
        for line in _lines(self.process.stderr):
            self._tail.append(line.decode(errors="replace").rstrip("\n")[:500])

    def _wait(self) -> None:
        """Wait for the end, take along what it started, and only then reap it."""
        pid = self.process.pid
        if hasattr(os, "waitid"):
            # Not reaped yet, so that nobody else can have this process group.
            os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
            with contextlib.suppress(OSError):
                os.killpg(pid, signal.SIGKILL)
        self.process.wait()
        self.gone.set()
        for reader in self._readers[1:]:
            reader.join(1.0)
        self._inbox.put((self.command.rank, {"event": _EXIT}))

    def signal(self, number: int) -> None:
        """Send a signal to the party and all that it started."""
        if not self.gone.is_set():
            with contextlib.suppress(OSError):
                os.killpg(self.process.pid, number)

    def note(self, event: Event, now: float) -> None:
        """Keep what the final message needs of an event."""
        if isinstance(event.get("where"), str):
            self.where = printable(event["where"])
        if event["event"] == "error" and (self.error is None or self.error.get("garbled")):
            self.error = event
            if not event.get("garbled"):
                self.order = min(self.order, now)

    def close(self) -> None:
        self._waiter.join(2 * _KILL)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            with contextlib.suppress(OSError, ValueError):
                assert stream is not None
                stream.close()

    def result(self) -> PartyExit:
        code = self.process.returncode
        return PartyExit(
            rank=self.command.rank,
            name=self.command.name,
            code=code if code >= 0 else None,
            signal=-code if code < 0 else None,
            ended=self.ended,
            where=self.where,
            error=self.error,
            stderr=tuple(self._tail),
            order=self.order,
        )


_EXIT = "\0exit"  # an event that no party can write: its process has ended


def _lines(stream: IO[bytes]) -> Iterator[bytes]:
    with contextlib.suppress(OSError, ValueError):
        while line := stream.readline(_MAX_LINE):
            yield line


@contextlib.contextmanager
def _signals_raise() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP raise SystemExit, so that `finally` clauses run."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    before = {
        number: signal.signal(number, leave)
        for number in (signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN  # as under nohup
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def supervise(
    commands: Sequence[PartyCommand],
    on_event: OnEvent,
    grace_s: float = 5.0,
    timeout_s: float | None = None,
    on_tick: OnTick | None = None,
) -> list[PartyExit]:
    """Run all parties to their end and say how each ended; none is left behind, however it ends.

    When one fails, the others get `grace_s` seconds to end with their own message; then they are
    terminated, then killed. An exception here (of `on_event`, Ctrl-C, SIGTERM) ends them at once.

    Args:
        on_event: called in this thread with the rank and each event as it comes.
        timeout_s: seconds after which all are ended; None for no limit.
        on_tick: called in this thread with the process ids of all that run, twice a second.

    Raises:
        MpcacheError: a process could not be started.
    """
    inbox: queue.SimpleQueue[tuple[int, Event]] = queue.SimpleQueue()
    children: dict[int, _Child] = {}
    with _signals_raise():
        try:
            for command in commands:
                children[command.rank] = _Child(command, inbox)
            _watch(children, inbox, on_event, grace_s, timeout_s, on_tick)
        finally:
            _end(children)
        while not inbox.empty():  # what was said on the way out
            rank, event = inbox.get()
            children[rank].note(event, float("inf"))
    return [child.result() for child in children.values()]


def _watch(
    children: dict[int, _Child],
    inbox: queue.SimpleQueue[tuple[int, Event]],
    on_event: OnEvent,
    grace_s: float,
    timeout_s: float | None,
    on_tick: OnTick | None,
) -> None:
    began = ticked = time.monotonic()
    deadline = began + timeout_s if timeout_s is not None else float("inf")
    running = set(children)
    while running and time.monotonic() < deadline:
        if on_tick is not None and time.monotonic() >= ticked:
            ticked = time.monotonic() + _TICK
            on_tick([children[rank].process.pid for rank in sorted(running)])
        try:
            rank, event = inbox.get(timeout=_POLL)
        except queue.Empty:
            continue
        child, now = children[rank], time.monotonic()
        if event["event"] != _EXIT:
            child.note(event, now - began)
            on_event(rank, event)
            continue
        running.discard(rank)
        if child.process.returncode:
            child.order = min(child.order, now - began)
            deadline = min(deadline, now + grace_s)


def _end(children: dict[int, _Child]) -> None:
    """Terminate, then kill, whatever still runs; reap it and close its streams."""
    left = [child for child in children.values() if not child.gone.is_set()]
    try:
        for number, seconds in ((signal.SIGTERM, _KILL), (signal.SIGKILL, None)):
            for child in left:
                child.ended = True
                child.signal(number)
            end = time.monotonic() + _KILL
            while left and (seconds is None or time.monotonic() < end):
                time.sleep(0.02)
                left = [child for child in left if not child.gone.is_set()]
    except BaseException:
        for child in left:
            child.signal(signal.SIGKILL)
        raise
    finally:
        for child in children.values():
            child.close()


def failure(exits: Sequence[PartyExit]) -> str:
    """One message on why a run failed: who failed first and how, then what the others say.

    Empty if no party failed. A party that only blames another failed one comes after it.
    """
    failed = [end for end in exits if end.failed]
    if not failed:
        return ""
    own = [end for end in failed if not end.ended]
    names = {end.name for end in own} | {peer_name(end.rank) for end in own}

    def blames(end: PartyExit) -> bool:
        return (end.error or {}).get("peer") in names

    if not own:
        who = ", ".join(end.name for end in failed)
        return f"{who} did not end in time and had to be stopped{_place(failed[0])}"
    own.sort(key=lambda end: (blames(end), end.order))
    first, *others = own
    parts = [_first(first)]
    parts += [f"{end.name} reports: {_message(end)}" for end in others if _message(end)]
    parts += [f"{end.name} had to be stopped" for end in failed if end.ended]
    return "; ".join(parts)


def _place(end: PartyExit) -> str:
    return f" during {end.where}" if end.where else ""


def _message(end: PartyExit) -> str:
    """What a party's error event says."""
    return printable(str((end.error or {}).get("message", "")), 1000)


def _first(end: PartyExit) -> str:
    message = _message(end)
    text = f"{end.name} {end.how}{_place(end)}"
    if not message and end.signal is None and end.stderr:
        message = printable(end.stderr[-1], 500)
    return f"{text}: {message}" if message else text
