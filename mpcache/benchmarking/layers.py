"""Decoder layers as jobs: one token after another on a filled cache, or a whole prompt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch

from mpcache.benchmarking.pair import Job, Side
from mpcache.eviction.base import Cache, Policy
from mpcache.models.decoder import Model, decoder_layer, load_weights
from mpcache.models.spec import ModelSpec
from mpcache.models.synthetic import synthetic_weights
from mpcache.protocols.operation import Machine

VOCAB = 64  # the embedding and the head are not measured


@dataclass(frozen=True)
class LayerJob(Job):
    """Args:
    spec: `layers` of it are measured.
    policy: as it is fitted to the whole model.
    tokens: stored before the first step, or fed.
    """

    spec: ModelSpec
    policy: Policy
    tokens: int

    def small(self) -> ModelSpec:
        """The same layers with a small vocabulary and room for the tokens."""
        return replace(self.spec, vocab=VOCAB, context=self.tokens + self.steps + 1)

    def load(self, machine: Machine, side: Side) -> Model:
        spec = self.small()
        return load_weights(machine, spec, synthetic_weights(spec) if side.owns else None)


@dataclass(frozen=True)
class DecodeJob(LayerJob):
    """One decode step: a token through all layers, on a cache of `tokens` prompt tokens."""

    def prepare(self, machine: Machine, side: Side) -> Callable[[int], None]:
        model, spec = self.load(machine, side), self.small()
        generator = torch.Generator().manual_seed(1)
        cache: Cache = self.policy.start(spec, self.tokens, self.steps + 1)
        for layer in range(spec.layers):
            stored = self.policy.layer_budget(layer, self.tokens, 1).static
            shape = (2, spec.kv_heads, stored, spec.head_dim)
            both = machine.keep(side.share(machine, torch.randn(shape, generator=generator)))
            cache.keys[layer], cache.values[layer] = both[0], both[1]

        def step(number: int) -> None:
            x: Any = side.share(machine, torch.randn(1, spec.hidden, generator=generator))
            for layer in range(spec.layers):
                x = decoder_layer(machine, model, layer, x, self.tokens + number, cache)

        return step


@dataclass(frozen=True)
class PrefillJob(LayerJob):
    """The prompt of `tokens` tokens through all layers into an empty cache, eviction included."""

    def prepare(self, machine: Machine, side: Side) -> Callable[[int], None]:
        model, spec = self.load(machine, side), self.small()
        generator = torch.Generator().manual_seed(1)

        def step(number: int) -> None:
            cache = self.policy.start(spec, self.tokens, 2)
            x: Any = side.share(machine, torch.randn(self.tokens, spec.hidden, generator=generator))
            for layer in range(spec.layers):
                x = decoder_layer(machine, model, layer, x, 0, cache)

        return step
