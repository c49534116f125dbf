"""TOVA (Oren et al., EMNLP 2024, arXiv 2401.06104): each step drops the least attended token.

1. The attention of the last query, averaged over all heads of a layer, judges every token.
2. After the prompt the most attended stay; in a step the least attended of all goes, and the
   newest takes its slot. One choice serves all heads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mpcache.eviction.base import Budget, Cache, Policy, causal_mask
from mpcache.eviction.oblivious import replaced, top
from mpcache.models.spec import ModelSpec
from mpcache.protocols.operation import Machine, Value
from mpcache.protocols.selection import best
from mpcache.protocols.softmax import attention


@dataclass(frozen=True)
class TOVA(Policy):
    """Args:
    tokens: stored between steps; a step attends to one more, the newest.
    """

    tokens: int = 128
    name: ClassVar[str] = "tova"
    paper: ClassVar[str] = "TOVA: Oren et al., EMNLP 2024, arXiv 2401.06104"
    meaning: ClassVar[str] = "tokens stored; a step attends to one more"
    leaks: ClassVar[str] = "nothing: counts follow from the budget"

    @classmethod
    def at(cls, budget_tokens: int, prompt_tokens: int) -> TOVA:
        return cls(budget_tokens)

    def budget(self, prompt_tokens: int, new_tokens: int) -> Budget:
        steps = range(1, new_tokens)
        attended = tuple(min(prompt_tokens + step, self.tokens + 1) for step in steps)
        return Budget(min(self.tokens, prompt_tokens), attended)

    def start(self, spec: ModelSpec, prompt_tokens: int, new_tokens: int) -> Cache:
        return TOVACache(spec, self)


class TOVACache(Cache):
    def __init__(self, spec: ModelSpec, policy: TOVA) -> None:
        super().__init__(spec)
        self.policy = policy

    def prefill(
        self, machine: Machine, layer: int, queries: Value, keys: Value, values: Value
    ) -> Value:
        tokens = keys.shape[1]
        mask = causal_mask(tokens, keys)
        evicts = self.policy.tokens < tokens
        context, weights = attention(machine, queries, keys, values, mask, int(evicts))
        if evicts:
            with machine.scope("evict"):
                kept = top(machine, weights.sum(2).sum(1).sum(0), self.policy.tokens)
                keys, values = kept.stored(machine, keys, values)
        self.keys[layer], self.values[layer] = keys, values
        return context

    def decode(self, machine: Machine, layer: int, queries: Value) -> Value:
        keys, values = self.keys[layer], self.values[layer]
        (_, count, width), stored = keys.shape, self.policy.tokens
        self.kept.dynamic.setdefault(layer, []).append(count)
        evicts = count > stored
        context, weights = attention(machine, queries, keys, values, None, int(evicts))
        if evicts:
            with machine.scope("evict"):
                drawn = weights.sum(2).sum(1).sum(0)
                victim = best(machine, -drawn.unsqueeze(0), 1).squeeze(-2)[:, :stored]
                both = machine.cat([keys, values], 2)
                both = machine.keep(replaced(machine, victim, both[:, :stored], both[:, stored:]))
            self.keys[layer], self.values[layer] = both[..., :width], both[..., width:]
        return context
