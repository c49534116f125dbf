"""Synthetic weights: shapes, determinism, and activations that stay bounded."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mpcache.errors import UsageError
from mpcache.models.known import KNOWN
from mpcache.models.spec import ModelSpec
from mpcache.models.synthetic import synthetic_tensor, synthetic_weights

from . import reference


def small(name: str) -> ModelSpec:
    """A known model, narrowed; as deep as the real one, since depth is what lets values grow."""
    spec = KNOWN[name].spec
    embed = 32 if spec.embed else 0
    return replace(
        spec, hidden=64, heads=4, kv_heads=2 if spec.family == "llama" else 4, head_dim=16,
        ffn=128, vocab=101, context=64, embed=embed,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["smollm2", "opt-13b", "opt-350m", "llama-3-8b"])
def test_shapes_and_bounded_logits(name: str) -> None:
    spec = small(name)
    weights = synthetic_weights(spec)
    assert {key: tuple(w.shape) for key, w in weights.items()} == spec.shapes()
    assert all(w.dtype == torch.float32 and w.is_contiguous() for w in weights.values())
    logits = reference.logits(spec, weights, list(range(20)))
    assert 0.2 < float(logits.std()) < 3 and float(logits.abs().max()) < 20


def test_depth_does_not_blow_up_the_residual() -> None:
    spec = replace(small("opt-13b"), final_norm=False)  # without it the logits show the residual
    logits = reference.logits(spec, synthetic_weights(spec), list(range(20)))
    assert spec.layers == 40 and float(logits.std()) < 1.5


def test_same_seed_same_values_in_any_order() -> None:
    spec = small("opt-125m")
    whole = synthetic_weights(spec, seed=3)
    torch.rand(5)
    for name in reversed(spec.shapes()):
        assert torch.equal(synthetic_tensor(spec, name, 3), whole[name])


def test_other_seed_shape_or_name_other_values() -> None:
    spec = small("opt-125m")
    one = synthetic_tensor(spec, "layers.0.ffn.up", 0)
    assert not torch.equal(one, synthetic_tensor(spec, "layers.0.ffn.up", 1))
    assert not torch.equal(one, synthetic_tensor(spec, "layers.1.ffn.up", 0))
    assert not torch.equal(one, synthetic_tensor(replace(spec, layers=2), "layers.0.ffn.up", 0))


def test_the_global_generator_is_left_alone() -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    synthetic_tensor(small("opt-125m"), "embed.tokens")
    assert torch.equal(before, torch.random.get_rng_state())


def test_unknown_weight() -> None:
    with pytest.raises(UsageError, match="no weight 'head'"):
        synthetic_tensor(small("opt-125m"), "head")
