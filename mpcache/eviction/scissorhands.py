"""Scissorhands (Liu et al., NeurIPS 2023, arXiv 2305.17118): importance persists.

1. A query finds a token important if it gives it at least an even share of its attention.
2. A token's weight counts the queries that found it important: the last ones of the prompt, and
   those of all steps since.
3. Each key/value head drops the token of the least weight that is not recent; of equal ones the
   first.

As H2O in all but the weight. The paper drops many tokens at once, when the cache is full; here one
a step, so that the budget holds in every one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from mpcache.eviction.base import Cache, Seeded
from mpcache.eviction.h2o import H2O, H2OCache
from mpcache.eviction.oblivious import below_mean
from mpcache.models.spec import ModelSpec
from mpcache.protocols.operation import Machine, Value
from mpcache.protocols.softmax import Weighted


@dataclass(frozen=True)
class Scissorhands(H2O):
    """Args:
    history: queries of the prompt that judge.
    """

    history: int = 32
    name: ClassVar[str] = "scissorhands"
    paper: ClassVar[str] = "Scissorhands: Liu et al., NeurIPS 2023, arXiv 2305.17118"
    meaning: ClassVar[str] = "tokens stored, persistent and recent; a step attends to one more"

    def start(self, spec: ModelSpec, prompt_tokens: int, new_tokens: int) -> Cache:
        return ScissorhandsCache(spec, self)


class ScissorhandsCache(H2OCache):
    policy: Scissorhands

    def fill(
        self, machine: Machine, layer: int, keys: Value, values: Value, seeded: Seeded
    ) -> None:
        super().fill(machine, layer, keys, values, seeded)
        heads, tokens, _ = keys.shape
        self.weight[layer] = self._drawn(machine, seeded((heads, 1, 1, tokens)))

    def _weighed(self, machine: Machine, attended: Weighted) -> Value:
        tokens = attended.weights.shape[2]
        first = tokens - min(self.policy.history, tokens)
        seen = torch.arange(first + 1, tokens + 1).unsqueeze(1)
        return self._important(machine, attended.weights[:, :, first:], seen)

    def _drawn(self, machine: Machine, weights: Value) -> Value:
        return self._important(machine, weights, torch.tensor([[weights.shape[-1]]]))

    def _important(self, machine: Machine, weights: Value, seen: torch.Tensor) -> Value:
        """How many queries find a token important [kv_heads, tokens]; none that does not see it.

        Args:
            weights: [kv_heads, group, queries, tokens], normalised or not.
            seen: public counts of visible tokens [queries, 1].
        """
        _, group, queries, _ = weights.shape
        below = below_mean(machine, weights, seen)
        return machine.shift(-below.sum(2).sum(1), float(group * queries))
