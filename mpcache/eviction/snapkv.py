"""SnapKV (Li et al., NeurIPS 2024, arXiv 2404.14469): the prompt's last queries vote, once.

1. The last queries of the prompt, the observation window, weigh what comes before them.
2. Votes are averaged over neighbours (the paper takes their maximum or mean; a mean is free).
3. Each key/value head keeps the tokens with the most votes, and the window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mpcache.eviction.base import Budget, Cache, Policy, causal_mask
from mpcache.eviction.full import FullCache
from mpcache.eviction.oblivious import Top, pooled, top
from mpcache.models.spec import ModelSpec
from mpcache.protocols.operation import Machine, Value
from mpcache.protocols.softmax import attention


@dataclass(frozen=True)
class SnapKV(Policy):
    """Args:
    tokens: kept of the prompt. Generated tokens all stay.
    observed: length of the observation window.
    pooled: votes that are averaged, an odd number.
    """

    tokens: int = 128
    observed: int = 32
    pooled: int = 5
    name: ClassVar[str] = "snapkv"
    paper: ClassVar[str] = "SnapKV: Li et al., NeurIPS 2024, arXiv 2404.14469"
    meaning: ClassVar[str] = "tokens of the prompt that stay; generated ones come on top"
    leaks: ClassVar[str] = "nothing: counts follow from the budget"

    @classmethod
    def at(cls, budget_tokens: int, prompt_tokens: int) -> SnapKV:
        return cls(budget_tokens, min(cls.observed, max(1, budget_tokens // 2)))

    def budget(self, prompt_tokens: int, new_tokens: int) -> Budget:
        static = min(max(self.tokens, self.observed), prompt_tokens)
        return Budget(static, tuple(static + step for step in range(1, new_tokens)))

    def start(self, spec: ModelSpec, prompt_tokens: int, new_tokens: int) -> Cache:
        return SnapKVCache(spec, self)


class SnapKVCache(FullCache):
    def __init__(self, spec: ModelSpec, policy: SnapKV) -> None:
        super().__init__(spec)
        self.policy = policy

    def prefill(
        self, machine: Machine, layer: int, queries: Value, keys: Value, values: Value
    ) -> Value:
        tokens = keys.shape[1]
        kept = self.policy.layer_budget(layer, tokens, 1).static
        evicts = kept < tokens
        observed = self.policy.observed if evicts else 0
        mask = causal_mask(tokens, keys)
        context, weights = attention(machine, queries, keys, values, mask, observed)
        if evicts:
            with machine.scope("evict"):
                votes = self._votes(machine, weights[..., : tokens - observed])
                votes = pooled(machine, votes, self.policy.pooled)
                ends = votes[:, :1].expand(votes.shape[0], observed)  # always kept, not compared
                votes = machine.cat([votes, ends], 1)
                chosen = self._chosen(machine, layer, votes, kept)
                keys, values = chosen.stored(machine, keys, values)
        self.keys[layer], self.values[layer] = keys, values
        return context

    def _votes(self, machine: Machine, weights: Value) -> Value:
        """Votes [kv_heads, tokens], from the window's weights [kv_heads, group, window, tokens]."""
        return weights.sum(2).sum(1)

    def _chosen(self, machine: Machine, layer: int, votes: Value, kept: int) -> Top:
        """The `kept` tokens with the most votes [kv_heads, tokens], and the window."""
        return top(machine, votes, kept, 0, self.policy.observed)
