"""Keep every token: the cache that the others are compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mpcache.eviction.base import Budget, Cache, Policy, causal_mask
from mpcache.models.spec import ModelSpec
from mpcache.protocols.operation import Machine, Value
from mpcache.protocols.softmax import attention


@dataclass(frozen=True)
class Full(Policy):
    """No eviction and no selection; leaks nothing but the lengths."""

    name: ClassVar[str] = "full"
    paper: ClassVar[str] = "no eviction"
    meaning: ClassVar[str] = "none: every token is stored and attended to"
    leaks: ClassVar[str] = "nothing"

    @classmethod
    def at(cls, budget_tokens: int, prompt_tokens: int) -> Full:
        return cls()

    def budget(self, prompt_tokens: int, new_tokens: int) -> Budget:
        steps = range(1, new_tokens)
        return Budget(prompt_tokens, tuple(prompt_tokens + step for step in steps))

    def start(self, spec: ModelSpec, prompt_tokens: int, new_tokens: int) -> Cache:
        return FullCache(spec)


class FullCache(Cache):
    def prefill(
        self, machine: Machine, layer: int, queries: Value, keys: Value, values: Value
    ) -> Value:
        self.keys[layer], self.values[layer] = keys, values
        context, _ = attention(machine, queries, keys, values, causal_mask(keys.shape[1], keys), 0)
        return context

    def decode(self, machine: Machine, layer: int, queries: Value) -> Value:
        keys = self.keys[layer]
        self.kept.dynamic.setdefault(layer, []).append(keys.shape[1])
        context, _ = attention(machine, queries, keys, self.values[layer], None, 0)
        return context
