"""What a message looks like and what a channel promises. No I/O happens here.

A frame is a header and the raw little-endian elements of its tensors. The header holds a magic
number, the protocol version, the step, the sender's clock (for emulated networks), the label, and
dtype and shape of each tensor. `frame_bytes` is what the frame takes on the wire before TLS; the
cost reading and the transport both call it, so that predicted and measured bytes mean the same.
"""

from __future__ import annotations

import functools
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from mpcache.errors import MpcacheError

DTYPES: tuple[torch.dtype, ...] = (
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
)
MAGIC = 0x6D70
VERSION = 1
MAX_LABEL = 200
MAX_DIMS = 8
MAX_ELEMENTS = 1 << 34
_FIXED = struct.Struct("<HBBIdHB")  # magic, version, flags, step, clock, label length, tensors
_TENSOR = struct.Struct("<BB")  # dtype, number of dimensions
_DIM = struct.Struct("<I")
FIXED_BYTES = _FIXED.size
CLOCK = struct.Struct("<d")
CLOCK_AT = struct.calcsize("<HBBI")  # where the clock stands in a header
ABORT = 1  # flag: this frame carries no tensors; its label is why the sender stops


@dataclass(frozen=True)
class Spec:
    """Shape and dtype of a tensor in a message: all that a transcript shows of it."""

    shape: tuple[int, ...]
    dtype: torch.dtype = torch.int64

    @staticmethod
    def of(tensor: torch.Tensor) -> Spec:
        return _spec(tensor.shape, tensor.dtype)

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @functools.cached_property
    def nbytes(self) -> int:
        return self.elements * self.dtype.itemsize

    @property
    def described(self) -> int:
        """Bytes that a header needs for it."""
        return _TENSOR.size + _DIM.size * len(self.shape)

    @functools.cached_property
    def packed(self) -> bytes:
        """What a header says of it."""
        head = _TENSOR.pack(DTYPES.index(self.dtype), len(self.shape))
        return head + b"".join(_DIM.pack(size) for size in self.shape)

    @functools.cached_property
    def text(self) -> str:
        """What a transcript says of it."""
        return f"{str(self.dtype).removeprefix('torch.')}{list(self.shape)}"

    def __str__(self) -> str:
        return self.text


@functools.lru_cache(maxsize=1 << 14)
def _spec(shape: Sequence[int], dtype: torch.dtype) -> Spec:
    """Made once for each, with what is known of it."""
    return Spec(tuple(shape), dtype)


@dataclass(frozen=True)
class Header:
    """The decoded header of one frame; `clock` is the sender's monotonic time in seconds."""

    step: int
    clock: float
    label: str
    specs: tuple[Spec, ...]
    abort: bool = False


def header_bytes(label: str, specs: Sequence[Spec]) -> int:
    """Size in bytes of a frame's header."""
    return FIXED_BYTES + len(label.encode()) + sum([spec.described for spec in specs])


def frame_bytes(label: str, specs: Sequence[Spec]) -> int:
    """Size in bytes of a frame on the wire, header and payload, before TLS."""
    return header_bytes(label, specs) + sum(spec.nbytes for spec in specs)


def pack_header(header: Header) -> bytes:
    """Encode `header`; the inverse of `unpack_fixed` followed by `unpack_rest`."""
    label = header.label.encode()
    if len(label) > MAX_LABEL:
        raise MpcacheError(f"label of {len(label)} bytes; at most {MAX_LABEL} fit in a frame")
    flags, step = ABORT if header.abort else 0, header.step & 0xFFFFFFFF
    fixed = _FIXED.pack(MAGIC, VERSION, flags, step, header.clock, len(label), len(header.specs))
    return b"".join([fixed, label, *(spec.packed for spec in header.specs)])


@dataclass(frozen=True)
class FixedPart:
    """The first `FIXED_BYTES` of a frame: enough to know how the header goes on."""

    step: int
    clock: float
    abort: bool
    label_bytes: int
    tensors: int


def unpack_fixed(data: bytes | memoryview) -> FixedPart:
    """Decode the fixed part of a header.

    Raises:
        MpcacheError: the bytes are no frame, or of another version, or beyond the limits.
    """
    magic, version, flags, step, clock, label_bytes, tensors = _FIXED.unpack(data)
    if magic != MAGIC:
        raise MpcacheError("the peer does not speak mpcache's protocol")
    if version != VERSION:
        raise MpcacheError(f"the peer speaks frame version {version}, this party {VERSION}")
    if label_bytes > MAX_LABEL:
        raise MpcacheError(
            f"a label of {label_bytes} bytes was announced; the limit is {MAX_LABEL}"
        )
    return FixedPart(step, clock, bool(flags & ABORT), label_bytes, tensors)


def unpack_spec(data: bytes | memoryview) -> tuple[int, int]:
    """Decode (dtype index, number of dimensions) of one tensor description."""
    dtype, dims = _TENSOR.unpack(data)
    if dtype >= len(DTYPES) or dims > MAX_DIMS:
        raise MpcacheError(f"a tensor of unknown dtype {dtype} or {dims} dimensions was announced")
    return dtype, dims


SPEC_BYTES = _TENSOR.size
DIM_BYTES = _DIM.size


def unpack_dims(data: bytes | memoryview) -> tuple[int, ...]:
    """Decode the sizes of one tensor's dimensions."""
    shape = tuple(size for (size,) in _DIM.iter_unpack(data))
    if math.prod(shape) > MAX_ELEMENTS:
        raise MpcacheError(f"a tensor of shape {list(shape)} was announced; it is too large")
    return shape


class Channel(Protocol):
    """The thin layer that sends: one exchange is one step of the protocol.

    An implementation names every frame ``<scope>:<kind>``, checks that both ends agree on label,
    step, dtype and shape, records the step in its ledger, and raises `PeerError` when a peer is
    gone, late or elsewhere in the program.
    """

    rank: int
    world: int

    def exchange(
        self,
        kind: str,
        send: Mapping[int, Sequence[torch.Tensor]],
        receive: Mapping[int, Sequence[Spec]],
    ) -> dict[int, list[torch.Tensor]]:
        """Send one frame to each peer in `send`, and wait for one from each peer in `receive`.

        Args:
            kind: what this message is, such as ``masked`` or ``open``; ends the label.
            send: tensors for each peer, by rank.
            receive: what each peer's frame must hold, by rank.

        Returns:
            The received tensors by rank, in the order of `receive`.

        Raises:
            PeerError: a peer is gone, late, stopped, or sent another label, dtype or shape.
        """
        ...
