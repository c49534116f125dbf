"""What the emulated network delivers, measured at its ends against what was set."""

from __future__ import annotations

import itertools
import multiprocessing
import socket
import statistics
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch

from mpcache.parties.transport import Wires
from mpcache.protocols.channel import Spec, frame_bytes
from mpcache.protocols.ledger import Ledger

WITHIN = 0.1
OWN_MS = 0.04  # what both ends take outside of the wire, for two trips
STAMP = [Spec((1,))]
# round trip in milliseconds, megabits a second
NETWORKS = {"lan": (0.3, 3000.0), "wan": (40.0, 400.0), "wan-slow": (80.0, 100.0)}


def _party(rank: int, sock: socket.socket, network: Any, program: Any, out: Any) -> None:
    torch.set_num_threads(1)
    rtt_ms, mbps = network
    ledger = Ledger(rank, 2)
    with Wires({1 - rank: sock}, ledger, timeout_s=60, rtt_ms=rtt_ms, mbps=mbps) as wires:
        out.send(program(wires))


def _run(network: tuple[float, float], program: Callable[[Wires], Any]) -> list[Any]:
    """Run `program` in two processes, as parties run; returns what each returned."""
    context = multiprocessing.get_context("fork")
    socks, ends, processes = socket.socketpair(), [], []
    for rank in range(2):
        near, far = context.Pipe(duplex=False)
        ends.append(near)
        arguments = (rank, socks[rank], network, program, far)
        processes.append(context.Process(target=_party, args=arguments, daemon=True))
    for process in processes:
        process.start()
    results = [end.recv() if end.poll(60) else pytest.fail("no answer") for end in ends]
    for process in processes:
        process.join()
    return results


def _trips(wires: Wires) -> list[float]:
    """Seconds from before a frame is sent to after it is delivered, on the clock of one machine."""
    seconds, peer = [], 1 - wires.rank
    stamp = torch.zeros(1, dtype=torch.int64)
    clock = stamp.numpy()
    for turn in range(200):
        if turn % 2 == wires.rank:
            clock[0] = time.monotonic_ns()
            wires.exchange("trip", {peer: [stamp]}, {})
        else:
            (got,) = wires.exchange("trip", {}, {peer: STAMP})[peer]
            arrived = time.monotonic_ns()
            seconds.append((arrived - int(got.item())) / 1e9)
    return seconds[5:]


def _streamed(megabytes: int) -> Callable[[Wires], list[float]]:
    """Seconds between arrivals of frames of `megabytes` that party 0 sends one after the other."""
    frame = torch.zeros(megabytes * 1_000_000, dtype=torch.uint8)

    def program(wires: Wires) -> list[float]:
        arrived = []
        for _ in range(6):
            if wires.rank == 0:
                wires.exchange("stream", {1: [frame]}, {})
            else:
                wires.exchange("stream", {}, {0: [Spec.of(frame)]})
            arrived.append(time.perf_counter())
        return [b - a for a, b in itertools.pairwise(arrived)]

    return program


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_both_ways_take_half_the_round_trip_that_was_set(name: str) -> None:
    rtt_ms, _ = NETWORKS[name]
    for seconds in _run(NETWORKS[name], _trips):
        measured = statistics.median(seconds) * 2e3
        assert rtt_ms <= measured <= rtt_ms * (1 + WITHIN) + OWN_MS


@pytest.mark.slow
@pytest.mark.parametrize(("name", "megabytes"), [("lan", 20), ("wan", 5), ("wan-slow", 2)])
def test_the_rate_is_the_one_that_was_set(name: str, megabytes: int) -> None:
    _, mbps = NETWORKS[name]
    size = frame_bytes("start:stream", [Spec((megabytes * 1_000_000,), torch.uint8)])
    seconds = statistics.median(_run(NETWORKS[name], _streamed(megabytes))[1])
    assert size * 8 / seconds / 1e6 == pytest.approx(mbps, rel=WITHIN)


@pytest.mark.slow
def test_both_directions_have_the_whole_rate() -> None:
    elements = 4_000_000
    frame = torch.zeros(elements, dtype=torch.uint8)

    def program(wires: Wires) -> float:
        peer = 1 - wires.rank
        began = time.perf_counter()
        for _ in range(4):
            wires.exchange("both", {peer: [frame]}, {peer: [Spec.of(frame)]})
        return (time.perf_counter() - began) / 4

    rtt_ms, mbps = NETWORKS["wan"]
    wanted = elements * 8 / (mbps * 1e6) + rtt_ms / 2e3
    assert max(_run(NETWORKS["wan"], program)) == pytest.approx(wanted, rel=WITHIN)
