"""How the parties find each other: each listens for higher ranks and connects to lower ones."""

from __future__ import annotations

import contextlib
import errno
import select
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
_HANDSHAKE = 5.0  # seconds for one peer, at most
_PATIENCE = 2.0  # seconds for the others once a peer that was met has gone
_HANGUP = getattr(select, "POLLRDHUP", 0)  # with unread data before the end, too
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


class _Meeting:
    """The peers that were met, and how long the others may still take.

    A peer that was met and has gone did not agree with another one; then nobody need wait long.
    """

    def __init__(self, seconds: float) -> None:
        self.socks: dict[int, socket.socket] = {}
        self.until = time.monotonic() + seconds
        self._gone: list[int] = []

    @property
    def left(self) -> float:
        """Seconds; at least a millisecond, which a socket can have as its timeout."""
        return max(0.001, self.until - time.monotonic())

    @property
    def over(self) -> bool:
        return time.monotonic() >= self.until

    def wait(self, seconds: float, listener: socket.socket | None = None) -> bool:
        """Whether a connection has come to `listener`; False also when a peer goes."""
        poll = select.poll()
        for rank, sock in self.socks.items():
            if rank not in self._gone:
                poll.register(sock, _HANGUP)
        if listener is not None:
            poll.register(listener, select.POLLIN)
        ready = {fd for fd, _ in poll.poll(seconds * 1e3)}
        for rank, sock in self.socks.items():
            if sock.fileno() in ready:
                self._gone.append(rank)
                self.until = min(self.until, time.monotonic() + _PATIENCE)
        return listener is not None and listener.fileno() in ready

    def missed(self, peer: str, why: str) -> PeerError:
        """The error that ends the meeting when its time is over."""
        if self._gone:
            peer, why = peer_name(self._gone[0]), f"it ended before all had met ({peer}: {why})"
        return PeerError(peer, "connect", why)


def meet(endpoint: Endpoint, hello: Hello) -> dict[int, socket.socket]:
    """Connect to all peers and agree with each; returns the sockets by rank.

    1. Listen, if there are higher ranks.
    2. Connect to each lower rank, again and again until it listens.
    3. Accept the higher ranks, in any order.

    Raises:
        UsageError: the certificate files cannot be used.
        MpcacheError: this party's own address cannot be listened on.
        PeerError: a peer did not come, showed a wrong certificate, runs something else, or ended
            before all had met.
    """
    me, world = endpoint.rank, len(endpoint.addresses)
    server = client = None
    if endpoint.identity is not None:
        server, client = server_context(endpoint.identity), client_context(endpoint.identity)
    meeting = _Meeting(endpoint.connect_timeout_s)
    listener = _listen(endpoint.addresses[me]) if me + 1 < world else None
    try:
        for rank in range(me):
            dialled = _dial(rank, endpoint.addresses[rank], meeting)
            meeting.socks[rank] = _greeted(dialled, client, hello, [rank], meeting)[1]
        missing = list(range(me + 1, world))
        while listener is not None and missing:
            accepted = _accept(listener, missing, meeting)
            if accepted is not None:
                rank, greeted = _greeted(accepted, server, hello, missing, meeting)
                meeting.socks[rank] = greeted
                missing.remove(rank)
    except BaseException:
        hang_up(list(meeting.socks.values()))
        raise
    finally:
        if listener is not None:
            listener.close()
    return meeting.socks


def _dial(rank: int, address: Address, meeting: _Meeting) -> socket.socket:
    last: Exception | None = None
    while not meeting.over:
        try:
            sock = socket.create_connection(address, timeout=meeting.left)
        except (OSError, OverflowError) as error:
            last = error
        else:
            # A port of the ephemeral range on this host may have connected to itself.
            if sock.getsockname() != sock.getpeername():
                return sock
            sock.close()
        meeting.wait(min(_RETRY, meeting.left))
    why = f"no connection to {_spelled(address)}: {getattr(last, 'strerror', None) or last}"
    raise meeting.missed(peer_name(rank), why)


def _accept(
    listener: socket.socket, missing: Sequence[int], meeting: _Meeting
) -> socket.socket | None:
    """The next connection; None if it says nothing, as port scanners do."""
    while not meeting.wait(meeting.left, listener):
        if meeting.over:
            where = _spelled(listener.getsockname()[:2])
            raise meeting.missed(any_of(missing), f"did not connect to {where}")
    try:
        listener.settimeout(_RETRY)  # the connection may be gone again
        sock, _ = listener.accept()
    except TimeoutError:
        return None
    sock.settimeout(min(_HANDSHAKE, meeting.left))
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
    meeting: _Meeting,
) -> tuple[int, socket.socket]:
    """TLS, if there is a context, then the greeting; the peer's rank and the socket to use."""
    server = hello.rank < expected[0]
    try:
        _tune(sock)
        sock.settimeout(min(_HANDSHAKE, meeting.left))
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
