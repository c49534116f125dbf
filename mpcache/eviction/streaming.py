"""StreamingLLM (Xiao et al., ICLR 2024, arXiv 2309.17453): the first tokens and the last ones.

Which tokens those are is public, so nothing is chosen and nothing costs a message. The paper
counts positions inside the cache; here tokens keep those they had in the text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mpcache.eviction.base import Budget, Cache, Policy
from mpcache.eviction.full import FullCache
from mpcache.models.spec import ModelSpec
from mpcache.protocols.operation import Machine, Value


@dataclass(frozen=True)
class Streaming(Policy):
    """Args:
    tokens: stored between steps; a step attends to one more, the newest.
    sinks: how many of them are the prompt's first ones.
    """

    tokens: int = 128
    sinks: int = 4
    name: ClassVar[str] = "streaming"
    paper: ClassVar[str] = "StreamingLLM: Xiao et al., ICLR 2024, arXiv 2309.17453"
    meaning: ClassVar[str] = "tokens stored, first and last; a step attends to one more"
    leaks: ClassVar[str] = "nothing: what stays follows from positions alone"

    @classmethod
    def at(cls, budget_tokens: int, prompt_tokens: int) -> Streaming:
        return cls(budget_tokens, min(cls.sinks, budget_tokens // 2))

    def budget(self, prompt_tokens: int, new_tokens: int) -> Budget:
        steps = range(1, new_tokens)
        attended = tuple(min(prompt_tokens + step, self.tokens + 1) for step in steps)
        return Budget(min(self.tokens, prompt_tokens), attended)

    def start(self, spec: ModelSpec, prompt_tokens: int, new_tokens: int) -> Cache:
        return StreamingCache(spec, self)


class StreamingCache(FullCache):
    def __init__(self, spec: ModelSpec, policy: Streaming) -> None:
        super().__init__(spec)
        self.policy = policy

    def prefill(
        self, machine: Machine, layer: int, queries: Value, keys: Value, values: Value
    ) -> Value:
        context = super().prefill(machine, layer, queries, keys, values)
        self._drop(machine, layer)
        return context

    def decode(self, machine: Machine, layer: int, queries: Value) -> Value:
        context = super().decode(machine, layer, queries)
        self._drop(machine, layer)
        return context

    def _drop(self, machine: Machine, layer: int) -> None:
        """Leave out what is neither first nor last."""
        count, sinks = self.keys[layer].shape[1], self.policy.sinks
        first = count - self.policy.tokens + sinks
        if first > sinks:
            for held in (self.keys, self.values):
                x = held[layer]
                held[layer] = machine.cat([x[:, :sinks], x[:, first:]], 1)
