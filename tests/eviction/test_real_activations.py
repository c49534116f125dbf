"""Brute force once more, on what SmolLM2's first layers make of a real text."""

from __future__ import annotations

import dataclasses
import pydoc_data.topics
from typing import Any

import pytest
import torch

from mpcache.eviction.full import FullCache
from mpcache.eviction.mpcache import MPCache
from mpcache.models import registry
from mpcache.models.decoder import forward, load_weights
from mpcache.protocols.operation import PlainMachine
from mpcache.protocols.setting import Setting

from .harness import Activations
from .test_selection import check

PROMPT, STEPS, LAYERS = 150, 4, 4


class Recorder(FullCache):
    """A full cache that keeps what it was asked."""

    def __init__(self, spec: Any) -> None:
        super().__init__(spec)
        self.asked: dict[int, list[tuple[Any, ...]]] = {}

    def attend(self, machine: Any, layer: int, queries: Any, keys: Any, values: Any) -> Any:
        self.asked.setdefault(layer, []).append((queries, keys, values))
        return super().attend(machine, layer, queries, keys, values)


@pytest.fixture(scope="module")
def activations() -> Activations:
    source = registry.find("smollm2", weights="required")
    spec = dataclasses.replace(source.spec, layers=LAYERS)
    tensors = {name: source.backend.tensor(name) for name in spec.shapes()}
    ids = source.tokenizer().encode(pydoc_data.topics.topics["assignment"])[: PROMPT + STEPS]
    machine, recorder = PlainMachine(Setting()), Recorder(spec)
    with torch.inference_mode():
        model = load_weights(machine, spec, tensors)
        for first, last in [(0, PROMPT), *((PROMPT + i, PROMPT + i + 1) for i in range(STEPS))]:
            tokens = machine.tokens(ids[first:last], last - first, spec.vocab)
            forward(machine, model, tokens, first, last - first, recorder)
    return Activations(
        {
            layer: tuple(torch.cat(part, -2).double() for part in zip(*calls, strict=True))
            for layer, calls in recorder.asked.items()
        },  # type: ignore[misc]
        PROMPT,
    )


@pytest.mark.parametrize(
    "policy",
    [
        MPCache((16, 8), 0.6, 0.75, 0.5, 0.4, share_layers=True, summary="extrema", observe=0),
        MPCache((32, 16), 0.6, 0.6, 0.5, 0.3, share_layers=True),
        MPCache(coarse_keep=0.7, dynamic_keep=0.5, clusters=(12, 3), share_layers=False),
    ],
    ids=["extrema", "mean", "unshared"],
)
def test_equals_brute_force(policy: MPCache, activations: Activations) -> None:
    check(policy, activations, 1e-6)
