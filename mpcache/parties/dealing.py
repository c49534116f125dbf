"""The wire between the dealer and the parties: seeds, then a stream of corrections.

The dealer runs ahead of the parties, as far as a bounded queue and the sockets' buffers let it.
Corrections travel as frames of one size, so that their boundaries say nothing but how many bytes
have been dealt; they go to party 1 alone, party 0 gets its seed.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Sequence

import torch

from mpcache.errors import MpcacheError
from mpcache.kernels.prg import SEED_BYTES
from mpcache.parties.transport import Wires
from mpcache.protocols.channel import Spec

CHUNK = 1 << 20  # bytes of corrections in a frame
AHEAD = 64  # frames that wait at party 1
DEALER = 2  # the dealer's rank among the three processes of a two-party run
_FRAME = [Spec((1,)), Spec((CHUNK,), torch.uint8)]


class Sender:
    """The dealer's end: packs corrections into frames for party 1.

    Attributes:
        seconds: time spent waiting for party 1 to take frames.
    """

    def __init__(self, wires: Wires) -> None:
        self.wires = wires
        self.seconds = 0.0
        self._frame = torch.empty(CHUNK, dtype=torch.uint8)
        self._filled = 0

    def emit(self, correction: torch.Tensor) -> None:
        """Append integers of any width to the stream."""
        data = correction.contiguous().view(-1).view(torch.uint8)
        at = 0
        while at < data.numel():
            size = min(CHUNK - self._filled, data.numel() - at)
            self._frame[self._filled : self._filled + size] = data[at : at + size]
            at, self._filled = at + size, self._filled + size
            if self._filled == CHUNK:
                self._send()

    def finish(self) -> None:
        """Send what is left; a frame that is not full is the last."""
        self._frame[self._filled :] = 0
        self._send()

    def _send(self) -> None:
        began = time.perf_counter()
        self.wires.exchange("dealt", {1: [torch.tensor([self._filled]), self._frame]}, {})
        self.seconds += time.perf_counter() - began
        self._filled = 0


class CorrectionStream:
    """Party 1's end: a thread takes frames off the wire, `ring` reads them in order."""

    def __init__(self, wires: Wires) -> None:
        self.wires = wires
        self.seconds = 0.0
        self._queue: queue.Queue[tuple[int, torch.Tensor] | BaseException] = queue.Queue(AHEAD)
        self._chunk = torch.empty(0, dtype=torch.uint8)
        self._at = 0
        self._ended = False
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._receive, name="corrections", daemon=True)
        self._thread.start()

    def _receive(self) -> None:
        filled = CHUNK
        try:
            while filled == CHUNK and not self._stopped.is_set():
                count, frame = self.wires.exchange("dealt", {}, {DEALER: _FRAME})[DEALER]
                filled = int(count.item())
                if not 0 <= filled <= CHUNK:
                    raise MpcacheError(f"the dealer announced a frame of {filled} bytes")
                self._put((filled, frame))
        except BaseException as error:
            self._put(error)

    def _put(self, item: tuple[int, torch.Tensor] | BaseException) -> None:
        while not self._stopped.is_set():
            try:
                self._queue.put(item, timeout=0.2)
                return
            except queue.Full:
                continue

    def ring(self, shape: Sequence[int], dtype: torch.dtype = torch.int64) -> torch.Tensor:
        """The next corrections, integers [shape] of `dtype`.

        Raises:
            PeerError: the dealer is gone.
            MpcacheError: the dealer dealt less than this run needs.
        """
        result = torch.empty(tuple(shape), dtype=dtype)
        out = result.view(-1).view(torch.uint8)
        at = 0
        while at < out.numel():
            if self._at == self._chunk.numel():
                self._next()
            size = min(self._chunk.numel() - self._at, out.numel() - at)
            out[at : at + size] = self._chunk[self._at : self._at + size]
            at, self._at = at + size, self._at + size
        return result

    def _next(self) -> None:
        if self._ended:
            raise MpcacheError("the dealer dealt less than this run needs")
        began = time.perf_counter()
        item = self._queue.get()
        self.seconds += time.perf_counter() - began
        if isinstance(item, BaseException):
            raise item
        filled, frame = item
        self._ended = filled < CHUNK
        self._chunk, self._at = frame[:filled], 0

    def finish(self) -> None:
        """Make sure that nothing is left over.

        Raises:
            MpcacheError: there are corrections that the run did not use.
        """
        left = self._chunk.numel() - self._at
        while not left and not self._ended:
            self._next()
            left = self._chunk.numel()
        if left:
            raise MpcacheError(f"{left} bytes or more of dealt corrections were left over")

    def close(self) -> None:
        """Stop the thread; the wires are closed by their owner."""
        self._stopped.set()


def hand_out_seeds(links: dict[int, Wires], seeds: Sequence[bytes]) -> None:
    """The dealer sends each party its own seed, 16 bytes, and no other."""
    for rank, wires in links.items():
        packed = torch.frombuffer(bytearray(seeds[rank]), dtype=torch.uint8)
        wires.exchange("seed", {rank: [packed]}, {})


def take_seed(wires: Wires) -> bytes:
    """A party receives its seed from the dealer."""
    (packed,) = wires.exchange("seed", {}, {DEALER: [Spec((SEED_BYTES,), torch.uint8)]})[DEALER]
    return packed.numpy().tobytes()
