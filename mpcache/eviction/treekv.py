"""TreeKV (He et al. 2025, arXiv 2501.04987): neighbours compete in turn, so the old thin out.

A full cache that gets a token compares two neighbours, by the average attention that they have
drawn, and drops the lesser one; the next token makes the next pair compete, and from the end the
turn goes back to the first. Which pair that is depends on counts alone, so a comparison a token
and a product select obliviously: no ranks, no one-hot rows.

The pairs of one turn through the cache share no token. So the prompt, whose attention is known
when it is evicted, takes one batch of comparisons a turn: the sequential rule, not another one.
The prompt's last fifth judges it, as in the other policies here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from mpcache.eviction.base import Budget, Cache, Policy, Seeded, causal_mask
from mpcache.eviction.mpcache import OBSERVED, share_of
from mpcache.models.spec import ModelSpec
from mpcache.protocols.arithmetic import product
from mpcache.protocols.comparison import at_least, choose
from mpcache.protocols.operation import Machine, Value
from mpcache.protocols.softmax import attention

WON = {"magnitude": 23, "keep": 14}  # sums of attention times counts of queries


@dataclass(frozen=True)
class TreeKV(Policy):
    """Args:
    tokens: stored between steps; a step attends to one more, the newest.
    """

    tokens: int = 128
    name: ClassVar[str] = "treekv"
    paper: ClassVar[str] = "TreeKV: He et al. 2025, arXiv 2501.04987"
    meaning: ClassVar[str] = "tokens stored; a step attends to one more"
    leaks: ClassVar[str] = "nothing: which neighbours compete depends on counts alone"

    @classmethod
    def at(cls, budget_tokens: int, prompt_tokens: int) -> TreeKV:
        return cls(budget_tokens)

    def budget(self, prompt_tokens: int, new_tokens: int) -> Budget:
        steps = range(1, new_tokens)
        attended = tuple(min(prompt_tokens + step, self.tokens + 1) for step in steps)
        return Budget(min(self.tokens, prompt_tokens), attended)

    def start(self, spec: ModelSpec, prompt_tokens: int, new_tokens: int) -> Cache:
        return TreeKVCache(spec, self)


class TreeKVCache(Cache):
    """`drawn` [kv_heads, tokens, 2]: attention drawn by a stored token, and from how many queries.

    `turn` is the first of the two neighbours that compete next.
    """

    def __init__(self, spec: ModelSpec, policy: TreeKV) -> None:
        super().__init__(spec)
        self.policy = policy
        self.drawn: dict[int, Value] = {}
        self.turn: dict[int, int] = {}

    def prefill(
        self, machine: Machine, layer: int, queries: Value, keys: Value, values: Value
    ) -> Value:
        tokens = keys.shape[1]
        observed = share_of(OBSERVED, tokens)
        mask = causal_mask(tokens, keys)
        context, weights = attention(machine, queries, keys, values, mask, observed)
        seen = torch.arange(tokens, 0, -1, dtype=torch.float64).clamp(max=observed)
        self._store(machine, layer, keys, values, self._drawn(machine, weights, seen))
        self.turn[layer] = 0
        size = self.policy.tokens
        for first in range(size, tokens, size):  # a turn through the cache each
            arrived = min(size, tokens - first)
            self._compete(machine, layer, 0, arrived)
            self.turn[layer] = arrived % size
        return context

    def fill(
        self, machine: Machine, layer: int, keys: Value, values: Value, seeded: Seeded
    ) -> None:
        super().fill(machine, layer, keys, values, seeded)
        self.drawn[layer] = seeded((keys.shape[0], keys.shape[1], 2))
        self.turn[layer] = 0

    def decode(self, machine: Machine, layer: int, queries: Value) -> Value:
        keys, values = self.keys[layer], self.values[layer]
        count = keys.shape[1]
        self.kept.dynamic.setdefault(layer, []).append(count)
        context, weights = attention(machine, queries, keys, values, None, 1)
        drawn = self._drawn(machine, weights, torch.ones(count, dtype=torch.float64))
        known = self.drawn[layer]
        drawn = machine.cat([known + drawn[:, : count - 1], drawn[:, count - 1 :]], 1)
        self._store(machine, layer, keys, values, drawn)
        if count > self.policy.tokens:
            turn = self.turn[layer]
            self._compete(machine, layer, turn, 1)
            self.turn[layer] = (turn + 1) % self.policy.tokens
        return context

    def _drawn(self, machine: Machine, weights: Value, seen: torch.Tensor) -> Value:
        """Sums [kv_heads, tokens] of weights beside the public counts `seen` [tokens]."""
        sums = weights.sum(2).sum(1)
        counts = machine.shift(machine.zeros_like(sums, tuple(sums.shape)), self._like(sums, seen))
        return machine.stack([sums, counts], 2)

    @staticmethod
    def _like(value: Value, public: torch.Tensor) -> torch.Tensor:
        """The public numbers where a plain value lives, in its precision."""
        return public.to(value) if isinstance(value, torch.Tensor) else public

    def _store(
        self, machine: Machine, layer: int, keys: Value, values: Value, drawn: Value
    ) -> None:
        self.keys[layer], self.values[layer], self.drawn[layer] = keys, values, drawn

    def _compete(self, machine: Machine, layer: int, start: int, pairs: int) -> None:
        """Of `pairs` pairs of neighbours from `start` on, one each stays.

        Averages a / m and b / n compare as a n and b m do.
        """
        parts = [self.keys[layer], self.values[layer], self.drawn[layer]]
        width = parts[0].shape[-1]
        with machine.scope("evict"):
            every = machine.cat(parts, -1)
            end = start + 2 * pairs
            left, right = every[:, start:end:2], every[:, start + 1 : end : 2]
            sums = machine.stack([left[..., -2], -right[..., -2]], 2).unsqueeze(2)
            counts = machine.stack([right[..., -1], left[..., -1]], 2).unsqueeze(3)
            lead = product(machine, sums, counts).squeeze(3)
            bits = at_least(machine, lead, 0.0, **WON)
            winners = choose(machine, bits, left, right)
            every = machine.cat([every[:, :start], winners, every[:, end:]], 1)
            both = machine.keep(every[..., :-2])
        self._store(machine, layer, both[..., :width], both[..., width:], every[..., -2:])
