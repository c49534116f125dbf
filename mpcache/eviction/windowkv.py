"""WindowKV (Zuo et al. 2025, arXiv 2503.17922): windows of neighbouring tokens stay or go whole.

1. The last queries of the prompt, the observation window, weigh what comes before them.
2. Each head keeps the windows of the greatest sums, and the observation window.
3. Layers come in groups; the first one's choice is that of all.

The paper's classifier of tasks, and its budgets that differ between groups of layers, are left
out: a task would become public, and one count for all layers is what the others here have.
A short window next to the observation window counts as part of that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mpcache.eviction.base import Budget, Cache, Policy, causal_mask
from mpcache.eviction.full import FullCache
from mpcache.eviction.merging import gather
from mpcache.models.spec import ModelSpec
from mpcache.protocols.operation import Machine, Value
from mpcache.protocols.selection import top_k
from mpcache.protocols.softmax import attention


@dataclass(frozen=True)
class WindowKV(Policy):
    """Args:
    tokens: kept of the prompt, rounded down to whole windows. Generated tokens all stay.
    observed: length of the observation window.
    window: tokens in a window.
    shared: layers in a group.
    """

    tokens: int = 128
    observed: int = 32
    window: int = 8
    shared: int = 2
    name: ClassVar[str] = "windowkv"
    paper: ClassVar[str] = "WindowKV: Zuo et al. 2025, arXiv 2503.17922"
    meaning: ClassVar[str] = "tokens of the prompt that stay, in whole windows"
    leaks: ClassVar[str] = "nothing: counts follow from the budget"

    @classmethod
    def at(cls, budget_tokens: int, prompt_tokens: int) -> WindowKV:
        observed = min(cls.observed, max(1, budget_tokens // 2))
        return cls(budget_tokens, observed, min(cls.window, max(1, budget_tokens // 4)))

    def windows(self, prompt_tokens: int) -> tuple[int, int]:
        """How many windows there are before the observation window, and how many of them stay."""
        count = max(0, prompt_tokens - self.observed) // self.window
        recent = prompt_tokens - count * self.window
        return count, min(count, max(0, self.tokens - recent) // self.window)

    def budget(self, prompt_tokens: int, new_tokens: int) -> Budget:
        count, picks = self.windows(prompt_tokens)
        static = prompt_tokens - (count - picks) * self.window
        return Budget(static, tuple(static + step for step in range(1, new_tokens)))

    def layer_kind(self, layer: int) -> int:
        return int(layer % self.shared != 0)

    def start(self, spec: ModelSpec, prompt_tokens: int, new_tokens: int) -> Cache:
        return WindowKVCache(spec, self)


class WindowKVCache(FullCache):
    def __init__(self, spec: ModelSpec, policy: WindowKV) -> None:
        super().__init__(spec)
        self.policy = policy
        self.rows: Value | None = None

    def prefill(
        self, machine: Machine, layer: int, queries: Value, keys: Value, values: Value
    ) -> Value:
        heads, tokens, width = keys.shape
        count, picks = self.policy.windows(tokens)
        chooses = self.policy.layer_kind(layer) == 0 and 0 < picks < count
        mask = causal_mask(tokens, keys)
        observed = min(self.policy.observed, tokens) if chooses else 0
        context, weights = attention(machine, queries, keys, values, mask, observed)
        size = self.policy.window
        edge = count * size
        if chooses:
            with machine.scope("evict"):
                importance = weights.sum(2).sum(1)[:, :edge].reshape(heads, count, size).sum(-1)
                self.rows = machine.keep(top_k(machine, importance, picks))
        if picks < count:
            with machine.scope("evict"):
                both = machine.cat([keys, values], -1)
                parts = [both[:, edge:]]
                if picks:
                    windows = both[:, :edge].reshape(heads, count, size * 2 * width)
                    (chosen,) = gather(machine, self.rows, windows)
                    parts.insert(0, chosen.reshape(heads, picks * size, 2 * width))
                both = machine.keep(machine.cat(parts, 1))
            keys, values = both[..., :width], both[..., width:]
        self.keys[layer], self.values[layer] = keys, values
        return context
