"""Ctrl-C in the middle of a write comes once the write has ended, and at once anywhere else."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator

import pytest

from mpcache.parties import interrupts


@pytest.fixture(autouse=True)
def _as_in_a_shell() -> Iterator[None]:
    """Whatever started these tests: under nohup a process ignores interrupts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_an_interrupt_waits_for_a_write() -> None:
    written = []
    with interrupts.between_writes():
        with pytest.raises(KeyboardInterrupt):
            interrupts.begin_write()
            try:
                signal.raise_signal(signal.SIGINT)
                written.append("all of it")
            finally:
                interrupts.end_write()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        interrupts.begin_write()
        interrupts.end_write()  # nothing is left over
    assert written == ["all of it"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_write_of_another_thread_holds_nothing_up() -> None:
    with interrupts.between_writes():
        thread = threading.Thread(target=interrupts.begin_write)
        thread.start()
        thread.join()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_what_somebody_else_handles_stays_theirs() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with interrupts.between_writes():
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
