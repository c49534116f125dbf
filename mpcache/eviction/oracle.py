"""The upper bound: each query head attends to its own greatest scores. In plaintext only.

Choosing tokens one by one for each head costs more on shares than attending to them all.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mpcache.errors import UsageError
from mpcache.eviction.base import Budget, Cache, Policy
from mpcache.eviction.full import FullCache
from mpcache.models.spec import ModelSpec
from mpcache.protocols.operation import Machine, Value
from mpcache.protocols.softmax import attend, scores_of


@dataclass(frozen=True)
class Oracle(Policy):
    """Args:
    tokens: attended to in a step by each query head.
    """

    tokens: int = 128
    name: ClassVar[str] = "oracle"
    paper: ClassVar[str] = "exact top tokens, an upper bound"
    meaning: ClassVar[str] = "tokens that each query head attends to"
    leaks: ClassVar[str] = "it does not run on shares"
    oblivious: ClassVar[bool] = False

    @classmethod
    def at(cls, budget_tokens: int, prompt_tokens: int) -> Oracle:
        return cls(budget_tokens)

    def budget(self, prompt_tokens: int, new_tokens: int) -> Budget:
        steps = range(1, new_tokens)
        return Budget(prompt_tokens, tuple(min(prompt_tokens + i, self.tokens) for i in steps))

    def start(self, spec: ModelSpec, prompt_tokens: int, new_tokens: int) -> Cache:
        return OracleCache(spec, self)


class OracleCache(FullCache):
    def __init__(self, spec: ModelSpec, policy: Oracle) -> None:
        super().__init__(spec)
        self.policy = policy

    def decode(self, machine: Machine, layer: int, queries: Value) -> Value:
        if machine.secure:
            raise UsageError("cache policy oracle runs in plaintext only; choose another one")
        keys, values = self.keys[layer], self.values[layer]
        heads, group, _, width = queries.shape
        count = min(self.policy.tokens, keys.shape[1])
        self.kept.dynamic.setdefault(layer, []).append(count)
        scores = scores_of(machine, queries, keys)
        best, places = scores.topk(count, -1)  # [kv_heads, group, 1, count]
        rows = places.reshape(heads, group * count, 1).expand(-1, -1, width)
        chosen = values.gather(1, rows).reshape(heads, group, count, width)
        return attend(machine, best, chosen).context
