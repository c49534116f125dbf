"""The wires of one party: labelled frames to and from every peer, over TCP and TLS.

`connect` brings the parties together, `Wires.exchange` is one step of the protocol. Small frames
are written, then awaited; large ones move both ways at once in one thread, so that two parties
that send at the same time cannot block each other.
"""

from __future__ import annotations

import select
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from types import TracebackType
from typing import NoReturn

import torch

from mpcache.errors import MpcacheError, PeerError, UsageError
from mpcache.parties.dial import Address, Endpoint, meet
from mpcache.parties.handshake import Hello
from mpcache.parties.link import ENDED, Broken, Link, hang_up
from mpcache.parties.names import peer_name
from mpcache.parties.waiting import wait_until
from mpcache.protocols.channel import DTYPES, MAX_DIMS, Header, Spec
from mpcache.protocols.ledger import Ledger

__all__ = ["Address", "Endpoint", "Wires", "connect", "peer_name"]

_MAX_TENSORS = 255
Tensors = Mapping[int, Sequence[torch.Tensor]]
Specs = dict[int, tuple[Spec, ...]]


def connect(endpoint: Endpoint, hello: Hello, ledger: Ledger) -> Wires:
    """Meet all peers and agree with them on `hello`; see `dial.meet` for what is raised.

    Raises:
        UsageError: `endpoint`, `hello` and `ledger` are not about the same rank and world.
    """
    world = len(endpoint.addresses)
    if {(hello.rank, hello.world), (ledger.rank, ledger.world)} != {(endpoint.rank, world)}:
        raise UsageError(
            f"the endpoint is party {endpoint.rank} of {world}, the greeting party {hello.rank} of"
            f" {hello.world}, the ledger party {ledger.rank} of {ledger.world}: they must agree"
        )
    return Wires(
        meet(endpoint, hello),
        ledger,
        timeout_s=endpoint.timeout_s,
        rtt_ms=endpoint.rtt_ms,
        mbps=endpoint.mbps,
    )


class Wires:
    """Implements `mpcache.protocols.channel.Channel` over one connected socket a peer.

    As a context manager it closes in order, or on an exception tells the peers why and closes.
    Not to be used from two threads at once.

    Args:
        socks: connected sockets to all peers, by rank.
        ledger: where every step is recorded; its path begins the labels.
        timeout_s: how long to wait without any progress, in seconds.
        rtt_ms, mbps: the emulated network, 0 for none.
    """

    def __init__(
        self,
        socks: Mapping[int, socket.socket],
        ledger: Ledger,
        *,
        timeout_s: float = 120.0,
        rtt_ms: float = 0.0,
        mbps: float = 0.0,
    ) -> None:
        self.rank, self.world = ledger.rank, ledger.world
        self.ledger = ledger
        self.timeout_s = timeout_s
        self.emulated = bool(rtt_ms or mbps)
        self._links = {rank: Link(sock, rank, rtt_ms, mbps) for rank, sock in socks.items()}
        self._step = 0
        self._ended = ""
        self._closed = False

    @property
    def sent_bytes(self) -> dict[int, int]:
        """Bytes of frames that went out to each peer, before TLS; counted at the socket."""
        return {rank: link.sent for rank, link in self._links.items()}

    @property
    def received_bytes(self) -> dict[int, int]:
        """Bytes of frames that came in from each peer, before TLS; counted at the socket."""
        return {rank: link.received for rank, link in self._links.items()}

    # --- the exchange --------------------------------------------------------------------------

    def exchange(
        self, kind: str, send: Tensors, receive: Mapping[int, Sequence[Spec]]
    ) -> dict[int, list[torch.Tensor]]:
        """See `Channel.exchange`. Tensors on a device are sent from the CPU; all arrive there.

        Raises:
            PeerError: a peer is gone, late, stopped, or sent another label, dtype or shape.
            MpcacheError: a tensor or a peer that cannot be sent, or these wires have ended.
        """
        began, busy = time.monotonic(), time.process_time()
        label = f"{self.ledger.path}:{kind}"
        if self._ended:
            raise MpcacheError(f"no exchange {label!r}: the wires {self._ended}")
        ready = {peer: [_sendable(t, label) for t in tensors] for peer, tensors in send.items()}
        clock = time.monotonic()  # the tensors are ready: what follows is the transport's own time
        sent: Specs = {peer: tuple(map(Spec.of, tensors)) for peer, tensors in ready.items()}
        wanted: Specs = {peer: tuple(specs) for peer, specs in receive.items()}
        for specs in (sent, wanted):
            self._validate(specs, label)
        step = self._step
        self._step += 1
        out = True
        for peer, tensors in ready.items():
            link = self._links[peer]
            link.send(Header(step, clock, label, sent[peer]), tensors)
            out &= self._push(link, label)
        received = {
            peer: self._links[peer].expect(Header(step, 0.0, label, specs))
            for peer, specs in wanted.items()
        }
        if not (out and self._pull_each(wanted, label)):
            self._duplex(label, [self._links[peer] for peer in {**sent, **wanted}])
        if self.emulated and wanted:
            wait_until(max(self._links[peer].due() for peer in wanted))
        waited, moved = self._split(began, clock, wanted)
        self.ledger.record(label, sent, wanted, waited, moved, time.process_time() - busy)
        return received

    def _split(self, began: float, ready: float, wanted: Iterable[int]) -> tuple[float, float]:
        """Seconds until the last peer began to send, and the others of an exchange that ends now.

        Args:
            began, ready: when the exchange began, and when this party began to send.
        """
        links, end = [self._links[peer] for peer in wanted], time.monotonic()
        started = ready
        for link in links:
            # without a common clock nobody knows when a peer began
            started = max(started, min(link.clock, end) if link.same_host else end)
        return started - ready, (ready - began) + (end - started)

    def _validate(self, frames: Specs, label: str) -> None:
        for peer, specs in frames.items():
            if peer not in self._links:
                raise MpcacheError(f"{label}: {peer_name(peer)} is no peer of {self.rank}")
            if len(specs) > _MAX_TENSORS:
                raise MpcacheError(f"{label}: {len(specs)} tensors; a frame takes {_MAX_TENSORS}")
            for spec in specs:
                if spec.dtype not in DTYPES or len(spec.shape) > MAX_DIMS:
                    raise MpcacheError(f"{label}: {spec} does not fit in a frame")

    def _push(self, link: Link, label: str) -> bool:
        try:
            return link.push()
        except Broken as broken:
            self._fail(link, label, broken)

    def _pull_each(self, peers: Iterable[int], label: str) -> bool:
        """Read one peer after the other; False as soon as a frame does not come at once."""
        for peer in peers:
            link = self._links[peer]
            if not link.wait(self.timeout_s):
                self._fail(link, label, None)
            try:
                if not link.pull():
                    return False
            except Broken as broken:
                self._fail(link, label, broken)
        return True

    def _duplex(self, label: str, links: Sequence[Link]) -> None:
        """Move frames both ways with all peers, whichever is ready."""
        poll = select.poll()
        for link in links:
            poll.register(link.sock, 0)
        by_socket = {link.sock.fileno(): link for link in links}
        busy = set(links)
        moved = {link: (link.moved, time.monotonic()) for link in links}
        ready = set(links)
        while busy:
            for link in ready & busy:
                try:
                    if link.push() & link.pull():
                        busy.remove(link)
                        poll.unregister(link.sock)
                    else:
                        poll.modify(link.sock, link.wants)
                except Broken as broken:
                    self._fail(link, label, broken)
            now = time.monotonic()
            for link in busy:
                count, since = moved[link]
                if link.moved != count:
                    moved[link] = (link.moved, now)
                elif now - since >= self.timeout_s:
                    self._fail(link, label, None)
            if busy:
                oldest = min(moved[link][1] for link in busy)
                left = max(0.0, oldest + self.timeout_s - now)
                pending = {link for link in busy if link.pending}
                events = poll.poll(0 if pending else left * 1e3 + 1)
                ready = pending | {by_socket[fd] for fd, _ in events}

    def _fail(self, link: Link, label: str, broken: Broken | None) -> NoReturn:
        """Raise what a broken or silent (None) link means."""
        if broken is None:
            reason = f"no answer for {self.timeout_s:g} s"
        else:
            # A write may fail before the frame in which the peer says why was read.
            reason = str(broken)
            if reason == ENDED:
                reason = link.last_words() or reason
        self._ended = f"ended at {label!r}"
        raise PeerError(peer_name(link.rank), label, reason)

    # --- ending --------------------------------------------------------------------------------

    def abort(self, reason: str) -> None:
        """Tell all peers why this party stops, as well as can be done, and close. Never raises.

        Args:
            reason: one sentence without secrets; cut to what fits in a frame.
        """
        self._end(reason)

    def close(self) -> None:
        """Close all connections after the last exchange. Never raises."""
        self._end("")

    def _end(self, reason: str) -> None:
        if self._closed:
            return
        self._closed = True
        self._ended = self._ended or ("stopped" if reason else "are closed")
        links = self._links.values()
        if reason:
            for link in links:
                link.say_abort(self._step, reason)
            hang_up([link.sock for link in links])
        for link in links:
            link.sock.close()

    def __enter__(self) -> Wires:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None:
            self.close()
        else:
            # Other exceptions may quote values; their type says enough.
            self.abort(str(error) if isinstance(error, MpcacheError) else type(error).__name__)


def _sendable(tensor: torch.Tensor, label: str) -> torch.Tensor:
    """`tensor` as it can be sent: on the CPU, contiguous."""
    if tensor.device.type == "meta":
        raise MpcacheError(f"{label}: a tensor without data cannot be sent")
    return tensor.contiguous() if tensor.is_cpu else tensor.cpu().contiguous()
