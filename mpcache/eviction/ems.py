"""EMS (Li et al. 2024, arXiv 2412.08521): the least important go, the next are merged.

1. A token's score: the average attention of all queries that see it (global) and that of the
   last ones (local), head by head.
2. The best stay as centres beside the last tokens, the next best merge, the rest goes.
3. Each that merges joins the centre with the most similar key, or a class of zeros, and is gone,
   where none is similar enough. So every head does the same work.
4. A centre becomes the mean of what joined it.

The paper sets per head how many merge, by how redundant its keys are, and weighs a mean by
scores: those counts would leak, and a weight for each division would need an inverse of a secret
score. Here as many merge as there are centres, each with the same weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from mpcache.eviction.base import Budget, Cache, Policy, causal_mask
from mpcache.eviction.full import FullCache
from mpcache.eviction.merging import cosines, gather, merge, nearest
from mpcache.models.spec import ModelSpec
from mpcache.protocols.arithmetic import scale
from mpcache.protocols.operation import Machine, Value
from mpcache.protocols.selection import best
from mpcache.protocols.softmax import attention


@dataclass(frozen=True)
class EMS(Policy):
    """Args:
    tokens: kept of the prompt, centres and last ones. Generated tokens all stay.
    recent: last tokens, which all stay and whose queries are the local ones.
    similar: cosine of keys from which on a token merges.
    """

    tokens: int = 128
    recent: int = 32
    similar: float = 0.6
    name: ClassVar[str] = "ems"
    paper: ClassVar[str] = "EMS: Li et al. 2024, arXiv 2412.08521"
    meaning: ClassVar[str] = "tokens of the prompt that stay, with others merged into them"
    leaks: ClassVar[str] = "nothing: counts follow from the budget"

    @classmethod
    def at(cls, budget_tokens: int, prompt_tokens: int) -> EMS:
        return cls(budget_tokens, min(cls.recent, budget_tokens // 2))

    def budget(self, prompt_tokens: int, new_tokens: int) -> Budget:
        static = min(self.tokens, prompt_tokens)
        return Budget(static, tuple(static + step for step in range(1, new_tokens)))

    def start(self, spec: ModelSpec, prompt_tokens: int, new_tokens: int) -> Cache:
        return EMSCache(spec, self)


class EMSCache(FullCache):
    def __init__(self, spec: ModelSpec, policy: EMS) -> None:
        super().__init__(spec)
        self.policy = policy

    def prefill(
        self, machine: Machine, layer: int, queries: Value, keys: Value, values: Value
    ) -> Value:
        policy, (_, tokens, width) = self.policy, keys.shape
        mask, evicts = causal_mask(tokens, keys), policy.tokens < tokens
        context, weights = attention(machine, queries, keys, values, mask, tokens if evicts else 0)
        if evicts:
            with machine.scope("evict"):
                both = machine.cat([keys, values], -1)
                edge = tokens - policy.recent
                scores = self._scores(machine, weights)[:, :edge]
                kept = self._merged(machine, scores, both[:, :edge])
                both = machine.keep(machine.cat([kept, both[:, edge:]], 1))
            keys, values = both[..., :width], both[..., width:]
        self.keys[layer], self.values[layer] = keys, values
        return context

    def _scores(self, machine: Machine, weights: Value) -> Value:
        """Average attention [kv_heads, tokens], in parts of an even share: global plus local.

        Args:
            weights: [kv_heads, group, tokens, tokens].
        """
        tokens, recent = weights.shape[-1], max(1, self.policy.recent)
        weights = weights.sum(1)
        seen = tokens / torch.arange(tokens, 0, -1, dtype=torch.float64)
        if isinstance(weights, torch.Tensor):
            seen = seen.to(weights)
        whole = scale(machine, weights.sum(1), seen)
        local = scale(machine, weights[:, tokens - recent :].sum(1), tokens / recent)
        return whole + local

    def _merged(self, machine: Machine, scores: Value, both: Value) -> Value:
        """Centres [kv_heads, centres, 2 head_dim], with the next best tokens merged into them.

        Args:
            scores: [kv_heads, tokens]. both: keys and values [kv_heads, tokens, 2 head_dim].
        """
        heads, tokens, width = both.shape
        centres = self.policy.tokens - self.policy.recent
        merging = min(centres, tokens - centres)
        rows = best(machine, scores, centres + merging)
        (chosen,) = gather(machine, rows, both)
        kept, others = chosen[:, :centres], chosen[:, centres:]
        cosine = cosines(machine, others[..., : width // 2], kept[..., : width // 2])
        threshold = machine.shift(
            machine.zeros_like(cosine, (heads, merging, 1)), self.policy.similar
        )
        joins, _ = nearest(machine, cosine, threshold)
        return merge(machine, kept, others, joins)
