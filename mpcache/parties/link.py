"""One connection to one peer: frames in, frames out, without ever blocking.

A link holds at most one frame on its way out and one that it expects. `push` and `pull` move what
the socket takes or has, and return; the caller decides when to wait. Large tensors go from and to
their own memory; headers and small tensors pass through a buffer, where bytes of the peer's next
frame stay until they are asked for.
"""

from __future__ import annotations

import select
import socket
import ssl
import time
from collections import deque
from collections.abc import Sequence

import torch

from mpcache.errors import MpcacheError
from mpcache.parties.interrupts import begin_write, end_write
from mpcache.parties.names import printable
from mpcache.protocols.channel import (
    CLOCK,
    CLOCK_AT,
    DIM_BYTES,
    DTYPES,
    FIXED_BYTES,
    MAGIC,
    MAX_LABEL,
    SPEC_BYTES,
    Header,
    Spec,
    pack_header,
    unpack_dims,
    unpack_fixed,
    unpack_spec,
)

SMALL = 1 << 15  # bytes of payload that are copied next to their header
ENDED = "the connection ended"
_BUFFER = 1 << 16  # bytes; holds any header and any small frame
_LAST_FRAME = 0.5  # seconds that the end of a frame may take before a party stops
_BURST = 1 << 20  # bytes moved one way before the other way gets its turn
_MAGIC = MAGIC.to_bytes(2, "little")
_WANTS = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Broken(Exception):
    """The link cannot go on; the text says why."""


def raw_bytes(tensor: torch.Tensor) -> memoryview:
    """The elements of a contiguous CPU tensor as writable bytes, sharing its memory; not empty."""
    return memoryview(tensor.numpy()).cast("B")  # type: ignore[arg-type]


def read_header(data: memoryview) -> Header | None:
    """Decode a header; None if more bytes are needed.

    Raises:
        MpcacheError: the bytes are no frame of this version.
    """
    if len(data) < FIXED_BYTES:
        if not _MAGIC.startswith(data[:2]):
            raise MpcacheError("the peer does not speak mpcache's protocol")
        return None
    fixed = unpack_fixed(data[:FIXED_BYTES])
    at = FIXED_BYTES + fixed.label_bytes
    label = bytes(data[FIXED_BYTES:at]).decode(errors="replace")
    specs = []
    for _ in range(fixed.tensors):
        if len(data) < at + SPEC_BYTES:
            return None
        dtype, dims = unpack_spec(data[at : at + SPEC_BYTES])
        at += SPEC_BYTES
        if len(data) < at + dims * DIM_BYTES:
            return None
        specs.append(Spec(unpack_dims(data[at : at + dims * DIM_BYTES]), DTYPES[dtype]))
        at += dims * DIM_BYTES
    if len(data) < at:
        return None
    return Header(fixed.step, fixed.clock, label, tuple(specs), fixed.abort)


class Link:
    """A connected socket to party `rank`; `sent` and `received` count bytes of frames on it.

    Args:
        sock: connected and through its handshakes; this link makes it non-blocking.
        rank: the peer's rank.
        rtt_ms, mbps: the emulated network, 0 for none. See `due`.
    """

    def __init__(
        self, sock: socket.socket, rank: int, rtt_ms: float = 0.0, mbps: float = 0.0
    ) -> None:
        sock.setblocking(False)
        self.sock, self.rank = sock, rank
        self.sent = self.received = 0
        self.moved = 0  # counts anything that shows the peer alive
        self.same_host = _same_host(sock)
        self._tls = sock if isinstance(sock, ssl.SSLSocket) else None
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        self._buffer = memoryview(bytearray(_BUFFER))
        self._start = self._end = 0  # unread bytes in the buffer
        self._out: deque[memoryview] = deque()
        self._out_wants, self._in_wants = select.POLLOUT, select.POLLIN
        self._header: Header | None = None  # its header has not come yet
        self._into: deque[memoryview] = deque()
        self._right = b""  # what that header must read, except for the clock
        self._frame = 0  # bytes of that frame, for `due`
        self._clock = 0.0
        self._emulated = bool(rtt_ms or mbps)
        self._delay, self._seconds_per_byte = rtt_ms / 2e3, 8e-6 / mbps if mbps else 0.0
        self._idle_from = 0.0  # when the emulated link has passed on all earlier frames

    # --- sending -------------------------------------------------------------------------------

    def send(self, header: Header, tensors: Sequence[torch.Tensor]) -> None:
        """Queue one frame; `tensors` are contiguous, on the CPU, and described by `header`."""
        head = pack_header(header)
        if sum(tensor.nbytes for tensor in tensors) <= SMALL:
            parts = [head, *(tensor.numpy() for tensor in tensors)]
            self._out.append(memoryview(b"".join(parts)))  # type: ignore[arg-type]
        else:
            self._out.append(memoryview(head))
            self._out.extend(raw_bytes(tensor) for tensor in tensors if tensor.numel())

    @property
    def sending(self) -> bool:
        """Whether a frame is only partly out."""
        return bool(self._out)

    def push(self) -> bool:
        """Write what the socket takes. True once nothing is left to write."""
        if not self._out:
            return True
        begin_write()
        try:
            return self._write()
        finally:
            end_write()

    def _write(self) -> bool:
        budget = _BURST
        while self._out and budget > 0:
            part = self._out[0]
            try:
                count = self.sock.send(part)
            except _WANTS as wants:
                reading = isinstance(wants, ssl.SSLWantReadError)
                self._out_wants = select.POLLIN if reading else select.POLLOUT
                return False
            except OSError:
                raise Broken(ENDED) from None
            self._out_wants = select.POLLOUT
            self.sent += count
            self.moved += count
            budget -= count
            if count == len(part):
                self._out.popleft()
            else:
                self._out[0] = part[count:]
        return not self._out

    # --- receiving -----------------------------------------------------------------------------

    def expect(self, header: Header) -> list[torch.Tensor]:
        """Say what the next frame must be; `pull` then fills the tensors returned here."""
        tensors = [torch.empty(spec.shape, dtype=spec.dtype) for spec in header.specs]
        self._header = header
        self._right = pack_header(header)
        self._into.extend(raw_bytes(tensor) for tensor in tensors if tensor.numel())
        if self._emulated:
            self._frame = len(self._right) + sum(spec.nbytes for spec in header.specs)
        return tensors

    @property
    def receiving(self) -> bool:
        """Whether the expected frame has not come whole."""
        return self._header is not None or bool(self._into)

    def pull(self) -> bool:
        """Read what has come. True once the expected frame is whole.

        Raises:
            Broken: the connection ended, the peer stopped, or this is not the expected frame.
        """
        budget = _BURST
        while True:
            self._consume()
            if not self.receiving:
                return True
            if budget <= 0:
                return False
            count = self._read()
            if not count:
                return False
            budget -= count

    def _read(self) -> int:
        """Receive once, into the tensor that is being filled or into the buffer; 0 if dry."""
        direct = self._header is None
        if not direct and self._start:
            left = self._end - self._start
            self._buffer[:left] = bytes(self._buffer[self._start : self._end])
            self._start, self._end = 0, left
        target = self._into[0] if direct else self._buffer[self._end :]
        try:
            count = self.sock.recv_into(target)
        except _WANTS as wants:
            writing = isinstance(wants, ssl.SSLWantWriteError)
            self._in_wants = select.POLLOUT if writing else select.POLLIN
            return 0
        except OSError:
            count = 0
        if not count:
            raise Broken(ENDED)
        self._in_wants = select.POLLIN
        self.moved += count
        if direct:
            self._advance(count)
        else:
            self._end += count
        return count

    def _advance(self, count: int) -> None:
        """Note that `count` bytes of the tensor that is being filled are there."""
        self.received += count
        if count == len(self._into[0]):
            self._into.popleft()
        else:
            self._into[0] = self._into[0][count:]

    def _consume(self) -> None:
        """Use what the buffer holds of the expected frame; leave the rest."""
        if self._header is not None and self._start < self._end:
            self._check_header(self._header)
        while self._header is None and self._into and self._start < self._end:
            target = self._into[0]
            count = min(len(target), self._end - self._start)
            target[:count] = self._buffer[self._start : self._start + count]
            self._start += count
            self._advance(count)
        if self._start == self._end:
            self._start = self._end = 0

    def _check_header(self, expected: Header) -> None:
        data, right = self._buffer[self._start : self._end], self._right
        size, after = len(right), CLOCK_AT + CLOCK.size
        if data[:CLOCK_AT] == right[:CLOCK_AT] and data[after:size] == right[after:]:
            (self._clock,) = CLOCK.unpack_from(data, CLOCK_AT)
            self._start += size
            self.received += size
            self._header = None
            return
        try:
            header = read_header(data)
        except MpcacheError as error:
            raise Broken(str(error)) from None
        if header is not None:
            raise Broken(_difference(expected, header))

    def last_words(self) -> str:
        """Why the peer stopped, if it said so before the connection ended; else empty."""
        try:
            while self.pull():
                self._header = Header(0, 0.0, "", ())
        except Broken as broken:
            return str(broken) if str(broken).startswith("stopped") else ""
        return ""

    # --- waiting -------------------------------------------------------------------------------

    def wait(self, seconds: float) -> bool:
        """Wait for something to read. False if nothing came."""
        return self.pending or bool(self._poll.poll(seconds * 1e3))

    @property
    def pending(self) -> bool:
        """Whether there is something to read that polling the socket would not show."""
        if not self.receiving:
            return False
        return self._start < self._end or (self._tls is not None and self._tls.pending() > 0)

    @property
    def wants(self) -> int:
        """What to poll the socket for: POLLIN, POLLOUT, both or 0."""
        out = self._out_wants if self.sending else 0
        return out | (self._in_wants if self.receiving else 0)

    @property
    def clock(self) -> float:
        """When the peer began to send the frame that came last, on its own monotonic clock."""
        return self._clock

    def due(self) -> float:
        """When the frame that came last is delivered on the emulated network (monotonic seconds).

        One direction of a link passes on one frame after the other at `mbps`, and each takes half
        of `rtt_ms` on top. Both ends must run on one machine, whose clock they share.
        """
        now = time.monotonic()
        clock = self._clock if self._clock <= now else now  # also for a clock that is no number
        self._idle_from = max(self._idle_from, clock) + self._frame * self._seconds_per_byte
        return self._idle_from + self._delay

    # --- ending --------------------------------------------------------------------------------

    def say_abort(self, step: int, reason: str) -> None:
        """Tell the peer why this party stops, behind a frame that is partly out; it has a moment
        to take that. Never raises."""
        label = reason.encode()[:MAX_LABEL].decode(errors="ignore")
        end = time.monotonic() + _LAST_FRAME
        try:
            self.send(Header(step, time.monotonic(), label, (), abort=True), ())
            while not self.push() and (left := end - time.monotonic()) > 0:
                poll = select.poll()
                poll.register(self.sock, self._out_wants)
                poll.poll(left * 1e3)
        except (Broken, ValueError):
            self._out.clear()


def _same_host(sock: socket.socket) -> bool:
    """Whether both ends have one address, and so one clock."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return True
    return bool(sock.getsockname()[0] == sock.getpeername()[0])


def _difference(expected: Header, got: Header) -> str:
    """What is wrong with a frame: both labels, both shapes or both steps."""
    if got.abort:
        return f"stopped: {printable(got.label)}"
    if got.label != expected.label:
        return f"sent {printable(got.label)!r} while this party is at {expected.label!r}"
    if got.specs != expected.specs:
        ours, theirs = (", ".join(map(str, h.specs)) or "nothing" for h in (expected, got))
        return (
            f"sent {printable(theirs)} as {printable(got.label)!r};"
            f" this party expects {ours} as {expected.label!r}"
        )
    return (
        f"sent {printable(got.label)!r} as step {got.step};"
        f" this party is at step {expected.step}, {expected.label!r}"
    )


def hang_up(socks: Sequence[socket.socket], seconds: float = 1.0) -> None:
    """Close connections such that the peers can read what was sent last. Never raises.

    A socket that is closed with unread bytes resets its connection, and the peer may lose what
    was on its way. So: send no more, read until the peers close or `seconds` are over, close.
    """
    open_socks = {}
    poll = select.poll()
    for sock in socks:
        try:
            sock.setblocking(False)
            sock.shutdown(socket.SHUT_WR)  # an SSLSocket reads and writes raw bytes from here on
            poll.register(sock, select.POLLIN)
            open_socks[sock.fileno()] = sock
        except (OSError, ValueError):
            continue
    end = time.monotonic() + seconds
    while open_socks and (left := end - time.monotonic()) > 0:
        for fd, _ in poll.poll(left * 1e3):
            try:
                ended = not open_socks[fd].recv(_BURST)
            except BlockingIOError:
                continue
            except OSError:
                ended = True
            if ended:
                poll.unregister(fd)
                del open_socks[fd]
    for sock in socks:
        sock.close()
