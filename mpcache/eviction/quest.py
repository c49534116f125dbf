"""Quest (Tang et al., ICML 2024, arXiv 2406.10774): pages of keys, bounded by their extrema.

1. A page of neighbouring tokens is summarised by the greatest and the least key in each dimension.
2. A query bounds its scores in a page by the sum over dimensions of the greater product, which is
   q . (most + least) / 2 + |q| . (most - least) / 2: one comparison a dimension of the query.
3. Each query head attends to the pages of the greatest bounds. Nothing is evicted.

The first and the last page always count, as in the other policies here; the paper leaves its first
two layers alone, which would be a budget of their own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mpcache.eviction.base import Budget, Cache, Policy
from mpcache.eviction.mpcache import MANY, Choice, MPCache, MPCacheCache
from mpcache.models.spec import ModelSpec
from mpcache.protocols.arithmetic import matmul, scale
from mpcache.protocols.comparison import negative, pick
from mpcache.protocols.operation import Machine, Value


@dataclass(frozen=True)
class Quest(Policy):
    """Args:
    keep: share of the pages that a step attends to.
    page: tokens in a page.
    """

    keep: float = 0.2
    page: int = 16
    name: ClassVar[str] = "quest"
    paper: ClassVar[str] = "Quest: Tang et al., ICML 2024, arXiv 2406.10774"
    meaning: ClassVar[str] = "tokens in the pages that a decode step attends to"
    leaks: ClassVar[str] = "nothing: pages have one size"

    @classmethod
    def at(cls, budget_tokens: int, prompt_tokens: int) -> Quest:
        page = min(cls.page, max(1, budget_tokens // 3))
        return cls(min(1.0, budget_tokens / prompt_tokens), page)

    @property
    def selection(self) -> MPCache:
        """The selection of a step: one level of clusters, each query head for itself."""
        return MPCache(
            (self.page, self.page), static_keep=1.0, dynamic_keep=self.keep, summary="extrema",
            most_clusters=MANY,
        )  # fmt: skip

    def budget(self, prompt_tokens: int, new_tokens: int) -> Budget:
        return self.selection.budget(prompt_tokens, new_tokens)

    def start(self, spec: ModelSpec, prompt_tokens: int, new_tokens: int) -> Cache:
        return QuestCache(spec, self.selection, True)


class QuestCache(MPCacheCache):
    def _similarities(
        self, machine: Machine, layer: int, queries: Value, scores: Value, choice: Choice
    ) -> tuple[Value, Value | None]:
        heads, group, _, width = queries.shape
        most, least = (part[:, 1 : choice.fine - 1] for part in self.fine[layer])
        middle, half = scale(machine, most + least, 0.5), scale(machine, most - least, 0.5)
        query = queries.reshape(heads, group, width)
        below = pick(machine, negative(machine, query, magnitude=10), query)
        sizes = query - below - below
        both = machine.cat([query, sizes], 2)
        bounds = matmul(machine, both, machine.cat([middle, half], 2).transpose(1, 2))
        return bounds.reshape(heads * group, choice.fine - 2), None
