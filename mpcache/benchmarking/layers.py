"""Decoder layers as jobs: one token after another on a filled cache, or a whole prompt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from mpcache.benchmarking.job import Job, Side
from mpcache.eviction.base import Cache, Policy
from mpcache.generation import NEXT_TOKEN
from mpcache.models.decoder import Model, decoder_layer, forward, load_weights
from mpcache.models.spec import ModelSpec
from mpcache.models.synthetic import SyntheticWeights
from mpcache.protocols.greatest import argmax
from mpcache.protocols.operation import Machine

VOCAB = 64  # where the embedding and the head are not measured


@dataclass(frozen=True)
class LayerJob(Job):
    """Layers of a model with synthetic weights.

    Args:
        spec: `layers` of it are measured.
        policy: as it is fitted to the whole model.
        tokens: stored before the first step, or fed.
        whole: from a token's number to the next one's: with the embedding, the head and the argmax
            over the vocabulary.
    """

    spec: ModelSpec
    policy: Policy
    tokens: int
    whole: bool = field(default=False, kw_only=True)

    def shaped(self) -> ModelSpec:
        """The same layers with room for the tokens; with a small vocabulary where not whole."""
        room = self.tokens + self.steps + 1
        if self.whole:
            return replace(self.spec, context=max(self.spec.context, room))
        return replace(self.spec, vocab=VOCAB, context=room)

    def load(self, machine: Machine, side: Side, spec: ModelSpec) -> Model:
        weights = SyntheticWeights(spec) if side.owns else None
        return load_weights(machine, spec, weights)

    def pass_through(
        self, machine: Machine, side: Side, model: Model, cache: Cache, start: int, count: int
    ) -> None:
        """`count` tokens at positions from `start` on go through all layers."""
        spec = model.spec
        if self.whole:
            ids = [place % spec.vocab for place in range(count)]
            tokens = side.tokens(machine, ids, spec.vocab)
            logits = forward(machine, model, tokens, start, count, cache)
            with machine.scope("next-token"):
                machine.open(argmax(machine, logits), "client", NEXT_TOKEN)
            return
        generator = torch.Generator().manual_seed(start)
        x: Any = side.share(machine, torch.randn(count, spec.hidden, generator=generator))
        for layer in range(spec.layers):
            x = decoder_layer(machine, model, layer, x, start, cache)


@dataclass(frozen=True)
class DecodeJob(LayerJob):
    """One decode step: a token through all layers, on a cache of `tokens` prompt tokens."""

    def prepare(self, machine: Machine, side: Side) -> Callable[[int], None]:
        spec = self.shaped()
        model = self.load(machine, side, spec)
        generator = torch.Generator().manual_seed(1)
        cache: Cache = self.policy.start(spec, self.tokens, self.steps + 1)

        def seeded(shape: tuple[int, ...]) -> Any:
            return side.share(machine, torch.rand(shape, generator=generator))

        for layer in range(spec.layers):
            stored = self.policy.layer_budget(layer, self.tokens, 1).static
            shape = (2, spec.kv_heads, stored, spec.head_dim)
            both = machine.keep(side.share(machine, torch.randn(shape, generator=generator)))
            cache.fill(machine, layer, both[0], both[1], seeded)
        return lambda number: self.pass_through(
            machine, side, model, cache, self.tokens + number, 1
        )


@dataclass(frozen=True)
class PrefillJob(LayerJob):
    """The prompt of `tokens` tokens through all layers into an empty cache, eviction included."""

    def prepare(self, machine: Machine, side: Side) -> Callable[[int], None]:
        spec = self.shaped()
        model = self.load(machine, side, spec)
        return lambda number: self.pass_through(
            machine, side, model, self.policy.start(spec, self.tokens, 2), 0, self.tokens
        )
