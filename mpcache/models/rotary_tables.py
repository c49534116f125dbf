"""Public rotary angles by position."""

from __future__ import annotations

import math

import torch

from mpcache.models.spec import ModelSpec


def rotary_tables(spec: ModelSpec, start: int, count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin [count, head_dim / 2] for positions start .. start + count - 1, float64.

    With `spec.rope_scaling`, long wavelengths are stretched by its factor and the middle ones
    blended, as llama-3.1 does.
    """
    half = spec.head_dim // 2
    frequencies = spec.rope_base ** (-torch.arange(half, dtype=torch.float64) / half)
    scaling = spec.rope_scaling
    if scaling is not None:
        turns = scaling.original_context * frequencies / (2 * math.pi)
        blend = (turns - scaling.low_freq_factor) / (
            scaling.high_freq_factor - scaling.low_freq_factor
        )
        blend = blend.clamp(0, 1)
        frequencies = frequencies * (blend + (1 - blend) / scaling.factor)
    angles = torch.arange(start, start + count, dtype=torch.float64).unsqueeze(-1) * frequencies
    return angles.cos(), angles.sin()
