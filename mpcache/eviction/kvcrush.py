"""KVCrush (Jha et al. 2025, arXiv 2503.00022): representatives of how heads treat tokens.

1. A part of the budget goes to the most important tokens, summed over all heads.
2. A token's signature has a bit for each query head: whether it draws more than its even share.
3. The other tokens are ordered by the Hamming distance of their signature to an anchor, and cut
   into buckets of equal size; the middle one of each bucket stays.

One order does all of it: important tokens get a distance beyond all others, so that fixed ranks
are the representatives and the last ones the important tokens. The anchor is public, alternating
bits (one of the paper's three): then a distance is a sum of bits, without a product. The paper
picks at random in a bucket.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from mpcache.eviction.base import Budget, Cache, Policy, causal_mask
from mpcache.eviction.full import FullCache
from mpcache.models.spec import ModelSpec
from mpcache.protocols.arithmetic import matmul
from mpcache.protocols.comparison import at_least
from mpcache.protocols.operation import Machine, Value
from mpcache.protocols.secret import Secret
from mpcache.protocols.selection import best, rank
from mpcache.protocols.softmax import attention


@dataclass(frozen=True)
class KVCrush(Policy):
    """Args:
    tokens: kept of the prompt. Generated tokens all stay.
    representatives: how many of them stand for the buckets.
    recent: how many of them are the last ones, which all stay and whose queries judge.
    """

    tokens: int = 128
    representatives: int = 32
    recent: int = 32
    name: ClassVar[str] = "kvcrush"
    paper: ClassVar[str] = "KVCrush: Jha et al. 2025, arXiv 2503.00022"
    meaning: ClassVar[str] = "tokens of the prompt that stay: last, important, representative"
    leaks: ClassVar[str] = "nothing: counts follow from the budget"

    @classmethod
    def at(cls, budget_tokens: int, prompt_tokens: int) -> KVCrush:
        recent = min(cls.recent, max(1, budget_tokens // 2))
        return cls(budget_tokens, (budget_tokens - recent) // 4, recent)

    def budget(self, prompt_tokens: int, new_tokens: int) -> Budget:
        static = min(self.tokens, prompt_tokens)
        return Budget(static, tuple(static + step for step in range(1, new_tokens)))

    def ranks(self, tokens: int) -> list[int]:
        """Places that stay among `tokens` tokens ordered by distance, the important ones last."""
        important = self.tokens - self.recent - self.representatives
        others = tokens - important
        middles = [
            (2 * bucket + 1) * others // (2 * self.representatives)
            for bucket in range(self.representatives)
        ]
        return [*middles, *range(others, tokens)]

    def start(self, spec: ModelSpec, prompt_tokens: int, new_tokens: int) -> Cache:
        return KVCrushCache(spec, self)


class KVCrushCache(FullCache):
    def __init__(self, spec: ModelSpec, policy: KVCrush) -> None:
        super().__init__(spec)
        self.policy = policy

    def prefill(
        self, machine: Machine, layer: int, queries: Value, keys: Value, values: Value
    ) -> Value:
        policy, (heads, tokens, width) = self.policy, keys.shape
        mask, evicts = causal_mask(tokens, keys), policy.tokens < tokens
        observed = policy.recent if evicts else 0
        context, weights = attention(machine, queries, keys, values, mask, observed)
        if evicts:
            edge = tokens - policy.recent
            with machine.scope("evict"):
                both = machine.cat([keys, values], 0)
                kept = both[:, edge:]
                if policy.tokens > policy.recent:
                    rows = self._rows(machine, weights.sum(2).flatten(0, 1), edge)
                    flat = both[:, :edge].permute(1, 0, 2).reshape(edge, 2 * heads * width)
                    chosen = matmul(machine, rows, flat).reshape(-1, 2 * heads, width)
                    kept = machine.cat([chosen.permute(1, 0, 2), kept], 1)
                both = machine.keep(kept)
            keys, values = both[:heads], both[heads:]
        self.keys[layer], self.values[layer] = keys, values
        return context

    def _rows(self, machine: Machine, drawn: Value, edge: int) -> Value:
        """One-hot rows [kept, edge] over the first `edge` tokens.

        Args:
            drawn: attention [heads, tokens] that the last queries give, summed over them.
        """
        heads, tokens = drawn.shape
        drawn, even = drawn[:, :edge], self.policy.recent / tokens
        bits = at_least(machine, drawn, even)
        anchor = (torch.arange(heads) % 2).unsqueeze(-1)
        # a bit differs from a set bit of the anchor by 1 - bit: the 1 is the same for all tokens
        distance = _whole(bits, 1 - 2 * anchor).sum(0)
        important = self.policy.tokens - self.policy.recent - self.policy.representatives
        size = edge.bit_length() + 1
        if important:
            order = rank(machine, drawn.sum(0))
            beyond = machine.shift(-at_least(machine, order, float(important), magnitude=size), 1.0)
            distance = distance + _whole(beyond, 2 * heads)
        rows = best(machine, -distance, edge, magnitude=(4 * heads).bit_length() + 1, keep=0)
        return machine.cat([rows[place : place + 1] for place in self.policy.ranks(edge)], 0)


def _whole(x: Value, integers: torch.Tensor | int) -> Value:
    """x times public integers. Exact."""
    if isinstance(x, Secret):
        return x.times(integers)
    return x * (integers.to(x) if isinstance(integers, torch.Tensor) else integers)
