"""Parties as threads: results by rank, and the original cause of a failure."""

from __future__ import annotations

import time

import pytest
import torch

from mpcache.errors import MpcacheError, PeerError
from mpcache.parties.local import loopback_addresses, run_parties
from mpcache.parties.transport import Wires
from mpcache.protocols.channel import Spec


def ring(wires: Wires) -> int:
    """Send the rank to the next party, and return what came from the one before."""
    after, before = (wires.rank + 1) % wires.world, (wires.rank - 1) % wires.world
    sent = {after: [torch.tensor(wires.rank)]}
    return int(wires.exchange("ring", sent, {before: [Spec(())]})[before][0])


@pytest.mark.parametrize("world", [1, 2, 3, 4])
def test_results_come_by_rank(world: int) -> None:
    if world == 1:
        assert run_parties(1, lambda wires: wires.rank) == [0]
    else:
        assert run_parties(world, ring) == [(rank - 1) % world for rank in range(world)]


@pytest.mark.parametrize("failing", [0, 1, 2])
def test_the_original_cause_is_raised_not_what_follows(failing: int) -> None:
    def program(wires: Wires) -> None:
        ring(wires)
        if wires.rank == failing:
            time.sleep(0.05)
            raise ZeroDivisionError("here")
        ring(wires)
        ring(wires)

    began = time.monotonic()
    with pytest.raises(ZeroDivisionError, match="here"):
        run_parties(3, program)
    assert time.monotonic() - began < 10


def test_of_peer_errors_the_first_is_raised() -> None:
    def program(wires: Wires) -> None:
        with wires.ledger.scope("left" if wires.rank else "right"):
            ring(wires)

    with pytest.raises(PeerError, match=r"'(left|right):ring'.*'(left|right):ring'"):
        run_parties(2, program)


def test_parties_that_do_not_end_are_named() -> None:
    def program(wires: Wires) -> None:
        if wires.rank == 1:
            time.sleep(1)

    with pytest.raises(MpcacheError, match=r"^party 1 did not end within 0\.2 s"):
        run_parties(2, program, timeout_s=0.2)


def test_loopback_addresses_differ() -> None:
    assert len(set(loopback_addresses(5))) == 5
