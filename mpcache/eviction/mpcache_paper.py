"""MPCache at the paper's setting: what the default here is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from mpcache.eviction.mpcache import MANY, MPCache


@dataclass(frozen=True)
class MPCachePaper(MPCache):
    """Half of the prompt is evicted; extrema summarise clusters of 32 and 16; heads of a group
    choose together, pairs of layers share the choice, and keys and values are gathered.
    """

    clusters: tuple[int, int] = (32, 16)
    static_keep: float = 0.5
    coarse_keep: float = 0.5
    share_layers: bool = True
    summary: Literal["extrema", "mean"] = "extrema"
    gather: Literal["scores", "kv"] = "kv"
    per_head: bool = False
    observe: int = 0
    pooled: int = 1
    most_clusters: int = MANY
    name: ClassVar[str] = "mpcache-paper"

    @classmethod
    def at(cls, budget_tokens: int, prompt_tokens: int) -> MPCachePaper:
        static = max(cls.static_keep, min(1.0, budget_tokens / prompt_tokens))
        stored = cls(static_keep=static).static_kept(prompt_tokens)
        return cls(static_keep=static, dynamic_keep=min(1.0, budget_tokens / stored))
