"""From a live dealer to party 1: it sends what there is room for, and waits as told by party 1."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import pytest
import torch

from mpcache.errors import MpcacheError, PeerError
from mpcache.parties.dealing import (
    AHEAD,
    CHUNK,
    DEALER,
    CorrectionStream,
    Sender,
    from_wires,
    to_wires,
)
from mpcache.parties.transport import Wires
from mpcache.protocols.ledger import Ledger

TIMEOUT = 1.0  # seconds without a word
FRAMES = 3 * AHEAD


class Dealing(threading.Thread):
    """A dealer of FRAMES frames and 5 bytes, each byte the number of its frame."""

    def __init__(self, sock: socket.socket) -> None:
        super().__init__(daemon=True)
        self.wires = Wires({1: sock}, Ledger(DEALER, DEALER + 1), timeout_s=TIMEOUT)
        self.frames = 0
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            sender = Sender(to_wires(self.wires))
            for number in range(FRAMES):
                sender.emit(torch.full((CHUNK,), number, dtype=torch.uint8))
                self.frames += 1
            sender.emit(torch.zeros(5, dtype=torch.uint8))
            sender.finish()
        except MpcacheError as error:
            self.error = error


@pytest.fixture
def ends() -> Iterator[tuple[Dealing, Wires]]:
    ours, theirs = socket.socketpair()
    link = Wires({DEALER: theirs}, Ledger(1, DEALER + 1), timeout_s=TIMEOUT)
    dealing = Dealing(ours)
    dealing.start()
    with contextlib.closing(dealing.wires), contextlib.closing(link):
        yield dealing, link


def test_party_1_may_take_longer_than_the_timeout(ends: tuple[Dealing, Wires]) -> None:
    dealing, link = ends
    stream = CorrectionStream(from_wires(link))
    time.sleep(3 * TIMEOUT)  # as with weights in setup
    assert dealing.is_alive() and dealing.frames <= AHEAD + 1
    for number in range(FRAMES):
        got = stream.ring((CHUNK,), torch.uint8)
        assert int(got[0]) == int(got[-1]) == number
    stream.ring((5,), torch.uint8)
    stream.finish()
    dealing.join(30)
    assert dealing.error is None and dealing.frames == FRAMES


def test_a_silent_party_1_ends_the_dealer(ends: tuple[Dealing, Wires]) -> None:
    dealing, _ = ends
    dealing.join(30)
    assert isinstance(dealing.error, PeerError)
    assert "party 1: no answer for 1 s" in str(dealing.error)
    assert dealing.frames == 0  # nobody had granted any


def test_a_party_1_that_is_gone_ends_the_dealer(ends: tuple[Dealing, Wires]) -> None:
    dealing, link = ends
    stream = CorrectionStream(from_wires(link))
    stream.ring((CHUNK,), torch.uint8)
    stream.close()
    link.abort("killed")
    dealing.join(30)
    assert "party 1: stopped: killed" in str(dealing.error)


@pytest.mark.parametrize("frames", [-1, AHEAD + 1])
def test_room_that_cannot_be_ends_the_dealer(ends: tuple[Dealing, Wires], frames: int) -> None:
    dealing, link = ends
    link.exchange("room", {DEALER: [torch.tensor([frames])]}, {})
    dealing.join(30)
    assert f"party 1 announced room for {frames} frames" in str(dealing.error)
