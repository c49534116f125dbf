"""How a party of a run meets its peers, and gets its correlations: live, or out of a store."""

from __future__ import annotations

import socket
from contextlib import ExitStack

import torch

from mpcache import __version__
from mpcache.config import RunConfig, digest
from mpcache.errors import UsageError
from mpcache.kernels.prg import Stream
from mpcache.models.spec import ModelSpec
from mpcache.parties.dealing import (
    DEALER,
    CorrectionStream,
    from_file,
    from_wires,
    take_seed,
)
from mpcache.parties.dial import Address, Endpoint, meet
from mpcache.parties.handshake import Hello
from mpcache.parties.link import hang_up
from mpcache.parties.store import Session
from mpcache.parties.store_claim import claim_together
from mpcache.parties.tls import Identity
from mpcache.parties.transport import Wires
from mpcache.program import LENGTH, Dealt
from mpcache.protocols.ledger import Ledger
from mpcache.stores import opened


def greeting(
    config: RunConfig, rank: int, spec: ModelSpec, session: str, shares: str = ""
) -> Hello:
    """What this party says that it is about to run.

    Args:
        shares: the name of the split that its share of the weights is of, if it has one.
    """
    world = len(_hosts(config))
    return Hello(__version__, digest(config), spec.digest(), rank, world, session, shares)


def endpoint(config: RunConfig, rank: int) -> Endpoint:
    """Where this party listens and how it reaches the others.

    Raises:
        UsageError: addresses or keys are not configured.
    """
    network = config.network
    if not network.addresses:
        raise UsageError(
            "network.addresses is empty; a party needs one host:port a party, in the order of"
            " their ranks (`mpcache launch` chooses them itself)"
        )
    if network.tls and not network.keys:
        raise UsageError(
            "network.keys is not set; make keys with `mpcache keys FOLDER`, give every party its"
            " own, and set network.keys, or spell out network.tls: off"
        )
    identity = Identity.of(network.keys, rank) if network.tls and network.keys else None
    return Endpoint(
        rank,
        tuple(_address(text) for text in _hosts(config)),
        identity,
        timeout_s=network.timeout_s,
        connect_timeout_s=network.connect_timeout_s,
        rtt_ms=network.rtt_ms,
        mbps=network.mbps,
    )


def _hosts(config: RunConfig) -> tuple[str, ...]:
    """The addresses of this run's processes: with a store the dealer's is not needed."""
    return config.network.addresses[: config.processes]


def _address(text: str) -> Address:
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


def meet_dealer(
    config: RunConfig,
    rank: int,
    hello: Hello,
    ledger: Ledger,
    prompt_tokens: int | None,
    stack: ExitStack,
) -> tuple[Wires, Dealt]:
    """Connect to the peer and to the dealer, who learns the prompt's length from the client."""
    socks = meet(endpoint(config, rank), hello)
    link = stack.enter_context(
        Wires({DEALER: socks[DEALER]}, Ledger(rank, DEALER + 1), timeout_s=config.network.timeout_s)
    )
    wires = stack.enter_context(_to_peer(config, rank, socks[1 - rank], ledger))
    if prompt_tokens is not None:
        link.exchange(LENGTH, {DEALER: [torch.tensor([prompt_tokens])]}, {})
    seed = Stream(take_seed(link))
    stream = None
    if rank == 1:
        stream = CorrectionStream(from_wires(link))
        stack.callback(stream.close)
    return wires, Dealt(seed, stream)


def meet_with_store(
    config: RunConfig,
    rank: int,
    spec: ModelSpec,
    hello: Hello,
    ledger: Ledger,
    prompt_tokens: int | None,
    verified: bool,
    stack: ExitStack,
) -> tuple[Wires, Dealt, Session]:
    """Check this party's store, connect to the peer, and claim a session with it.

    Args:
        verified: the files' checksums were compared just now, by the launcher.

    Raises:
        UsageError: the store cannot be used, or not for this run; nothing was connected.
        PeerError: the peer has another store, or is gone.
    """
    store = stack.enter_context(opened(config, rank, spec, prompt_tokens, verified))
    store.verify(store.next)
    socks = meet(endpoint(config, rank), hello)
    dealt_for = int(store.header.terms["prompt_tokens"])
    try:
        session = claim_together(socks[1 - rank], store, 1 - rank, config.network.timeout_s)
    except BaseException:
        hang_up(list(socks.values()))
        raise
    wires = stack.enter_context(_to_peer(config, rank, socks[1 - rank], ledger))
    stream = None
    if session.corrections is not None:
        stream = CorrectionStream(from_file(session.corrections))
        stack.callback(stream.close)
    return wires, Dealt(Stream(session.seed), stream, dealt_for), session


def _to_peer(config: RunConfig, rank: int, sock: socket.socket, ledger: Ledger) -> Wires:
    network = config.network
    return Wires(
        {1 - rank: sock},
        ledger,
        timeout_s=network.timeout_s,
        rtt_ms=network.rtt_ms,
        mbps=network.mbps,
    )
