"""All parties of a run as threads of one process, over real sockets: for tests and measuring."""

from __future__ import annotations

import contextlib
import itertools
import socket
import threading
import time
from collections.abc import Callable
from typing import TypeVar

from mpcache.errors import MpcacheError, PeerError
from mpcache.parties.names import any_of
from mpcache.parties.transport import Address, Wires
from mpcache.protocols.ledger import Ledger

T = TypeVar("T")


def loopback_addresses(world: int) -> tuple[Address, ...]:
    """Free ports on this host, one a party; free at this moment, nothing holds them."""
    socks = [socket.create_server(("127.0.0.1", 0)) for _ in range(world)]
    addresses = tuple(("127.0.0.1", int(sock.getsockname()[1])) for sock in socks)
    for sock in socks:
        sock.close()
    return addresses


def run_parties(
    world: int,
    program: Callable[[Wires], T],
    *,
    timeout_s: float = 60.0,
    rtt_ms: float = 0.0,
    mbps: float = 0.0,
) -> list[T]:
    """Run `program` as each of `world` parties, and return what each returned, by rank.

    Every party has its own ledger (``wires.ledger``) and its own thread; they talk over socket
    pairs without TLS. When one fails the others are told to stop.

    Args:
        timeout_s: how long an exchange waits, and the whole run may take, in seconds.
        rtt_ms, mbps: the emulated network, 0 for none.

    Raises:
        MpcacheError: the parties did not end in `timeout_s`.
        BaseException: whatever `program` raised, in the party that failed first of its own.
    """
    socks: list[dict[int, socket.socket]] = [{} for _ in range(world)]
    for low, high in itertools.combinations(range(world), 2):
        socks[low][high], socks[high][low] = socket.socketpair()
    results: dict[int, T] = {}
    errors: list[BaseException] = []  # in the order in which they came

    def run(rank: int) -> None:
        wires = Wires(
            socks[rank], Ledger(rank, world), timeout_s=timeout_s, rtt_ms=rtt_ms, mbps=mbps
        )
        with contextlib.suppress(BaseException), wires:
            try:
                results[rank] = program(wires)
            except BaseException as error:
                errors.append(error)
                raise

    threads = [
        threading.Thread(target=run, args=(rank,), name=f"party {rank}", daemon=True)
        for rank in range(world)
    ]
    for thread in threads:
        thread.start()
    try:
        end = time.monotonic() + timeout_s
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))
    finally:
        late = [rank for rank, thread in enumerate(threads) if thread.is_alive()]
        for rank in late:
            for sock in socks[rank].values():
                with contextlib.suppress(OSError):  # its thread's reads and writes fail at once
                    sock.shutdown(socket.SHUT_RDWR)
    if errors:
        own = [error for error in errors if not isinstance(error, PeerError)]
        raise (own or errors)[0]
    if late:
        raise MpcacheError(f"{any_of(late)} did not end within {timeout_s:g} s")
    return [results[rank] for rank in range(world)]
