"""Parties as threads over real loopback sockets, with or without TLS."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mpcache.parties.handshake import Hello
from mpcache.parties.local import loopback_addresses
from mpcache.parties.tls import Identity, make_keys
from mpcache.parties.transport import Endpoint, Wires, connect
from mpcache.protocols.ledger import Ledger

Outcome = Any  # what a party returned, or the exception that ended it


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> list[Identity]:
    return make_keys(tmp_path_factory.mktemp("tls") / "keys", 3)


@pytest.fixture(params=["plain", "tls"])
def identities(request: pytest.FixtureRequest, keys: list[Identity]) -> list[Identity | None]:
    return [None] * 3 if request.param == "plain" else list(keys)


def hello(rank: int, world: int, **changes: Any) -> Hello:
    return dataclasses.replace(Hello("0.1", "c" * 64, "d" * 64, rank, world, "run-1"), **changes)


def meet(
    world: int,
    program: Callable[[Wires], Any],
    identities: list[Identity | None],
    hellos: list[Hello] | None = None,
    limit: float = 30.0,
    **options: Any,
) -> list[Outcome]:
    """Connect `world` parties and run `program` in each; exceptions are returned, not raised."""
    addresses = loopback_addresses(world)
    options = {"timeout_s": 10.0, "connect_timeout_s": 10.0, **options}
    outcomes: list[Outcome] = [TimeoutError("hangs")] * world

    def run(rank: int) -> None:
        endpoint = Endpoint(rank, addresses, identities[rank], **options)
        greeting = hellos[rank] if hellos else hello(rank, world)
        try:
            with connect(endpoint, greeting, Ledger(rank, world)) as wires:
                outcomes[rank] = program(wires)
        except BaseException as error:
            outcomes[rank] = error

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(limit)
    return outcomes


@pytest.fixture
def other_keys(tmp_path: Path) -> list[Identity]:
    """Certificates of another authority."""
    return make_keys(tmp_path / "other", 3)
