"""One prefill, many caches: every policy decodes the same window beside the others.

A prefill is recorded once. A policy that leaves the prompt's attention as it is starts from the
recorded queries, keys and values, without the rest of the model. Then the caches decode in lanes:
one token each at one position, so that a weight is read once for all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import torch

from mpcache.errors import MpcacheError
from mpcache.evaluation.fixed import FixedMachine
from mpcache.eviction.base import Cache, Policy
from mpcache.eviction.full import Full
from mpcache.models.decoder import (
    KeyValueCache,
    Model,
    decoder_layer,
    embedded,
    forward,
    logits_of,
)
from mpcache.protocols.operation import Machine, Operation, PlainMachine, Value
from mpcache.protocols.rotary import rotary


class Asked(NamedTuple):
    """What one layer gave its cache in one call.

    Queries [kv_heads, group, tokens, head_dim], keys and values [kv_heads, tokens, head_dim].
    """

    queries: Value
    keys: Value
    values: Value


class Recording(KeyValueCache):
    """A cache that notes what it is asked, call by call, and passes it on."""

    def __init__(self, cache: KeyValueCache) -> None:
        self.cache = cache
        self.asked: dict[int, list[Asked]] = {}

    def attend(
        self, machine: Machine, layer: int, queries: Value, keys: Value, values: Value
    ) -> Value:
        self.asked.setdefault(layer, []).append(Asked(queries, keys, values))
        return self.cache.attend(machine, layer, queries, keys, values)

    def passed(self, machine: Machine, layer: int, x: Value) -> Value:
        return self.cache.passed(machine, layer, x)

    def angles(self, layer: int) -> tuple[Value, Value] | None:
        return self.cache.angles(layer)


@dataclass(frozen=True)
class Prefill:
    """A prompt through the full cache: its ids, the logits [1, vocab], what each layer asked."""

    ids: tuple[int, ...]
    logits: torch.Tensor
    asked: dict[int, Asked] = field(repr=False)


@dataclass
class Lane:
    """A cache that decodes: the next token stands at `position`; `logits` [vocab] foretell it."""

    cache: Cache
    position: int
    logits: torch.Tensor


class Engine:
    """A model on the twin's machine, in float or fixed, with prefills to share and lanes."""

    def __init__(self, machine: PlainMachine | FixedMachine, model: Model) -> None:
        self.machine, self.model = machine, model
        self._lanes = cast(Machine, _LaneMachine(machine))

    def seen(self, value: Value) -> torch.Tensor:
        """`value` as numbers: nothing is secret here."""
        if isinstance(self.machine, FixedMachine):
            return self.machine.seen(value)
        found: torch.Tensor = value
        return found

    def prefill(self, ids: Sequence[int]) -> Prefill:
        """The prompt's full attention, recorded."""
        recording = Recording(Full().start(self.model.spec, len(ids), 1))
        logits = self._forward(ids, recording)
        asked = {layer: calls[0] for layer, calls in recording.asked.items()}
        return Prefill(tuple(ids), logits, asked)

    def start(self, policy: Policy, prefill: Prefill, new_tokens: int) -> Lane:
        """A lane of `policy` behind the prompt, ready for `new_tokens`.

        The cache sees what it would see in a prefill of its own, in the same order.
        """
        prompt_tokens = len(prefill.ids)
        cache = policy.start(self.model.spec, prompt_tokens, new_tokens)
        if policy.alters_prefill:
            logits = self._forward(prefill.ids, cache)
        else:
            logits = prefill.logits
            with torch.inference_mode():
                for layer, asked in prefill.asked.items():
                    cache.attend(self.machine, layer, *asked)
        return Lane(cache, prompt_tokens, logits.reshape(-1))

    def step(self, lanes: Sequence[Lane], ids: Sequence[int]) -> torch.Tensor:
        """Feed each lane one token; logits [lanes, vocab] of what follows.

        Raises:
            MpcacheError: the lanes stand at different positions.
        """
        positions = {lane.position for lane in lanes}
        if len(positions) != 1:
            raise MpcacheError(f"lanes stand at positions {sorted(positions)}; expected one")
        (position,) = positions
        with torch.inference_mode():
            tokens = self.machine.tokens(ids, len(lanes), self.model.spec.vocab)
            x = embedded(self.machine, self.model, tokens, position, 1)
            caches = _LaneCaches(self.machine, lanes)
            for layer in range(self.model.spec.layers):
                x = decoder_layer(self._lanes, self.model, layer, x, position, caches)
            logits = self.seen(logits_of(self.machine, self.model, x))
        for lane, row in zip(lanes, logits, strict=True):
            lane.position += 1
            lane.logits = row
        return logits

    def _forward(self, ids: Sequence[int], cache: KeyValueCache) -> torch.Tensor:
        with torch.inference_mode():
            tokens = self.machine.tokens(ids, len(ids), self.model.spec.vocab)
            return self.seen(forward(self.machine, self.model, tokens, 0, len(ids), cache))


class _LaneMachine:
    """`inner`, but that it reads the decoder for tokens that all stand at the first's position."""

    def __init__(self, inner: Machine) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def perform(self, operation: Operation, *args: Any, **options: Any) -> Any:
        if operation is rotary:
            x, cos, sin = args
            args = x, cos[:1], sin[:1]
        return self.inner.perform(operation, *args, **options)


class _LaneCaches(KeyValueCache):
    """Hands each lane's token to its own cache."""

    def __init__(self, machine: Machine, lanes: Sequence[Lane]) -> None:
        self.machine, self.lanes = machine, lanes

    def attend(
        self, machine: Machine, layer: int, queries: Value, keys: Value, values: Value
    ) -> Value:
        contexts = []
        for i, lane in enumerate(self.lanes):
            at = slice(i, i + 1)
            contexts.append(
                lane.cache.attend(
                    self.machine, layer, queries[:, :, at], keys[:, at], values[:, at]
                )
            )
        return self.machine.cat(contexts, 2)
