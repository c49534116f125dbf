"""Ring elements from a 16-byte seed: AES-128 in counter mode (NIST SP 800-38A, section 6.5).

Two holders of a seed who make the same calls get the same elements. The counter block that a
stream begins with is its number (8 bytes, big-endian) and 8 zero bytes, so streams of one seed
that have different numbers never meet. Words are little-endian.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from mpcache.errors import UsageError
from mpcache.kernels.shapes import buffer

SEED_BYTES = 16
_CHUNK = 1 << 18  # bytes; enciphered and masked while they are in the second-level cache
_SLACK = 15  # older releases of cryptography want this much room behind what they write
_ZEROS = memoryview(bytes(_CHUNK))
_STORAGE = {8: torch.uint8, 16: torch.int16, 32: torch.int32, 64: torch.int64}
_NARROWEST = tuple(
    next(dtype for width, dtype in _STORAGE.items() if bits <= width) for bits in range(1, 65)
)
_WIDTH = {dtype: width for width, dtype in _STORAGE.items()} | {torch.int8: 8}


def storage(bits: int) -> torch.dtype:
    """The narrowest dtype that holds elements of `bits` bits: uint8, int16, int32 or int64.

    Raises:
        UsageError: unless 1 <= bits <= 64.
    """
    if not 1 <= bits <= 64:
        raise UsageError(f"Ring elements of {bits} bits were asked for; expected 1 to 64.")
    return _NARROWEST[bits - 1]


class Stream:
    """Consecutive pieces of the keystream of one seed; not for use by two threads at once.

    Args:
        seed: 16 secret bytes.
        number: which of the 2^64 streams of this seed.

    Raises:
        UsageError: when the seed is not 16 bytes or the number not in [0, 2^64).
    """

    def __init__(self, seed: bytes, number: int = 0) -> None:
        if len(seed) != SEED_BYTES:
            raise UsageError(f"A seed has {SEED_BYTES} bytes; this one has {len(seed)}.")
        if not 0 <= number < 1 << 64:
            raise UsageError("A stream's number is expected in [0, 2^64).")
        if sys.byteorder != "little":
            raise UsageError("Streams are read as little-endian words; this machine is not.")
        block = number.to_bytes(8, "big") + bytes(8)
        self._seed = seed
        self._cipher = Cipher(algorithms.AES(seed), modes.CTR(block)).encryptor()
        self._position = 0

    def branch(self, number: int) -> Stream:
        """Stream `number` of the same seed, from its beginning; apart from all other numbers."""
        return Stream(self._seed, number)

    def __repr__(self) -> str:
        return f"Stream(at byte {self._position})"

    @property
    def position(self) -> int:
        """Bytes of the keystream handed out so far."""
        return self._position

    def bytes(self, count: int) -> bytes:
        """The next `count` bytes."""
        out = np.empty(count + _SLACK, dtype=np.uint8)
        self._fill(out, count)
        return out[:count].tobytes()

    def ring(self, shape: int | Sequence[int]) -> torch.Tensor:
        """Uniform elements of Z/2^64: int64 of `shape`."""
        return self.bits(shape, 64)

    def bits(
        self, shape: int | Sequence[int], bits: int, dtype: torch.dtype | None = None
    ) -> torch.Tensor:
        """Uniform elements mod 2^bits of `shape`.

        Args:
            shape: of the result.
            bits: 1 to 64.
            dtype: torch.uint8, int8, int16, int32 or int64; by default the narrowest that fits.

        Returns:
            Values in [0, 2^bits); where `bits` is the full width of a signed dtype, its whole
            range (two's complement). One element takes as many bytes of the stream as `dtype`.

        Raises:
            UsageError: when `dtype` is another one or too narrow.
        """
        narrowest = storage(bits)
        dtype = dtype or narrowest
        if _WIDTH.get(dtype, 0) < bits:
            raise UsageError(f"Elements of {bits} bits do not fit into {dtype}.")
        shape = (shape,) if isinstance(shape, int) else tuple(shape)
        size = math.prod(shape) * dtype.itemsize
        room = buffer(size + _SLACK)
        out = torch.from_numpy(room[:size]).view(dtype)
        self._fill(room, size, out if bits < _WIDTH[dtype] else None, bits)
        return out.view(shape)

    def _fill(
        self, room: np.ndarray, size: int, words: torch.Tensor | None = None, bits: int = 0
    ) -> None:
        """Write the next `size` bytes of keystream to `room`, which has some more.

        Args:
            words: the same memory as words of which `bits` low bits are kept, if not all are.
        """
        octets = memoryview(room.data)
        for begin in range(0, size, _CHUNK):
            count = min(_CHUNK, size - begin)
            self._cipher.update_into(_ZEROS[:count], octets[begin:])
            if words is not None:
                width = words.element_size()
                part = words.numpy()[begin // width : (begin + count) // width]
                np.bitwise_and(part, part.dtype.type((1 << bits) - 1), out=part)
        self._position += size


def expand(seed: bytes, count: int, bits: int = 64, counter: int = 0) -> torch.Tensor:
    """`count` uniform elements mod 2^bits from the stream `counter` of `seed`.

    Returns:
        [count] in the narrowest dtype that holds `bits` bits; int64 for 64.

    Raises:
        UsageError: on a seed that is not 16 bytes, or bits outside [1, 64].
    """
    return Stream(seed, counter).bits(count, bits)
