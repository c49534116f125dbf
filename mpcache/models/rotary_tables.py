"""Public rotary angles by position."""

from __future__ import annotations

import functools
from typing import Any

import torch

from mpcache.models.spec import ModelSpec, RopeScaling
from mpcache.protocols.exact import exact, numbers

SPAN = 64  # positions that share one exact angle, to which that of a place among them is added


def rotary_tables(spec: ModelSpec, start: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin [count, head_dim / 2] for positions start .. start + count - 1, float64.

    With `spec.rope_scaling`, long wavelengths are stretched by its factor and the middle ones
    blended, as llama-3.1 does. The same to the last bit on every machine: see `protocols.exact`.
    """
    shape = (spec.rope_base, spec.head_dim // 2, spec.rope_scaling)
    first, last = start // SPAN, (start + count - 1) // SPAN
    near = _near(*shape)
    far = torch.stack([_angle(*shape, SPAN * block) for block in range(first, last + 1)])
    (c, s), (cos, sin) = near.unbind(1), far.unsqueeze(1).unbind(2)
    wanted = slice(start - first * SPAN, start - first * SPAN + count)
    both = (cos * c - sin * s, sin * c + cos * s)
    return tuple(table.flatten(0, 1)[wanted] for table in both)  # type: ignore[return-value]


@functools.cache
def _near(base: float, half: int, scaling: RopeScaling | None) -> torch.Tensor:
    """[SPAN, 2, half] of the first positions."""
    return torch.stack([_angle(base, half, scaling, place) for place in range(SPAN)])


@functools.lru_cache(maxsize=1 << 12)
def _angle(base: float, half: int, scaling: RopeScaling | None, position: int) -> torch.Tensor:
    """cos and sin [2, half] of one position's angles."""
    angles = [position * frequency for frequency in _frequencies(base, half, scaling)]
    cosines = numbers(exact.cos(angle) for angle in angles)
    return torch.stack([cosines, numbers(exact.sin(angle) for angle in angles)])


@functools.cache
def _frequencies(base: float, half: int, scaling: RopeScaling | None) -> list[Any]:
    found = []
    for pair in range(half):
        frequency = exact.mpf(base) ** (exact.mpf(-pair) / half)
        if scaling is not None:
            turns = scaling.original_context * frequency / (2 * exact.pi)
            reach = scaling.high_freq_factor - scaling.low_freq_factor
            blend = min(max((turns - scaling.low_freq_factor) / reach, 0), 1)
            frequency *= blend + (1 - blend) / exact.mpf(scaling.factor)
        found.append(frequency)
    return found
