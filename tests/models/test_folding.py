"""Folded weights give the logits of the model's own, and leave no norm to read them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from protocols.tiny import LLAMA, OPT, OPT_350M, weights

from mpcache.errors import MpcacheError
from mpcache.models.folding import Folded, foldable, folded_shapes
from mpcache.models.spec import ModelSpec

UNTIED = replace(LLAMA, name="untied", tied=False)


@pytest.mark.parametrize("spec", [LLAMA, OPT, OPT_350M, UNTIED], ids=lambda spec: spec.name)
def test_shapes_are_those_announced(spec: ModelSpec) -> None:
    folded = Folded(spec, weights(spec))
    assert set(folded) == set(folded_shapes(spec)) and "head" in folded
    for name, shape in folded_shapes(spec).items():
        assert tuple(folded[name].shape) == shape, name
    assert any(".norm." in name for name in folded) is not foldable(spec)


def test_one_matrix_by_hand() -> None:
    tensors = weights(OPT)
    folded = Folded(OPT, tensors)
    name, norm = "layers.1.ffn.up", "layers.1.ffn.norm"
    x = torch.randn(5, OPT.hidden, generator=torch.Generator().manual_seed(3))
    want = (x * tensors[f"{norm}.gain"] + tensors[f"{norm}.bias"]) @ tensors[name]
    want = want + tensors[f"{name}.bias"]
    torch.testing.assert_close(x @ folded[name] + folded[f"{name}.bias"], want)


def test_what_joins_the_stream_has_mean_zero() -> None:
    folded = Folded(OPT, weights(OPT))
    added = ("attention.output", "ffn.down", "ffn.down.bias")
    for name in ("embed.tokens", "embed.positions", *(f"layers.1.{part}" for part in added)):
        assert float(folded[name].mean(-1).abs().max()) < 1e-6, name
    plain = Folded(LLAMA, weights(LLAMA))
    assert torch.equal(plain["embed.tokens"], weights(LLAMA)["embed.tokens"])


def test_another_shape_is_refused() -> None:
    tensors = weights(LLAMA) | {"layers.0.ffn.norm.gain": torch.ones(3)}
    with pytest.raises(MpcacheError, match=r"ffn\.norm\.gain: expected \[16\], not \[3\]"):
        Folded(LLAMA, tensors)["layers.0.ffn.up"]
