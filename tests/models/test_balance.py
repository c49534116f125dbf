"""Channels that are made larger by one matrix and smaller by the next: see `models.folding`."""

from __future__ import annotations

import pytest
import torch
from protocols.tiny import LLAMA

from mpcache.models.folding import GATED, MOST, VALUES, Folded
from mpcache.models.spec import ModelSpec

LAYER = "layers.0."


def weights(spec: ModelSpec, seed: int = 3) -> dict[str, torch.Tensor]:
    """Random weights, of which what makes values and ups is small."""
    generator = torch.Generator().manual_seed(seed)
    found = {name: torch.randn(shape, generator=generator) for name, shape in spec.shapes().items()}
    for maker, _ in (VALUES, GATED):
        spread = torch.rand(found[LAYER + maker].shape[1], generator=generator)
        found[LAYER + maker] *= 2.0 ** (-8 * spread)
    return found


def columns(x: torch.Tensor) -> torch.Tensor:
    return x.double().square().sum(0).sqrt()


def rows(x: torch.Tensor, spec: ModelSpec, channels: int) -> torch.Tensor:
    """The norms of a matrix' rows; over the query heads that share a value, in the mean square."""
    each = x.double().square().sum(1)
    if len(each) != channels:
        each = each.reshape(-1, spec.group, spec.head_dim).mean(1).flatten()
    return each.sqrt()


@pytest.mark.parametrize(("maker", "reader"), [VALUES, GATED])
def test_both_matrices_of_a_channel_are_about_equally_large(maker: str, reader: str) -> None:
    spec, given = LLAMA, weights(LLAMA)
    folded = Folded(spec, given)
    made = columns(folded[LAYER + maker])
    ratio = rows(folded[LAYER + reader], spec, len(made)) / made
    assert bool(((ratio >= 0.5 - 1e-6) & (ratio <= 2 + 1e-6)).all()), "within half a step each way"


@pytest.mark.parametrize(("maker", "reader"), [VALUES, GATED])
def test_scales_are_powers_of_two_that_cancel(maker: str, reader: str) -> None:
    spec, given = LLAMA, weights(LLAMA)
    folded = Folded(spec, given)
    scales = folded[LAYER + maker] / folded._unbalanced(LAYER + maker)
    assert bool((scales == scales[0]).all()) and len(scales[0].unique()) > 1
    assert bool((scales[0].log2() == scales[0].log2().round()).all())
    assert scales[0].log2().abs().max() <= MOST
    undone = folded._unbalanced(LAYER + reader) / folded[LAYER + reader]
    if len(undone) != scales.shape[1]:
        heads = scales[0].reshape(spec.kv_heads, 1, spec.head_dim)
        wanted = heads.expand(-1, spec.group, -1).flatten()
    else:
        wanted = scales[0]
    assert torch.equal(undone, wanted.unsqueeze(1).expand_as(undone))


def test_a_channel_that_nothing_makes_or_reads_stays_finite() -> None:
    spec, given = LLAMA, weights(LLAMA)
    given[LAYER + "ffn.up"][:, 0] = 0
    given[LAYER + "ffn.down"][1] = 0
    folded = Folded(spec, given)
    for name in GATED:
        assert bool(folded[LAYER + name].isfinite().all())
