"""Gumbel noise: the position of the greatest of x_i + T g_i is drawn from softmax(x / T).

g = -log(-log u) for u uniform in (0, 1) (Gumbel, 1954; as a way to draw, Maddison et al., NeurIPS
2014). From 64 uniform bits: 1 - u is (n + 1/2) / 2^64, so that g stays between -3.61 and 45.06,
and a draw misses a tail of 2^-65 above. No precision is lost where g is large: 1 - u is held as a
small number, and -log u is -log1p(u - 1).
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Sequence

import torch

from mpcache.kernels.prg import Stream

LEAST, MOST = -math.log(53 * math.log(2)), 65 * math.log(2)
SPREAD = MOST - LEAST


def gumbel(words: torch.Tensor) -> torch.Tensor:
    """Gumbel noise, float64 of the shape of `words`, uniform int64."""
    high, low = (words >> 32) & 0xFFFFFFFF, words & 0xFFFFFFFF
    above = (high.to(torch.float64) * 2.0**32 + low.to(torch.float64) + 0.5) * 2.0**-64
    above = above.clamp(max=1 - 2.0**-53)  # greater ones round to 1, where g has no value
    return -torch.log(-torch.log1p(-above))


def fresh(shape: Sequence[int]) -> torch.Tensor:
    """Gumbel noise from the system's own generator."""
    drawn = bytearray(secrets.token_bytes(8 * math.prod(shape)))
    return gumbel(torch.frombuffer(drawn, dtype=torch.int64).reshape(tuple(shape)))


def from_key(key: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Gumbel noise that 16 bytes, as integers [16], expand to."""
    return gumbel(Stream(bytes(key.tolist())).ring(tuple(shape)))
