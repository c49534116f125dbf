"""ClusterKV (Liu et al. 2024, arXiv 2412.03213): clusters of similar keys, chosen by the query.

Clusters by likeness, wherever their tokens stand; in each step those whose centroid has the
greatest product with the query are attended to. Nothing is evicted.

The paper's k-means makes clusters of any size, which would leak. Here a cluster has a fixed size,
and clusters come from halving a set of keys until it has that size:

1. Centre the set; start from the halves by position.
2. Some times over: the direction from one half's mean to the other's, which is parallel to one
   half's sum; then whoever lies on its side of the middle. These are two-means' steps.
3. Order by the place along the direction and cut the order where whole clusters end.

The first tokens, as many as a cluster, are always attended to, and so is the last cluster. Tokens
generated later, and up to two clusters before them, stay in clusters by position; the paper
clusters them every 320 tokens. A product with a centroid is the mean of the scores in a cluster.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from mpcache.eviction.base import Budget, Cache, Policy, causal_mask
from mpcache.eviction.merging import gather
from mpcache.eviction.mpcache import MANY, SIMILARITY, MPCache, MPCacheCache
from mpcache.models.spec import ModelSpec
from mpcache.protocols.arithmetic import matmul, product, scale, settle
from mpcache.protocols.comparison import at_least
from mpcache.protocols.operation import Machine, Value
from mpcache.protocols.selection import best
from mpcache.protocols.softmax import attention


@dataclass(frozen=True)
class ClusterKV(Policy):
    """Args:
    keep: share of the clusters that a step attends to.
    size: tokens in a cluster.
    steps: of two-means, at each halving.
    """

    keep: float = 0.5
    size: int = 16
    steps: int = 3
    name: ClassVar[str] = "clusterkv"
    paper: ClassVar[str] = "ClusterKV: Liu et al. 2024, arXiv 2412.03213"
    meaning: ClassVar[str] = "tokens in the clusters that a decode step attends to"
    leaks: ClassVar[str] = "nothing: clusters have one size"

    @classmethod
    def at(cls, budget_tokens: int, prompt_tokens: int) -> ClusterKV:
        return cls(
            min(1.0, budget_tokens / prompt_tokens), min(cls.size, max(1, budget_tokens // 4))
        )

    @property
    def selection(self) -> MPCache:
        """The selection of a step: one level of clusters, each head and layer for itself."""
        return MPCache(
            (self.size, self.size), static_keep=1.0, coarse_keep=1.0, dynamic_keep=self.keep,
            share_layers=False, most_clusters=MANY,
        )  # fmt: skip

    def budget(self, prompt_tokens: int, new_tokens: int) -> Budget:
        return self.selection.budget(prompt_tokens, new_tokens)

    def start(self, spec: ModelSpec, prompt_tokens: int, new_tokens: int) -> Cache:
        return ClusterKVCache(spec, self)


class ClusterKVCache(MPCacheCache):
    def __init__(self, spec: ModelSpec, policy: ClusterKV) -> None:
        super().__init__(spec, policy.selection, True)
        self.clustering = policy

    def prefill(
        self, machine: Machine, layer: int, queries: Value, keys: Value, values: Value
    ) -> Value:
        size, (_, tokens, width) = self.clustering.size, keys.shape
        context, _ = attention(machine, queries, keys, values, causal_mask(tokens, keys), 0)
        clusters = tokens // size - 2
        if clusters > 1:
            edge = (clusters + 1) * size
            with machine.scope("cluster"):
                both = machine.cat([keys, values], -1)
                inner = self._clustered(machine, both[:, size:edge].unsqueeze(1), clusters)
                both = machine.keep(machine.cat([both[:, :size], inner, both[:, edge:]], 1))
            keys, values = both[..., :width], both[..., width:]
        self.keys[layer], self.values[layer] = keys, values
        return context

    def _clustered(self, machine: Machine, both: Value, clusters: int) -> Value:
        """Tokens [kv_heads, tokens, 2 head_dim] with those of a cluster side by side.

        Args:
            both: keys and values [kv_heads, 1, tokens, 2 head_dim].
        """
        heads, size = both.shape[0], self.clustering.size
        sets, done = {clusters: [both]}, []
        while sets:
            halves: dict[int, list[Value]] = {}
            for count, parts in sets.items():  # at most two counts a level
                every = machine.cat(parts, 1)
                if count == 1:
                    done.append(every.reshape(heads, -1, every.shape[-1]))
                    continue
                ordered = self._ordered(machine, every)
                left = count // 2
                halves.setdefault(left, []).append(ordered[:, :, : left * size])
                halves.setdefault(count - left, []).append(ordered[:, :, left * size :])
            sets = halves
        return machine.cat(done, 1)

    def _ordered(self, machine: Machine, both: Value) -> Value:
        """Sets [kv_heads, sets, tokens, 2 head_dim], each in order along its main direction."""
        heads, sets, count, width = both.shape
        flat = both.reshape(heads * sets, count, width)
        keys = flat[..., : width // 2]
        middle = settle(machine, scale(machine, keys.sum(1).unsqueeze(1), 1 / count))
        keys = keys - middle.expand(*keys.shape)
        direction = keys[:, : count // 2].sum(1).unsqueeze(1)
        for step in range(self.clustering.steps):
            direction = settle(machine, scale(machine, direction, 1 / count))
            places = product(machine, direction, keys.transpose(1, 2))
            if step + 1 < self.clustering.steps:
                side = at_least(machine, places, 0.0, **SIMILARITY)
                direction = matmul(machine, side, keys)
        rows = best(machine, places.squeeze(1), count, **SIMILARITY)
        (ordered,) = gather(machine, rows, flat)
        return ordered.reshape(heads, sets, count, width)
