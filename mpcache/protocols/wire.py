"""How integers of any number of bits travel: as the machine has them, or packed without gaps."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence

import torch

from mpcache.kernels.packing import pack_bits, packed_size, unpack_bits
from mpcache.protocols.channel import Spec

_NATURAL = {8: torch.uint8, 16: torch.int16, 32: torch.int32, 64: torch.int64}


class Words:
    """Integers [shape] of `bits` bits, 1 to 64, in a message.

    Below a byte and between bytes they are packed, so that n of them take n bits / 8 bytes.

    Attributes:
        natural: whether they travel as what they are.
        spec: what the message shows of them.
    """

    __slots__ = ("bits", "count", "natural", "nbytes", "shape", "spec")

    def __init__(self, shape: Sequence[int], bits: int = 64) -> None:
        self.shape, self.bits = tuple(shape), bits
        self.count = math.prod(self.shape)
        self.natural = bits in _NATURAL
        self.nbytes = packed_size(self.count, bits) if self.count else 0
        if self.natural:
            self.spec = Spec(self.shape, _NATURAL[bits])
        else:
            self.spec = Spec((self.nbytes,), torch.uint8)

    def pack(self, values: torch.Tensor) -> torch.Tensor:
        """The low bits of `values` [shape], integers of any width."""
        if self.natural:
            return values.to(_NATURAL[self.bits])
        if not self.count:
            return torch.empty(0, dtype=torch.uint8)
        return pack_bits(values, self.bits)

    def unpack(self, sent: torch.Tensor) -> torch.Tensor:
        """`values` again [shape]: bytes below 9 bits, else int64; what is above `bits` is free."""
        if not self.natural:
            dtype = torch.uint8 if self.bits < 8 else torch.int64
            if not self.count:
                return torch.empty(self.shape, dtype=dtype)
            return unpack_bits(sent, self.bits, self.count, dtype).reshape(self.shape)
        return sent if self.bits == 8 else sent.to(torch.int64)


@functools.lru_cache(maxsize=1 << 14)
def as_words(shape: Sequence[int], bits: int = 64) -> Words:
    """`Words`, made once for each shape (a tuple or a Size)."""
    return Words(shape, bits)
