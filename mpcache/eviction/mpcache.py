"""MPCache (Zeng et al., NeurIPS 2025, arXiv 2501.06807), with fixed public counts.

Look-once static eviction after prefill; then, in every decode step, two levels of clusters chosen
by a linear similarity; from layer 2 on, pairs of layers share the choice. Nobody learns which
tokens were evicted or chosen: choices are one-hot matrices on shares.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from mpcache.eviction.base import Budget, Cache, Policy, causal_mask
from mpcache.models.spec import ModelSpec
from mpcache.protocols.arithmetic import matmul, scale, settle
from mpcache.protocols.comparison import extrema, maximum
from mpcache.protocols.operation import Machine, Value
from mpcache.protocols.selection import top_k
from mpcache.protocols.softmax import attention

# Sums over a group and a head of products of queries and keys: large, and coarsely told apart.
SIMILARITY = {"magnitude": 21, "keep": 10}
OBSERVED = 0.2  # share of the prompt's last queries that judge importance


def share_of(share: float, count: int) -> int:
    """`share` of `count`, rounded up as decimals are: 0.07 of 100 is 7."""
    return math.ceil(share * count - 1e-9)


@dataclass(frozen=True)
class Choice:
    """The public shape of one decode step's selection among `tokens` stored ones.

    Clusters are numbered in order; the first and the last are always kept. `fine` and `coarse`
    count clusters, `picks` the fine ones chosen freely, `coarse_picks` the middle coarse ones
    whose fine clusters are candidates. `selects` is False where everything is kept.
    """

    tokens: int
    fine: int
    coarse: int
    picks: int
    coarse_picks: int
    selects: bool
    kept: int


@dataclass(frozen=True)
class MPCache(Policy):
    """Static eviction, then hierarchical selection.

    Args:
        clusters: tokens in a coarse and in a fine cluster; the second divides the first.
        alpha: weight of the maximum in a cluster's summary, 1 - alpha that of the minimum.
        static_keep: share of the prompt kept after prefill; the count ceil(share T) is public.
        coarse_keep, dynamic_keep: share of coarse and of all fine clusters kept in a step.
        sink, recent: tokens at the prompt's ends that static eviction always keeps.
        share_layers: layers (2,3), (4,5), ... share the even layer's choice.
        summary: extrema (the paper's) or mean of a cluster's keys.
    """

    clusters: tuple[int, int] = (32, 16)
    alpha: float = 0.6
    static_keep: float = 0.9
    coarse_keep: float = 0.5
    dynamic_keep: float = 0.6
    sink: int = 4
    recent: int = 16
    share_layers: bool = True
    summary: Literal["extrema", "mean"] = "extrema"
    name: ClassVar[str] = "mpcache"

    def static_kept(self, prompt_tokens: int) -> int:
        """Tokens kept after prefill."""
        wanted = max(share_of(self.static_keep, prompt_tokens), self.sink + self.recent)
        return min(wanted, prompt_tokens)

    def choice(self, tokens: int) -> Choice:
        """The selection among `tokens` stored tokens, the newest included."""
        big, small = self.clusters
        coarse, fine = math.ceil(tokens / big), math.ceil(tokens / small)
        picks = max(share_of(self.dynamic_keep, fine), 2) - 2
        coarse_picks = max(share_of(self.coarse_keep, coarse), 2) - 2
        middle = max(coarse - 2, 0)
        coarse_picks = min(coarse_picks, middle)
        candidates = fine - 2 - (middle - coarse_picks) * (big // small)
        picks = min(picks, max(candidates, 0))
        selects = fine > 2 and picks < fine - 2
        kept = tokens - (fine - 2 - picks) * small if selects else tokens
        return Choice(tokens, fine, coarse, picks, coarse_picks, selects, kept)

    def budget(self, prompt_tokens: int, new_tokens: int) -> Budget:
        static = self.static_kept(prompt_tokens)
        steps = range(1, new_tokens)
        return Budget(static, tuple(self.choice(static + step).kept for step in steps))

    def start(self, spec: ModelSpec, prompt_tokens: int, new_tokens: int) -> Cache:
        stored = self.static_kept(prompt_tokens)
        selects = any(self.choice(stored + step).selects for step in range(1, new_tokens))
        return MPCacheCache(spec, self, selects)

    def selects_itself(self, layer: int) -> bool:
        """Whether `layer` makes its own choice (else it takes that of the layer before)."""
        return not self.share_layers or layer < 2 or layer % 2 == 0


class MPCacheCache(Cache):
    """State of one run: stored tokens, cluster summaries, and the step's choice to share."""

    def __init__(self, spec: ModelSpec, policy: MPCache, selects: bool) -> None:
        super().__init__(spec)
        self.policy = policy
        self.selects = selects
        self.fine: dict[int, tuple[Value, Value]] = {}
        self.shared: Value | None = None

    # --- prefill -------------------------------------------------------------------------------

    def prefill(
        self, machine: Machine, layer: int, queries: Value, keys: Value, values: Value
    ) -> Value:
        tokens = keys.shape[1]
        mask = causal_mask(tokens)
        context, probabilities = attention(machine, queries, keys, values, mask)
        with machine.scope("evict"):
            observed = share_of(OBSERVED, tokens)
            importance = probabilities[:, :, tokens - observed :].sum(2).sum(1).sum(0)
            keys, values = self._evict(machine, importance, keys, values)
        self.keys[layer], self.values[layer] = keys, values
        if self.selects and self.policy.selects_itself(layer):
            self._summarise(machine, layer)
        return context

    def _evict(
        self, machine: Machine, importance: Value, keys: Value, values: Value
    ) -> tuple[Value, Value]:
        """Keep the most important tokens between sink and recent, in order, obliviously.

        Args:
            importance: [tokens]. keys, values: [kv_heads, tokens, head_dim].
        """
        heads, tokens, width = keys.shape
        kept = self.policy.static_kept(tokens)
        if kept == tokens:
            return keys, values
        first, last = self.policy.sink, tokens - self.policy.recent
        rows = top_k(machine, importance[first:last], kept - self.policy.sink - self.policy.recent)
        both = machine.cat([keys, values], 0)
        middle = both[:, first:last].permute(1, 0, 2).reshape(last - first, 2 * heads * width)
        chosen = matmul(machine, rows, middle)
        chosen = chosen.reshape(rows.shape[0], 2 * heads, width).permute(1, 0, 2)
        both = machine.cat([both[:, :first], chosen, both[:, last:]], 1)
        return both[:heads], both[heads:]

    # --- summaries -----------------------------------------------------------------------------

    def _summarise(self, machine: Machine, layer: int) -> None:
        """Bring the summaries of full fine clusters up to date: maxima and minima, or means."""
        small = self.policy.clusters[1]
        keys = self.keys[layer]
        heads, tokens, width = keys.shape
        known = self.fine[layer][0].shape[1] if layer in self.fine else 0
        full = tokens // small
        if full == known:
            return
        fresh = keys[:, known * small : full * small].reshape(heads, full - known, small, width)
        with machine.scope("summary"):
            if self.policy.summary == "mean":
                mean = fresh.sum(2)
                parts = (mean, mean)
            else:
                parts = extrema(machine, fresh, 2)
            if known:
                old = self.fine[layer]
                parts = (machine.cat([old[0], parts[0]], 1), machine.cat([old[1], parts[1]], 1))
            self.fine[layer] = parts

    def _blend(self, machine: Machine, most: Value, least: Value, tokens: int) -> Value:
        """The summary r from maxima and minima, or from the key sums of `tokens` keys."""
        if self.policy.summary == "mean":
            return settle(machine, scale(machine, most, 1 / tokens))
        return least + scale(machine, most - least, self.policy.alpha)

    def _coarse(self, machine: Machine, most: Value, least: Value) -> tuple[Value, Value]:
        """Maxima and minima (or sums) of coarse clusters from those of their fine ones.

        Args:
            most, least: [kv_heads, coarse * per, head_dim], whole coarse clusters only.
        """
        per = self.policy.clusters[0] // self.policy.clusters[1]
        heads, count, width = most.shape
        shape = (heads, count // per, per, width)
        most, least = most.reshape(*shape), least.reshape(*shape)
        if self.policy.summary == "mean":
            total = most.sum(2)
            return total, total
        with machine.scope("summary"):
            both = maximum(machine, machine.stack([most, -least]), 3).squeeze(3)
        return both[0], -both[1]

    # --- decode --------------------------------------------------------------------------------

    def decode(self, machine: Machine, layer: int, queries: Value) -> Value:
        keys, values = self.keys[layer], self.values[layer]
        choice = self.policy.choice(keys.shape[1])
        if self.selects and self.policy.selects_itself(layer):
            self._summarise(machine, layer)
        if choice.selects:
            with machine.scope("select"):
                if self.policy.selects_itself(layer):
                    self.shared = self._choose(machine, layer, queries, choice)
                keys, values = self._gather(machine, keys, values, choice)
        self.kept.dynamic.setdefault(layer, []).append(keys.shape[1])
        context, _ = attention(machine, queries, keys, values)
        return context

    def _choose(self, machine: Machine, layer: int, queries: Value, choice: Choice) -> Value | None:
        """One-hot rows [kv_heads, picks, fine - 2] over the fine clusters but first and last.

        1. Similarities of the group's summed query with all coarse and fine summaries.
        2. Level 1: top-k of the middle coarse clusters; their fine similarities are gathered.
        3. Level 2: top-k among those and the loose fine clusters of the two outer coarse ones.
        4. Both one-hot matrices multiply to one over all fine clusters.
        """
        if choice.picks == 0:
            return None
        big, small = self.policy.clusters
        per, middle = big // small, max(choice.coarse - 2, 0)
        heads = queries.shape[0]
        most, least = (part[:, 1 : choice.fine - 1] for part in self.fine[layer])
        fine = self._blend(machine, most, least, small)
        query = queries.sum(1)
        one_level = choice.coarse_picks == middle
        if one_level:
            near = matmul(machine, query, fine.transpose(1, 2)).reshape(heads, choice.fine - 2)
            return top_k(machine, near, choice.picks, **SIMILARITY)
        # fine cluster i stands at i - 1 here; whole middle coarse clusters begin at per - 1
        head, tail = per - 1, per - 1 + middle * per
        coarse = self._coarse(machine, most[:, head:tail], least[:, head:tail])
        summaries = machine.cat([self._blend(machine, *coarse, big), fine], 1)
        near = matmul(machine, query, summaries.transpose(1, 2))
        near = near.reshape(heads, middle + choice.fine - 2)
        far, near = near[:, :middle], near[:, middle:]
        blocks = near[:, head:tail].reshape(heads, middle, per)
        if choice.coarse_picks == 0:
            loose = machine.cat([near[:, :head], near[:, tail:]], 1)
            rows = top_k(machine, loose, choice.picks, **SIMILARITY)
            empty = machine.zeros_like(rows, (heads, choice.picks, middle * per))
            return machine.cat([rows[..., :head], empty, rows[..., head:]], -1)
        level1 = top_k(machine, far, choice.coarse_picks, **SIMILARITY)
        inner = matmul(machine, level1, blocks).reshape(heads, choice.coarse_picks * per)
        candidates = machine.cat([near[:, :head], inner, near[:, tail:]], 1)
        if choice.picks == candidates.shape[1]:  # level 1 has left no more than may be kept
            every = torch.eye(choice.picks).expand(heads, -1, -1)
            level2 = machine.shift(machine.zeros_like(level1, tuple(every.shape)), every)
        else:
            level2 = top_k(machine, candidates, choice.picks, **SIMILARITY)
        edge = head + choice.coarse_picks * per
        spread = level2[..., head:edge].reshape(heads, choice.picks, choice.coarse_picks, per)
        spread = spread.transpose(2, 3).reshape(heads, choice.picks * per, choice.coarse_picks)
        spread = matmul(machine, spread, level1).reshape(heads, choice.picks, per, middle)
        spread = spread.transpose(2, 3).reshape(heads, choice.picks, middle * per)
        return machine.cat([level2[..., :head], spread, level2[..., edge:]], -1)

    def _gather(
        self, machine: Machine, keys: Value, values: Value, choice: Choice
    ) -> tuple[Value, Value]:
        """First, chosen and last fine clusters of keys and values [kv_heads, tokens, head_dim]."""
        small = self.policy.clusters[1]
        heads, _, width = keys.shape
        both = machine.cat([keys, values], -1)
        last = (choice.fine - 1) * small
        parts = [both[:, :small], both[:, last:]]
        if choice.picks:
            blocks = both[:, small:last].reshape(heads, choice.fine - 2, small * 2 * width)
            chosen = matmul(machine, self.shared, blocks)
            parts.insert(1, chosen.reshape(heads, choice.picks * small, 2 * width))
        both = machine.cat(parts, 1)
        return both[..., :width], both[..., width:]
