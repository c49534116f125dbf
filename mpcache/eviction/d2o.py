"""D2O (Wan et al. 2024, arXiv 2406.13035): heavy hitters and recent tokens; who goes may merge.

1. After the prompt the tokens with the most attention stay beside the recent ones.
2. Each evicted token joins the stored one with the most similar key, if it is at least as similar
   as the evicted ones are on average; else it is gone. Weight: e^(cosine - 1), the stored one's 1.
3. Every step evicts one of those that are not recent, in the same way; the threshold moves
   towards the similarity seen.

The paper gives layers budgets by how much their attention varies: those counts would leak, so
here all layers have one. Who merges where stays secret: a threshold makes weights 0, not rows less.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mpcache.eviction.base import Budget, Cache, Policy, Seeded, causal_mask
from mpcache.eviction.merging import cosines, drop, gather, merge, nearest
from mpcache.models.spec import ModelSpec
from mpcache.protocols.arithmetic import scale, settle
from mpcache.protocols.comparison import pick
from mpcache.protocols.functions import decay
from mpcache.protocols.operation import Machine, Value
from mpcache.protocols.selection import best, top_k
from mpcache.protocols.softmax import attention


@dataclass(frozen=True)
class D2O(Policy):
    """Args:
    tokens: stored between steps; a step attends to one more, the newest.
    recent: how many of them are the last ones, which are not evicted.
    pace: weight of the similarity seen in the threshold's moving average.
    """

    tokens: int = 128
    recent: int = 32
    pace: float = 0.7
    name: ClassVar[str] = "d2o"
    paper: ClassVar[str] = "D2O: Wan et al. 2024, arXiv 2406.13035"
    meaning: ClassVar[str] = "tokens stored, others merged into them; a step attends to one more"
    leaks: ClassVar[str] = "nothing: counts follow from the budget"

    @classmethod
    def at(cls, budget_tokens: int, prompt_tokens: int) -> D2O:
        return cls(budget_tokens, budget_tokens // 4)

    def budget(self, prompt_tokens: int, new_tokens: int) -> Budget:
        steps = range(1, new_tokens)
        attended = tuple(min(prompt_tokens + step, self.tokens + 1) for step in steps)
        return Budget(min(self.tokens, prompt_tokens), attended)

    def start(self, spec: ModelSpec, prompt_tokens: int, new_tokens: int) -> Cache:
        return D2OCache(spec, self)


class D2OCache(Cache):
    """`drawn` [kv_heads, tokens]: attention that stored tokens have drawn.

    `threshold` [kv_heads, 1, 1]: the cosine from which on an evicted token merges.
    """

    def __init__(self, spec: ModelSpec, policy: D2O) -> None:
        super().__init__(spec)
        self.policy = policy
        self.drawn: dict[int, Value] = {}
        self.threshold: dict[int, Value] = {}

    def prefill(
        self, machine: Machine, layer: int, queries: Value, keys: Value, values: Value
    ) -> Value:
        tokens = keys.shape[1]
        context, weights = attention(machine, queries, keys, values, causal_mask(tokens, keys))
        self.keys[layer], self.values[layer] = keys, values
        self.drawn[layer] = weights.sum(2).sum(1)
        if self.policy.tokens < tokens:
            with machine.scope("evict"):
                self._shrink(machine, layer)
        return context

    def fill(
        self, machine: Machine, layer: int, keys: Value, values: Value, seeded: Seeded
    ) -> None:
        super().fill(machine, layer, keys, values, seeded)
        self.drawn[layer] = seeded((keys.shape[0], keys.shape[1]))
        self.threshold[layer] = seeded((keys.shape[0], 1, 1))

    def decode(self, machine: Machine, layer: int, queries: Value) -> Value:
        keys, values = self.keys[layer], self.values[layer]
        count = keys.shape[1]
        self.kept.dynamic.setdefault(layer, []).append(count)
        context, weights = attention(machine, queries, keys, values, None, 1)
        drawn, last = weights.sum(2).sum(1), count - 1
        drawn = machine.cat([self.drawn[layer] + drawn[:, :last], drawn[:, last:]], 1)
        self.drawn[layer] = drawn
        if count > self.policy.tokens:
            with machine.scope("evict"):
                self._evict_one(machine, layer)
        return context

    def _parts(self, machine: Machine, layer: int) -> tuple[Value, Value, int, int]:
        """Keys and values side by side, drawn attention, where recent begins, head_dim."""
        both = machine.cat([self.keys[layer], self.values[layer]], -1)
        drawn = self.drawn[layer].unsqueeze(-1)
        return both, drawn, both.shape[1] - self.policy.recent, both.shape[-1] // 2

    def _put(self, machine: Machine, layer: int, both: Value, drawn: Value, width: int) -> None:
        both = machine.keep(both)
        self.keys[layer], self.values[layer] = both[..., :width], both[..., width:]
        self.drawn[layer] = drawn.squeeze(-1)

    def _shrink(self, machine: Machine, layer: int) -> None:
        """Evict from the prompt all but the heaviest and the recent tokens, and merge."""
        both, drawn, edge, width = self._parts(machine, layer)
        kept, heavy = [both[:, edge:]], self.policy.tokens - self.policy.recent
        sums = [drawn[:, edge:]]
        gone = machine.shift(machine.zeros_like(drawn, (both.shape[0], edge)), 1.0)
        if heavy:
            rows = top_k(machine, drawn[:, :edge].squeeze(-1), heavy)
            kept.insert(0, gather(machine, rows, both[:, :edge])[0])
            sums.insert(0, gather(machine, rows, drawn[:, :edge])[0])
            gone = machine.shift(-rows.sum(1), 1.0)
        stored, others = machine.cat(kept, 1), both[:, :edge]
        cosine = cosines(machine, others[..., :width], stored[..., :width])
        # the threshold: over evicted tokens, the mean of their greatest cosine
        most = nearest(machine, cosine, cosine[..., :1])[1]
        mean = pick(machine, gone.unsqueeze(-1), most).sum(1).unsqueeze(1)
        self.threshold[layer] = settle(machine, scale(machine, mean, 1 / (edge - heavy)))
        stored = self._joined(machine, layer, stored, others, cosine, gone)
        self._put(machine, layer, stored, machine.cat(sums, 1), width)

    def _evict_one(self, machine: Machine, layer: int) -> None:
        """Evict the lightest token that is not recent, and merge it."""
        both, drawn, edge, width = self._parts(machine, layer)
        row = best(machine, -drawn[:, :edge].squeeze(-1), 1)
        (gone,) = gather(machine, row, both[:, :edge])
        every = machine.cat([both, drawn], -1)
        left = drop(machine, row.squeeze(1), every[:, :edge])
        every = machine.cat([left, every[:, edge:]], 1)
        stored, drawn = every[..., : 2 * width], every[..., 2 * width :]
        cosine = cosines(machine, gone[..., :width], stored[..., :width])
        if layer not in self.threshold:  # the prompt was short: the first one evicted sets it
            self.threshold[layer] = nearest(machine, cosine, cosine[..., :1])[1]
        stored = self._joined(machine, layer, stored, gone, cosine, None)
        self._put(machine, layer, stored, drawn, width)

    def _joined(
        self, machine: Machine, layer: int, stored: Value, others: Value, cosine: Value,
        gone: Value | None,
    ) -> Value:  # fmt: skip
        """Stored tokens [kv_heads, m, 2 head_dim] with the evicted ones among `others` merged.

        Args:
            others: [kv_heads, n, 2 head_dim]. cosine: [kv_heads, n, m].
            gone: bits [kv_heads, n] of those evicted; None for all.
        """
        threshold = self.threshold[layer]
        bar = threshold.expand(cosine.shape[0], cosine.shape[1], 1)
        joins, most = nearest(machine, cosine, bar)
        if gone is None:
            step = scale(machine, most - threshold, self.policy.pace)
            self.threshold[layer] = threshold + step
        else:
            joins = pick(machine, joins, gone.unsqueeze(-1).expand(*joins.shape))
        weight = decay(machine, machine.shift(most, -1.0))
        return merge(machine, stored, others, pick(machine, joins, weight.expand(*joins.shape)))
