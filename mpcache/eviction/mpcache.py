"""MPCache (Zeng et al., NeurIPS 2025, arXiv 2501.06807), with fixed public counts.

Look-once static eviction after prefill; then, in every decode step, two levels of clusters chosen
by a linear similarity; from layer 2 on, pairs of layers share the choice. Nobody learns which
tokens were evicted or chosen: choices are one-hot matrices on shares.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch

from mpcache.eviction.base import Budget, Cache, Policy, causal_mask
from mpcache.eviction.oblivious import pooled, top
from mpcache.eviction.pages import Pages, clustered_step
from mpcache.models.spec import ModelSpec
from mpcache.protocols.arithmetic import matmul, product, scale
from mpcache.protocols.comparison import extrema, maximum
from mpcache.protocols.dealer import DealerSuite
from mpcache.protocols.operation import Machine, Value
from mpcache.protocols.plays import Play
from mpcache.protocols.selection import best, gathered
from mpcache.protocols.softmax import attend, attention, scores_of

# Sums over a group and a head of products of queries and keys: large, and coarsely told apart.
SIMILARITY = {"magnitude": 21, "keep": 10}
MEAN_KEEP = 10  # fractional bits to which a cluster's mean score is told apart
OBSERVED = 0.2  # the paper's share of the prompt's last queries that judge importance

MANY = 1 << 30  # more clusters than there are: none doubles


def _summed(tokens: int) -> dict[str, int]:
    """How sums of so many scores are compared: on all bits that attention's ring holds."""
    return {"magnitude": 18, "keep": MEAN_KEEP - min(tokens.bit_length() - 1, MEAN_KEEP)}


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
        summary: extrema (the paper's) or mean of a cluster's keys. The similarity with a mean key
            is the mean of the scores, which are there already: free.
        gather: choose among scores, and spread the weights over all values; or (the paper's) gather
            keys and values first. The same result.
        per_head: each query head chooses for itself; else the heads of a group choose together.
        observe: how many of the prompt's last queries judge importance; 0 for the paper's fifth.
            The last ones ask the question, and the fewer they are the less a prefill costs.
        pooled: a token's importance is summed over so many neighbours, itself in the middle (1: the
            paper's). Else single digits of a number go, which the last queries hardly look at.
        least: tokens that are attended to however short the prompt, as whole clusters.
        most_clusters: cluster sizes double until the stored prompt has so many fine ones at most:
            the comparisons grow with the square of their number.
    """

    clusters: tuple[int, int] = (24, 12)
    alpha: float = 0.6
    static_keep: float = 0.7
    coarse_keep: float = 1.0
    dynamic_keep: float = 0.2
    sink: int = 4
    recent: int = 16
    share_layers: bool = False
    summary: Literal["extrema", "mean"] = "mean"
    gather: Literal["scores", "kv"] = "scores"
    per_head: bool = True
    observe: int = 16
    pooled: int = 7
    least: int = 0
    most_clusters: int = 64
    name: ClassVar[str] = "mpcache"
    paper: ClassVar[str] = "MPCache: Zeng et al., NeurIPS 2025, arXiv 2501.06807"
    meaning: ClassVar[str] = "tokens in the clusters that a decode step attends to"
    leaks: ClassVar[str] = "how many tokens and clusters are kept, which the configuration says"

    @classmethod
    def at(cls, budget_tokens: int, prompt_tokens: int) -> MPCache:
        """The share of clusters whose tokens make up the budget."""
        stored = cls().static_kept(prompt_tokens)
        return cls(dynamic_keep=min(1.0, budget_tokens / stored))

    def observed(self, prompt_tokens: int) -> int:
        """Queries at the prompt's end that judge importance."""
        return min(self.observe or share_of(OBSERVED, prompt_tokens), prompt_tokens)

    def static_kept(self, prompt_tokens: int) -> int:
        """Tokens kept after prefill."""
        wanted = max(share_of(self.static_keep, prompt_tokens), self.sink + self.recent)
        return min(wanted, prompt_tokens)

    def choice(self, tokens: int) -> Choice:
        """The selection among `tokens` stored tokens, the newest included."""
        big, small = self.clusters
        coarse, fine = math.ceil(tokens / big), math.ceil(tokens / small)
        wanted = max(share_of(self.dynamic_keep, fine), math.ceil(self.least / small), 2)
        picks = wanted - 2
        coarse_picks = max(share_of(self.coarse_keep, coarse), 2) - 2
        middle = max(coarse - 2, 0)
        coarse_picks = min(coarse_picks, middle)
        candidates = fine - 2 - (middle - coarse_picks) * (big // small)
        picks = min(picks, max(candidates, 0))
        selects = fine > 2 and picks < fine - 2
        kept = tokens - (fine - 2 - picks) * small if selects else tokens
        return Choice(tokens, fine, coarse, picks, coarse_picks, selects, kept)

    def sized(self, prompt_tokens: int) -> MPCache:
        """The policy with the cluster sizes for a prompt; they stay while tokens are added."""
        (big, small), stored = self.clusters, self.static_kept(prompt_tokens)
        while math.ceil(stored / small) > self.most_clusters:
            big, small = 2 * big, 2 * small
        return replace(self, clusters=(big, small))

    def budget(self, prompt_tokens: int, new_tokens: int) -> Budget:
        static, sized = self.static_kept(prompt_tokens), self.sized(prompt_tokens)
        steps = range(1, new_tokens)
        return Budget(static, tuple(sized.choice(static + step).kept for step in steps))

    def start(self, spec: ModelSpec, prompt_tokens: int, new_tokens: int) -> Cache:
        stored, sized = self.static_kept(prompt_tokens), self.sized(prompt_tokens)
        selects = any(sized.choice(stored + step).selects for step in range(1, new_tokens))
        return MPCacheCache(spec, sized, selects)

    def layer_kind(self, layer: int) -> int:
        return int(not self.selects_itself(layer))

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
        self.pages = Pages(policy) if type(self) is MPCacheCache else None

    # --- prefill -------------------------------------------------------------------------------

    def prefill(
        self, machine: Machine, layer: int, queries: Value, keys: Value, values: Value
    ) -> Value:
        tokens = keys.shape[1]
        mask = causal_mask(tokens, keys)
        context, probabilities = attention(
            machine, queries, keys, values, mask, self.policy.observed(tokens)
        )
        with machine.scope("evict"):
            importance = probabilities.sum(2).sum(1).sum(0)
            importance = pooled(machine, importance, self.policy.pooled)
            # what a token's importance is at most: its neighbours share each query's weight
            judges = math.prod(probabilities.shape[:3])
            keys, values = self._evict(machine, importance, keys, values, judges)
        self.keys[layer], self.values[layer] = keys, values
        self._summarise(machine, layer)
        return context

    def _evict(
        self, machine: Machine, importance: Value, keys: Value, values: Value, judges: int
    ) -> tuple[Value, Value]:
        """Keep the most important tokens between sink and recent, in order, obliviously.

        Args:
            importance: [tokens], from 0 to `judges`. keys, values: [kv_heads, tokens, head_dim].
        """
        policy, bits = self.policy, judges.bit_length()
        kept = top(
            machine,
            importance,
            policy.static_kept(keys.shape[1]),
            policy.sink,
            policy.recent,
            magnitude=bits,
        )
        return kept.stored(machine, keys, values)

    # --- summaries -----------------------------------------------------------------------------

    def _summarise(self, machine: Machine, layer: int) -> None:
        """Bring the extrema of full fine clusters up to date, where this layer reads them."""
        policy = self.policy
        if not self.selects or not policy.selects_itself(layer) or policy.summary == "mean":
            return
        small = self.policy.clusters[1]
        keys = self.keys[layer]
        heads, tokens, width = keys.shape
        known = self.fine[layer][0].shape[1] if layer in self.fine else 0
        full = tokens // small
        if full == known:
            return
        fresh = keys[:, known * small : full * small].reshape(heads, full - known, small, width)
        with machine.scope("summary"):
            parts = extrema(machine, fresh, 2)
            if known:
                old = self.fine[layer]
                parts = (machine.cat([old[0], parts[0]], 1), machine.cat([old[1], parts[1]], 1))
            self.fine[layer] = parts

    def _blend(self, machine: Machine, most: Value, least: Value) -> Value:
        """The summary r from maxima and minima."""
        return least + scale(machine, most - least, self.policy.alpha)

    def _coarse(self, machine: Machine, most: Value, least: Value) -> tuple[Value, Value]:
        """Maxima and minima of coarse clusters from those of their fine ones.

        Args:
            most, least: [kv_heads, coarse * per, head_dim], whole coarse clusters only.
        """
        per = self.policy.clusters[0] // self.policy.clusters[1]
        heads, count, width = most.shape
        shape = (heads, count // per, per, width)
        most, least = most.reshape(*shape), least.reshape(*shape)
        with machine.scope("summary"):
            both = maximum(machine, machine.stack([most, -least]), 3).squeeze(3)
        return both[0], -both[1]

    # --- decode --------------------------------------------------------------------------------

    def decode(self, machine: Machine, layer: int, queries: Value) -> Value:
        return clustered_step(machine, self, layer, queries)

    def step(self, machine: Machine, layer: int, queries: Value) -> Value:
        """`decode` against operations."""
        keys, values = self.keys[layer], self.values[layer]
        heads, group, _, width = queries.shape
        tokens = keys.shape[1]
        choice = self.policy.choice(tokens)
        self._summarise(machine, layer)
        self.kept.dynamic.setdefault(layer, []).append(choice.kept)
        if not choice.selects:
            return attention(machine, queries, keys, values, None, 0)[0]
        scores = scores_of(machine, queries, keys).reshape(heads, group, tokens)
        with machine.scope("select"):
            if self.policy.selects_itself(layer):
                fine, coarse = self._similarities(machine, layer, queries, scores, choice)
                self.shared = self._choose(machine, fine, coarse, choice)
        if self.policy.gather == "kv":
            return self._attend_gathered(machine, queries, keys, values, choice)
        with machine.scope("select"):
            chosen = self._chosen(machine, machine.coarse(scores), choice)
        assert chosen.shape[-1] == choice.kept

        spread = _Spreading(self, machine, choice)
        context = attend(machine, chosen, values, None, spread).context
        return context.reshape(heads, group, 1, width)

    def _choosers(self, heads: int, group: int) -> tuple[int, int]:
        """How many choose, and how many query heads follow each."""
        return (heads * group, 1) if self.policy.per_head else (heads, group)

    def _similarities(
        self, machine: Machine, layer: int, queries: Value, scores: Value, choice: Choice
    ) -> tuple[Value, Value | None]:
        """Similarity with the fine clusters but first and last [choosers, fine - 2], and with the
        middle coarse ones [choosers, coarse - 2] where level 1 has a choice.

        Args:
            queries: [kv_heads, group, 1, head_dim]. scores: [kv_heads, group, tokens].
        """
        big, small = self.policy.clusters
        heads, group, _, width = queries.shape
        choosers, followers = self._choosers(heads, group)
        # fine cluster i stands at i - 1; whole middle coarse clusters begin at head
        per, middle = big // small, choice.coarse - 2
        head = per - 1
        tail = head + middle * per
        two_levels = choice.picks > 0 and 0 < choice.coarse_picks < middle
        if self.policy.summary == "mean":
            # sums stand for means: all middle clusters have as many tokens
            inner = scores.reshape(choosers, followers, -1)[..., small : (choice.fine - 1) * small]
            fine = inner.reshape(choosers, followers, choice.fine - 2, small).sum(-1).sum(1)
            if not two_levels:
                return fine, None
            return fine, fine[:, head:tail].reshape(choosers, middle, per).sum(-1)
        most, least = (part[:, 1 : choice.fine - 1] for part in self.fine[layer])
        summaries = self._blend(machine, most, least)
        if two_levels:
            coarse = self._coarse(machine, most[:, head:tail], least[:, head:tail])
            summaries = machine.cat([summaries, self._blend(machine, *coarse)], 1)
        query = queries.reshape(heads, group, width)
        query = query if self.policy.per_head else query.sum(1).unsqueeze(1)
        near = matmul(machine, query, summaries.transpose(1, 2)).reshape(choosers, -1)
        return near[:, : choice.fine - 2], near[:, choice.fine - 2 :] if two_levels else None

    def _choose(
        self, machine: Machine, near: Value, far: Value | None, choice: Choice
    ) -> Value | None:
        """One-hot rows [choosers, picks, fine - 2] over the fine clusters but first and last.

        1. Level 1: the best of the middle coarse clusters; their fine similarities are gathered.
        2. Level 2: the best among those and the loose fine clusters of the two outer coarse ones.
        3. Both one-hot matrices multiply to one over all fine clusters.

        Args:
            near, far: from `_similarities`.
        """
        if choice.picks == 0:
            return None
        big, small = self.policy.clusters
        bits = _summed(small) if self.policy.summary == "mean" else SIMILARITY
        per, middle = big // small, max(choice.coarse - 2, 0)
        head, tail = per - 1, per - 1 + middle * per
        heads = near.shape[0]
        if choice.coarse_picks == middle:
            return machine.choice(best(machine, near, choice.picks, **bits))
        if far is None:
            loose = machine.cat([near[:, :head], near[:, tail:]], 1)
            rows = machine.choice(best(machine, loose, choice.picks, **bits))
            empty = machine.zeros_like(rows, (heads, choice.picks, middle * per))
            return machine.cat([rows[..., :head], empty, rows[..., head:]], -1)
        blocks = near[:, head:tail].reshape(heads, middle, per)
        level1 = machine.choice(best(machine, far, choice.coarse_picks, **bits))
        level1 = machine.keep(level1)
        inner = product(machine, level1, blocks).reshape(heads, choice.coarse_picks * per)
        candidates = machine.cat([near[:, :head], inner, near[:, tail:]], 1)
        if choice.picks == candidates.shape[1]:  # level 1 has left no more than may be kept
            every = torch.eye(choice.picks).expand(heads, -1, -1)
            level2 = machine.shift(machine.zeros_like(level1, tuple(every.shape)), every)
        else:
            level2 = machine.choice(best(machine, candidates, choice.picks, **bits))
        edge = head + choice.coarse_picks * per
        spread = level2[..., head:edge].reshape(heads, choice.picks, choice.coarse_picks, per)
        spread = spread.transpose(2, 3).reshape(heads, choice.picks * per, choice.coarse_picks)
        spread = product(machine, spread, level1).reshape(heads, choice.picks, per, middle)
        spread = spread.transpose(2, 3).reshape(heads, choice.picks, middle * per)
        return machine.cat([level2[..., :head], spread, level2[..., edge:]], -1)

    # --- gathering -----------------------------------------------------------------------------

    def _chosen(self, machine: Machine, scores: Value, choice: Choice) -> Value:
        """Scores [kv_heads, group, tokens] of the first, the chosen and the last fine clusters."""
        small = self.policy.clusters[1]
        heads, group, _ = scores.shape
        last = (choice.fine - 1) * small
        parts = [scores[..., :small], scores[..., last:]]
        if choice.picks:
            choosers, followers = self._choosers(heads, group)
            blocks = scores[..., small:last].reshape(choosers, followers, choice.fine - 2, small)
            blocks = blocks.transpose(1, 2).reshape(choosers, choice.fine - 2, followers * small)
            self.shared, picked = gathered(machine, self.shared, blocks)
            picked = picked.reshape(choosers, choice.picks, followers, small).transpose(1, 2)
            parts.insert(1, picked.reshape(heads, group, choice.picks * small))
        return machine.cat(parts, -1)

    def _attend_gathered(
        self, machine: Machine, queries: Value, keys: Value, values: Value, choice: Choice
    ) -> Value:
        """Attention over gathered keys and values [kv_heads, tokens, head_dim]."""
        small = self.policy.clusters[1]
        heads, group, _, width = queries.shape
        choosers, followers = self._choosers(heads, group)
        both = machine.cat([keys, values], -1)
        if choosers != heads:
            both = both.unsqueeze(1).expand(heads, group, *both.shape[1:]).flatten(0, 1)
        last = (choice.fine - 1) * small
        parts = [both[:, :small], both[:, last:]]
        with machine.scope("select"):
            if choice.picks:
                blocks = both[:, small:last].reshape(choosers, choice.fine - 2, small * 2 * width)
                chosen = matmul(machine, self.shared, blocks)
                parts.insert(1, chosen.reshape(choosers, choice.picks * small, 2 * width))
            both = machine.cat(parts, 1)
        assert both.shape[1] == choice.kept
        queries = queries.reshape(choosers, followers, 1, width)
        keys, values = both[..., :width], both[..., width:]
        context, _ = attention(machine, queries, keys, values, None, 0)
        return context.reshape(heads, group, 1, width)


@dataclass(frozen=True)
class _Spreading:
    """Weights [kv_heads, group, kept] as weights over all tokens: those not chosen get 0."""

    cache: MPCacheCache
    machine: Machine
    choice: Choice

    def __call__(self, weights: Value) -> Value:
        with self.machine.scope("spread"):
            inner = self._inner(weights)
            if inner is not None:
                inner = product(self.machine, self._rows(), inner)
            return self._joined(weights, inner)

    def playing(self, suite: DealerSuite, weights: Value) -> Play:
        inner = self._inner(weights)
        if inner is not None:
            inner = yield from suite.multiplying_matrices(self._rows(), inner)
        return self._joined(weights, inner)

    def _rows(self) -> Value:
        """What each chosen cluster gives its weights to [choosers, fine - 2, picks]."""
        assert self.cache.shared is not None
        return self.cache.shared.transpose(1, 2)

    def _inner(self, weights: Value) -> Value | None:
        """Weights of the clusters that were chosen [choosers, picks, followers * small]."""
        small, picks = self.cache.policy.clusters[1], self.choice.picks
        if not picks:
            return None
        choosers, followers = self.cache._choosers(*weights.shape[:2])
        inner = weights[..., small : small + picks * small]
        inner = inner.reshape(choosers, followers, picks, small).transpose(1, 2)
        return inner.reshape(choosers, picks, followers * small)

    def _joined(self, weights: Value, inner: Value | None) -> Value:
        small, choice = self.cache.policy.clusters[1], self.choice
        heads, group, _ = weights.shape
        middle = (heads, group, (choice.fine - 2) * small)
        if inner is None:
            inner = self.machine.zeros_like(weights, middle)
        else:
            choosers, followers = self.cache._choosers(heads, group)
            inner = inner.reshape(choosers, choice.fine - 2, followers, small).transpose(1, 2)
            inner = inner.reshape(*middle)
        edge = small + choice.picks * small
        return self.machine.cat([weights[..., :small], inner, weights[..., edge:]], -1)
