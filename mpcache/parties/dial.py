"""How the parties find each other: each listens for higher ranks and connects to lower ones."""

from __future__ import annotations

import contextlib
import errno
import socket
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass

from mpcache.errors import MpcacheError, PeerError, UsageError
from mpcache.parties.handshake import STEP, Hello, greet
from mpcache.parties.link import hang_up
from mpcache.parties.names import any_of, peer_name
from mpcache.parties.tls import Identity, client_context, explain, server_context

Address = tuple[str, int]
_RETRY = 0.05  # seconds between two attempts to connect
_HANDSHAKE = 10.0  # seconds for one peer, at most
_KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}


@dataclass(frozen=True)
class Endpoint:
    """Where a party listens and how it reaches its peers.

    Args:
        rank: this party.
        addresses: host and port of every party, by rank.
        identity: this party's certificates; None for plain sockets (``tls: off``).
        timeout_s: how long an exchange waits without any progress, in seconds.
        connect_timeout_s: how long to wait for all peers to be there, in seconds.
        rtt_ms, mbps: the emulated network: round-trip time in milliseconds, megabits a second;
            0 for none.
    """

    rank: int
    addresses: tuple[Address, ...]
    identity: Identity | None
    timeout_s: float = 120.0
    connect_timeout_s: float = 30.0
    rtt_ms: float = 0.0
    mbps: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.rank < len(self.addresses):
            raise UsageError(f"rank {self.rank} has no address among {len(self.addresses)}")
        if min(self.timeout_s, self.connect_timeout_s) <= 0 or min(self.rtt_ms, self.mbps) < 0:
            raise UsageError("timeouts must be positive, rtt_ms and mbps 0 or more")


def _spelled(address: Address) -> str:
    return f"{address[0]}:{address[1]}"


def _listen(address: Address) -> socket.socket:
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    try:
        return socket.create_server(address, family=family)
    except (OSError, OverflowError) as error:
        why = f"{error}"
        if getattr(error, "errno", None) == errno.EADDRINUSE:
            why = "the address is in use: stop what listens there, or choose another port"
        raise MpcacheError(f"cannot listen on {_spelled(address)}: {why}") from error


def _tune(sock: socket.socket) -> None:
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def meet(endpoint: Endpoint, hello: Hello) -> dict[int, socket.socket]:
    """Connect to all peers and agree with each; returns the sockets by rank.

    1. Listen, if there are higher ranks.
    2. Connect to each lower rank, again and again until it listens.
    3. Accept the higher ranks, in any order.

    Raises:
        UsageError: the certificate files cannot be used.
        MpcacheError: this party's own address cannot be listened on.
        PeerError: a peer did not come, showed a wrong certificate, or runs something else.
    """
    me, world = endpoint.rank, len(endpoint.addresses)
    server = client = None
    if endpoint.identity is not None:
        server, client = server_context(endpoint.identity), client_context(endpoint.identity)
    until = time.monotonic() + endpoint.connect_timeout_s
    socks: dict[int, socket.socket] = {}
    listener = _listen(endpoint.addresses[me]) if me + 1 < world else None
    try:
        for rank in range(me):
            dialled = _dial(rank, endpoint.addresses[rank], until)
            socks[rank] = _greeted(dialled, client, hello, [rank], until)[1]
        missing = list(range(me + 1, world))
        while listener is not None and missing:
            accepted = _accept(listener, missing, until)
            if accepted is not None:
                rank, greeted = _greeted(accepted, server, hello, missing, until)
                socks[rank] = greeted
                missing.remove(rank)
    except BaseException:
        hang_up(list(socks.values()))
        raise
    finally:
        if listener is not None:
            listener.close()
    return socks


def _dial(rank: int, address: Address, until: float) -> socket.socket:
    last: Exception | None = None
    while (left := until - time.monotonic()) > 0:
        try:
            sock = socket.create_connection(address, timeout=left)
        except (OSError, OverflowError) as error:
            last = error
        else:
            # A port of the ephemeral range on this host may have connected to itself.
            if sock.getsockname() != sock.getpeername():
                return sock
            sock.close()
        time.sleep(min(_RETRY, max(0.0, until - time.monotonic())))
    why = f"no connection to {_spelled(address)}"
    raise PeerError(peer_name(rank), "connect", f"{why}: {getattr(last, 'strerror', None) or last}")


def _accept(listener: socket.socket, missing: Sequence[int], until: float) -> socket.socket | None:
    """The next connection; None if it says nothing, as port scanners do."""
    try:
        listener.settimeout(max(0.001, until - time.monotonic()))
        sock, _ = listener.accept()
    except TimeoutError:
        where = _spelled(listener.getsockname()[:2])
        raise PeerError(any_of(missing), "connect", f"did not connect to {where}") from None
    sock.settimeout(max(0.001, min(_HANDSHAKE, until - time.monotonic())))
    with contextlib.suppress(OSError):
        if sock.recv(1, socket.MSG_PEEK):
            return sock
    sock.close()
    return None


def _greeted(
    sock: socket.socket,
    context: ssl.SSLContext | None,
    hello: Hello,
    expected: Sequence[int],
    until: float,
) -> tuple[int, socket.socket]:
    """TLS, if there is a context, then the greeting; the peer's rank and the socket to use."""
    server = hello.rank < expected[0]
    try:
        _tune(sock)
        sock.settimeout(max(0.001, min(_HANDSHAKE, until - time.monotonic())))
        if context is not None:
            # The handshake is a call of its own: a failed one leaves the socket open, so that
            # `hang_up` can make sure that the peer reads the alert.
            sock = context.wrap_socket(sock, server_side=server, do_handshake_on_connect=False)
            _handshake(sock, expected)
        return greet(sock, hello, expected), sock
    except BaseException:
        hang_up([sock])
        raise


def _handshake(sock: ssl.SSLSocket, expected: Sequence[int]) -> None:
    peer = any_of(expected)
    try:
        sock.do_handshake()
    except ssl.SSLError as error:
        raise PeerError(peer, STEP, explain(error)) from error
    except TimeoutError:
        raise PeerError(peer, STEP, f"no answer for {sock.gettimeout():g} s") from None
    except OSError:
        raise PeerError(peer, STEP, "the connection ended during the TLS handshake") from None
