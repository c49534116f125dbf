"""MPCache's selection by brute force: loops over tokens and clusters, one head at a time.

Written from the paper's description, without the policy's code. `margin` remembers the smallest
gap between a kept and a dropped candidate, so that a test can ask for clear decisions.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from fractions import Fraction

import torch

Rows = list[torch.Tensor]  # one vector [head_dim] a token


def share_of(share: float, count: int) -> int:
    """The smallest whole number of `count` that is at least the decimal `share` of it."""
    part = Fraction(str(share)) * count
    return -(-part.numerator // part.denominator)


@dataclass
class Reference:
    """The cache of one run; activations as in `eviction.base.Cache.attend`."""

    clusters: tuple[int, int]
    alpha: float
    static_keep: float
    coarse_keep: float
    dynamic_keep: float
    sink: int
    recent: int
    share_layers: bool
    summary: str
    observe: int
    pooled: int
    least: int
    most_clusters: int
    keys: dict[int, list[Rows]] = field(default_factory=dict)  # layer -> head -> token
    values: dict[int, list[Rows]] = field(default_factory=dict)
    chosen: list[list[int]] = field(default_factory=list)  # positions by head, of the last choice
    margin: float = float("inf")
    sizes: tuple[int, int] = (0, 0)  # of clusters, once the prompt is known

    def best(self, scores: dict[int, float], count: int) -> list[int]:
        """The `count` candidates of the greatest scores."""
        order = sorted(scores, key=lambda i: (-scores[i], i))
        if 0 < count < len(order):
            self.margin = min(self.margin, scores[order[count - 1]] - scores[order[count]])
        return order[:count]

    # --- prefill -------------------------------------------------------------------------------

    def prefill(
        self, layer: int, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> list[int]:
        """Store what static eviction keeps, and return the kept positions."""
        heads, group, tokens, _ = queries.shape
        importance = [0.0] * tokens
        judges = min(self.observe or share_of(0.2, tokens), tokens)
        for row in range(tokens - judges, tokens):
            for head in range(heads):
                for member in range(group):
                    seen = weights(queries[head, member, row], list(keys[head, : row + 1]))
                    for token, probability in enumerate(seen.tolist()):
                        importance[token] += probability
        side = self.pooled // 2
        importance = [
            sum(importance[max(0, token - side) : token + side + 1]) for token in range(tokens)
        ]
        kept = max(share_of(self.static_keep, tokens), self.sink + self.recent)
        if kept >= tokens:
            positions = list(range(tokens))
        else:
            middle = range(self.sink, tokens - self.recent)
            wanted = kept - self.sink - self.recent
            best = self.best({token: importance[token] for token in middle}, wanted)
            ends = [*range(self.sink), *range(tokens - self.recent, tokens)]
            positions = sorted(ends + best)
        self.sizes = self.clusters
        while -(-len(positions) // self.sizes[1]) > self.most_clusters:
            self.sizes = self.sizes[0] * 2, self.sizes[1] * 2
        self.keys[layer] = [[keys[head, i] for i in positions] for head in range(heads)]
        self.values[layer] = [[values[head, i] for i in positions] for head in range(heads)]
        return positions

    # --- decode --------------------------------------------------------------------------------

    def decode(
        self, layer: int, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, list[list[int]]]:
        """The context [heads, group, 1, head_dim], and the kept positions of each head."""
        heads = queries.shape[0]
        for head in range(heads):
            self.keys[layer][head].append(keys[head, 0])
            self.values[layer][head].append(values[head, 0])
        if not self.share_layers or layer < 2 or layer % 2 == 0:
            self.chosen = [
                self.choose(queries[head, :, 0].sum(0), self.keys[layer][head])
                for head in range(heads)
            ]
        context = torch.empty_like(queries)
        for head in range(heads):
            seen = [self.keys[layer][head][i] for i in self.chosen[head]]
            rows = [self.values[layer][head][i] for i in self.chosen[head]]
            for member in range(queries.shape[1]):
                shares = weights(queries[head, member, 0], seen)
                context[head, member, 0] = sum(p * v for p, v in zip(shares, rows, strict=True))
        return context, self.chosen

    def choose(self, query: torch.Tensor, keys: Rows) -> list[int]:
        """Positions that one head attends to."""
        big, small = self.sizes
        tokens = range(len(keys))
        coarse = [tokens[i : i + big] for i in range(0, len(keys), big)]
        fine = [tokens[i : i + small] for i in range(0, len(keys), small)]
        wanted = max(share_of(self.dynamic_keep, len(fine)), -(-self.least // small), 2)
        middle = range(1, len(coarse) - 1)
        inner = max(share_of(self.coarse_keep, len(coarse)), 2) - 2
        scores = {i: self.similarity(query, [keys[t] for t in coarse[i]]) for i in middle}
        kept_coarse = {0, len(coarse) - 1, *self.best(scores, inner)}
        candidates = [
            i for i in range(1, len(fine) - 1) if any(fine[i][0] in coarse[c] for c in kept_coarse)
        ]
        scores = {i: self.similarity(query, [keys[t] for t in fine[i]]) for i in candidates}
        kept_fine = {0, len(fine) - 1, *self.best(scores, wanted - 2)}
        return [token for i in sorted(kept_fine) for token in fine[i]]

    def similarity(self, query: torch.Tensor, cluster: Rows) -> float:
        """q . r, one dimension at a time."""
        total = 0.0
        for dim in range(len(query)):
            column = [float(key[dim]) for key in cluster]
            if self.summary == "mean":
                r = sum(column) / len(column)
            else:
                r = self.alpha * max(column) + (1 - self.alpha) * min(column)
            total += float(query[dim]) * r
        return total


def weights(query: torch.Tensor, keys: Rows) -> torch.Tensor:
    """Attention probabilities of one query over some keys."""
    scores = torch.stack([query @ key for key in keys]) / len(query) ** 0.5
    e = torch.exp(scores - scores.max())
    return e / e.sum()
