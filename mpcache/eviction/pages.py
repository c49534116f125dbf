"""A decode step of clustered attention where kernels pay: the same result in a few launches.

The text of `mpcache.eviction.mpcache` works for every machine: one-hot rows choose, products
gather. In plaintext on a GPU a choice is a list of clusters, which are pages of the cache:

1. Summaries of whole clusters, each worked out once, when its last token has come.
2. Similarities with them and the best, in one kernel where clusters are few.
3. Attention over the chosen pages alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from mpcache.kernels.triton_cache import cluster_attention, similarities, summaries, takes_kernels
from mpcache.kernels.triton_choose import choose, greatest
from mpcache.protocols.growing import Growing
from mpcache.protocols.operation import Fused, Machine, PlainMachine, Value

if TYPE_CHECKING:
    from mpcache.eviction.mpcache import Choice, MPCache, MPCacheCache


class Pages:
    """What the kernels keep of one run: summaries by layer and cluster size, and the last choice.

    Attributes:
        chosen: clusters of a step [kv_heads, choosers, picks], for layers that share it.
    """

    def __init__(self, policy: MPCache) -> None:
        self.policy = policy
        self.chosen: torch.Tensor | None = None
        self._summaries: dict[tuple[int, int], Growing] = {}

    def attend(
        self, layer: int, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor,
        choice: Choice,
    ) -> torch.Tensor:  # fmt: skip
        """Context [kv_heads, group, head_dim] of queries of that shape over the chosen clusters.

        Args:
            keys, values: [kv_heads, tokens, head_dim].
        """
        if self.policy.selects_itself(layer):
            self.chosen = self._choose(layer, queries, keys, choice)
        assert self.chosen is not None
        size, scale = self.policy.clusters[1], queries.shape[-1] ** -0.5
        return cluster_attention(queries, keys, values, self.chosen, size, scale)

    def _choose(
        self, layer: int, queries: torch.Tensor, keys: torch.Tensor, choice: Choice
    ) -> torch.Tensor:
        """The first, the last and the best fine clusters for each chooser."""
        if not self.policy.per_head:  # heads of a group choose together
            queries = queries.sum(1, keepdim=True)
        ends = torch.zeros(*queries.shape[:2], 2, dtype=torch.int32, device=keys.device)
        ends[..., 1] = choice.fine - 1
        if not choice.picks:
            return ends
        big, small = self.policy.clusters
        fine = self._summary(layer, small, keys)[:, 1 : choice.fine - 1]
        middle = max(choice.coarse - 2, 0)
        if choice.coarse_picks == middle:
            best = choose(queries, fine, choice.picks)
        else:
            open_ = self._opened(layer, queries, keys, choice, big // small, middle)
            near = similarities(queries, fine).masked_fill(~open_, float("-inf"))
            best = greatest(near, choice.picks)
        return torch.cat([ends, best + 1], -1)

    def _opened(
        self, layer: int, queries: torch.Tensor, keys: torch.Tensor, choice: Choice, per: int,
        middle: int,
    ) -> torch.Tensor:  # fmt: skip
        """Which fine clusters level 1 leaves [kv_heads, choosers, fine - 2]."""
        heads, choosers = queries.shape[:2]
        shape = (heads, choosers, choice.fine - 2)
        opened = torch.ones(shape, dtype=torch.bool, device=keys.device)
        coarse = torch.zeros(heads, choosers, middle, dtype=torch.bool, device=keys.device)
        if choice.coarse_picks:
            far = self._summary(layer, self.policy.clusters[0], keys)[:, 1 : choice.coarse - 1]
            coarse.scatter_(-1, choose(queries, far, choice.coarse_picks).long(), True)
        first = per - 1  # fine cluster i stands at i - 1
        opened[..., first : first + middle * per] = coarse.repeat_interleave(per, -1)
        return opened

    def _summary(self, layer: int, size: int, keys: torch.Tensor) -> torch.Tensor:
        """Summaries [kv_heads, whole clusters, head_dim], those that are new worked out."""
        held = self._summaries.get((layer, size))
        known, whole = held.value.shape[1] if held else 0, keys.shape[1] // size
        if whole > known:
            most, least, mean = summaries(keys[:, known * size : whole * size], size)
            extrema = self.policy.summary == "extrema"
            fresh = least + self.policy.alpha * (most - least) if extrema else mean
            if held is None:
                held = self._summaries[layer, size] = Growing(fresh)
            else:
                held.add(fresh)
        assert held is not None
        return held.value


class ClusteredStep(Fused):
    """One token's attention to the clusters of a cache: `MPCacheCache.step`, the text.

    In plaintext where the kernels take the tensors (on a GPU) by `Pages`: the same choice but for
    near ties, and the same context within float32.
    """

    name = "clustered-step"

    def plain(
        self, machine: PlainMachine, cache: MPCacheCache, layer: int, queries: torch.Tensor
    ) -> Any:
        keys, values = cache.keys[layer], cache.values[layer]
        choice = cache.policy.choice(keys.shape[1])
        if cache.pages is None or not choice.selects or not takes_kernels(queries):
            return self.run(machine, cache, layer, queries)
        cache.kept.dynamic.setdefault(layer, []).append(choice.kept)
        return cache.pages.attend(layer, queries.squeeze(2), keys, values, choice).unsqueeze(2)

    def run(self, machine: Machine, cache: MPCacheCache, layer: int, queries: Value) -> Value:
        return cache.step(machine, layer, queries)


clustered_step = ClusteredStep()
