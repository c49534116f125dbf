"""What a test draws at random: numbers of its own, the same whenever it runs.

So a test that passes passes again, whatever ran before it and on whichever machine. Masks of
parties inside a test's process are among them; parties that are processes draw their own, as
everywhere. What a module draws where it is imported comes from a generator of its own. With
MPCACHE_TEST_SEED=n, n not 0, every test draws others.
"""

from __future__ import annotations

import os
import random
import zlib

import torch

SEED = int(os.environ.get("MPCACHE_TEST_SEED", "0"))

_bytes = random.Random(SEED)


def begin(name: str) -> None:
    """Draw what belongs to the test of this name from here on."""
    start = zlib.crc32(name.encode()) + SEED
    torch.manual_seed(start)
    _bytes.seed(start)


def of_module(name: str) -> torch.Generator:
    """What the module of this name draws from while it is imported, in whichever order."""
    return torch.Generator().manual_seed(zlib.crc32(name.encode()) + SEED)


def dealers_seeds() -> tuple[bytes, bytes]:
    """The seeds that a dealer shares with party 0 and with party 1."""
    return _bytes.randbytes(16), _bytes.randbytes(16)
