"""Between the dealer and the parties: seeds, then a stream of corrections.

The dealer runs ahead of the parties: live, as far as a bounded queue and the sockets' buffers let
it, or days before them, into a store. Corrections travel as frames of one size, so that their
boundaries say nothing but how many bytes have been dealt; they go to party 1 alone, party 0 gets
its seed. In a file the frames stand one after the other, and its end is the end of the last.
"""

from __future__ import annotations

import io
import queue
import threading
import time
from collections.abc import Callable, Sequence

import torch

from mpcache.errors import MpcacheError
from mpcache.kernels.prg import SEED_BYTES
from mpcache.parties.transport import Wires
from mpcache.protocols.channel import Spec

CHUNK = 1 << 20  # bytes of corrections in a frame
AHEAD = 64  # frames that wait at party 1
GRANT = AHEAD // 2  # frames that the dealer may send once there is room for them
_ALIVE = 4  # how often in a timeout party 1 says that there is no room yet
DEALER = 2  # the dealer's rank among the three processes of a two-party run
_FRAME = [Spec((1,)), Spec((CHUNK,), torch.uint8)]
_GRANTED = [Spec((1,))]
Frame = tuple[int, torch.Tensor]  # how many bytes of it count, and CHUNK bytes
Room = Callable[[int, float], bool]  # waits for room for so many frames, and so many seconds


class Sender:
    """The dealer's end: packs corrections into frames for party 1.

    Args:
        take: gets each frame, which is overwritten afterwards; the last is not full.

    Attributes:
        seconds: time spent until frames were taken.
    """

    def __init__(self, take: Callable[[Frame], None]) -> None:
        self.take = take
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
        """Hand over what is left; a frame that is not full is the last."""
        self._frame[self._filled :] = 0
        self._send()

    def _send(self) -> None:
        began = time.perf_counter()
        self.take((self._filled, self._frame))
        self.seconds += time.perf_counter() - began
        self._filled = 0


class CorrectionStream:
    """Party 1's end: a thread takes frames ahead of their use, `ring` reads them in order.

    Args:
        give: waits for the next frame; not asked again after one that is not full. It is told how
            to wait for room in the queue.
    """

    def __init__(self, give: Callable[[Room], Frame]) -> None:
        self.give = give
        self.seconds = 0.0
        self._queue: queue.Queue[Frame | BaseException] = queue.Queue(AHEAD)
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
                filled, frame = self.give(self._room)
                self._put((filled, frame))
        except BaseException as error:
            self._put(error)

    def _room(self, frames: int, seconds: float) -> bool:
        end = time.monotonic() + seconds
        while self._queue.qsize() + frames > AHEAD and not self._stopped.wait(0.01):
            if time.monotonic() > end:
                return False
        return True

    def _put(self, item: Frame | BaseException) -> None:
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
        """Stop the thread; wires and files are closed by their owner."""
        self._stopped.set()


def to_wires(wires: Wires) -> Callable[[Frame], None]:
    """For a `Sender`: frames go to party 1 as they are full, and as it has room for them.

    Party 1 may take its time, with its weights for example, as long as it says that it is there.
    """
    granted = 0

    def take(frame: Frame) -> None:
        nonlocal granted
        while not granted:
            granted = int(wires.exchange("room", {}, {1: _GRANTED})[1][0].item())
            if not 0 <= granted <= AHEAD:
                raise MpcacheError(f"party 1 announced room for {granted} frames")
        granted -= 1
        filled, data = frame
        wires.exchange("dealt", {1: [torch.tensor([filled]), data]}, {})

    return take


def from_wires(wires: Wires) -> Callable[[Room], Frame]:
    """For a `CorrectionStream`: frames come from the dealer."""
    granted = 0

    def grant(frames: int) -> None:
        wires.exchange("room", {DEALER: [torch.tensor([frames])]}, {})

    def give(room: Room) -> Frame:
        nonlocal granted
        if not granted:
            while not room(GRANT, wires.timeout_s / _ALIVE):
                grant(0)
            grant(GRANT)
            granted = GRANT
        granted -= 1
        count, frame = wires.exchange("dealt", {}, {DEALER: _FRAME})[DEALER]
        filled = int(count.item())
        if not 0 <= filled <= CHUNK:
            raise MpcacheError(f"the dealer announced a frame of {filled} bytes")
        return filled, frame

    return give


def to_file(write: Callable[[memoryview], None]) -> Callable[[Frame], None]:
    """For a `Sender`: the bytes of frames go to `write`."""

    def take(frame: Frame) -> None:
        filled, data = frame
        write(memoryview(data.numpy())[:filled])  # type: ignore[arg-type]

    return take


def from_file(descriptor: int) -> Callable[[Room], Frame]:
    """For a `CorrectionStream`: frames come from an open file, which is closed at its end."""
    file = io.FileIO(descriptor)  # its thread reads alone, and owns it from here on

    def give(_: Room) -> Frame:
        frame = torch.empty(CHUNK, dtype=torch.uint8)
        place = memoryview(frame.numpy())  # type: ignore[arg-type]
        filled = 0
        while filled < CHUNK and (got := file.readinto(place[filled:])):
            filled += got
        if filled < CHUNK:
            file.close()
        return filled, frame

    return give


def hand_out_seeds(links: dict[int, Wires], seeds: Sequence[bytes]) -> None:
    """The dealer sends each party its own seed, 16 bytes, and no other."""
    for rank, wires in links.items():
        packed = torch.frombuffer(bytearray(seeds[rank]), dtype=torch.uint8)
        wires.exchange("seed", {rank: [packed]}, {})


def take_seed(wires: Wires) -> bytes:
    """A party receives its seed from the dealer."""
    (packed,) = wires.exchange("seed", {}, {DEALER: [Spec((SEED_BYTES,), torch.uint8)]})[DEALER]
    return packed.numpy().tobytes()
