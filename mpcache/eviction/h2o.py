"""H2O (Zhang et al., NeurIPS 2023, arXiv 2306.14048): heavy hitters and recent tokens.

1. A token's weight is all the attention that it has drawn, summed over a group's query heads.
2. Each key/value head stores its heaviest tokens and the recent ones.
3. In every step the oldest of the recent ones competes with the heavy ones: the lightest goes,
   and the newcomer takes its slot. Slots have no order, which attention does not need.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mpcache.eviction.base import Budget, Cache, Policy, Seeded
from mpcache.eviction.oblivious import accumulated, prefilled, replaced, top
from mpcache.models.spec import ModelSpec
from mpcache.protocols.operation import Machine, Value
from mpcache.protocols.selection import best
from mpcache.protocols.softmax import Weighted, attention

WEIGHT = {"magnitude": 15, "keep": 14}  # sums of probabilities


@dataclass(frozen=True)
class H2O(Policy):
    """Args:
    tokens: stored between steps; a step attends to one more, the newest.
    recent: how many of them are the last ones.
    """

    tokens: int = 128
    recent: int = 64
    name: ClassVar[str] = "h2o"
    paper: ClassVar[str] = "H2O: Zhang et al., NeurIPS 2023, arXiv 2306.14048"
    meaning: ClassVar[str] = "tokens stored, heavy and recent; a step attends to one more"
    leaks: ClassVar[str] = "nothing: counts follow from the budget"

    @classmethod
    def at(cls, budget_tokens: int, prompt_tokens: int) -> H2O:
        return cls(budget_tokens, budget_tokens // 2)

    def budget(self, prompt_tokens: int, new_tokens: int) -> Budget:
        steps = range(1, new_tokens)
        attended = tuple(min(prompt_tokens + step, self.tokens + 1) for step in steps)
        return Budget(min(self.tokens, prompt_tokens), attended)

    def start(self, spec: ModelSpec, prompt_tokens: int, new_tokens: int) -> Cache:
        return H2OCache(spec, self)


class H2OCache(Cache):
    """`weight` [kv_heads, tokens]: what stored tokens weigh, in the order of the stored keys."""

    def __init__(self, spec: ModelSpec, policy: H2O) -> None:
        super().__init__(spec)
        self.policy = policy
        self.weight: dict[int, Value] = {}

    def prefill(
        self, machine: Machine, layer: int, queries: Value, keys: Value, values: Value
    ) -> Value:
        attended = prefilled(machine, queries, keys, values)
        with machine.scope("evict"):
            weight = self._weighed(machine, attended)
            kept = top(machine, weight, self.policy.tokens, 0, self.policy.recent, **WEIGHT)
            keys, values = kept.stored(machine, keys, values)
            self.weight[layer] = kept.of(machine, weight.unsqueeze(2)).squeeze(2)
        self.keys[layer], self.values[layer] = keys, values
        return attended.context

    def fill(
        self, machine: Machine, layer: int, keys: Value, values: Value, seeded: Seeded
    ) -> None:
        super().fill(machine, layer, keys, values, seeded)
        self.weight[layer] = seeded((keys.shape[0], keys.shape[1]))

    def _weighed(self, machine: Machine, attended: Weighted) -> Value:
        """What the prompt's tokens weigh [kv_heads, tokens]."""
        return accumulated(machine, attended, attended.weights.shape[2])

    def _drawn(self, machine: Machine, weights: Value) -> Value:
        """What a step adds to the weights [kv_heads, tokens], from [kv_heads, group, 1, tokens]."""
        return weights.sum(2).sum(1)

    def decode(self, machine: Machine, layer: int, queries: Value) -> Value:
        keys, values = self.keys[layer], self.values[layer]
        count, heavy = keys.shape[1], self.policy.tokens - self.policy.recent
        self.kept.dynamic.setdefault(layer, []).append(count)
        context, weights = attention(machine, queries, keys, values, None, 1)
        with machine.scope("evict"):
            known = self.weight[layer]
            fresh = machine.zeros_like(known, (known.shape[0], count - known.shape[1]))
            weight = machine.cat([known, fresh], 1) + self._drawn(machine, weights)
            if count > self.policy.tokens:
                weight = self._evict(machine, layer, weight, heavy)
            self.weight[layer] = weight
        return context

    def _evict(self, machine: Machine, layer: int, weight: Value, heavy: int) -> Value:
        """The lightest of the heavy slots and of the oldest recent token goes."""
        width = self.keys[layer].shape[2]
        both = machine.cat([self.keys[layer], self.values[layer]], 2)
        if not heavy:
            both, weight = both[:, 1:], weight[:, 1:]
        else:
            victim = best(machine, -weight[:, : heavy + 1], 1, **WEIGHT).squeeze(-2)[:, :heavy]
            slots = replaced(machine, victim, both[:, :heavy], both[:, heavy : heavy + 1])
            held = weight.unsqueeze(2)
            held = replaced(machine, victim, held[:, :heavy], held[:, heavy : heavy + 1])
            both = machine.cat([machine.keep(slots), both[:, heavy + 1 :]], 1)
            weight = machine.cat([held.squeeze(2), weight[:, heavy + 1 :]], 1)
        self.keys[layer], self.values[layer] = both[..., :width], both[..., width:]
        return weight
