"""More policies by brute force, as in `naive`: those that most papers compare with."""

from __future__ import annotations

import math
from typing import Any

import torch

from .naive import (
    D2O,
    EMS,
    ClusterKV,
    KVCrush,
    NaiveCache,
    Token,
    TreeKV,
    Vector,
    WindowKV,
    best_of,
    mean_of,
    softmax,
)


class Streaming(NaiveCache):
    def evict(self, weights: Any) -> None:
        self.after()

    def after(self) -> None:
        for stored in self.heads:
            while len(stored) > self.policy.tokens:
                del stored[self.policy.sinks]


class SnapKV(NaiveCache):
    def evict(self, weights: Any) -> None:
        policy, tokens = self.policy, len(self.heads[0])
        kept = max(policy.tokens, policy.observed)
        if kept >= tokens:
            return
        edge = tokens - policy.observed
        drawn, side = self.draw(weights, policy.observed), policy.pooled // 2
        for h, stored in enumerate(self.heads):
            votes = [
                sum(drawn[h][i] for i in range(max(0, t - side), min(edge, t + side + 1)))
                for t in range(edge)
            ]
            best = sorted(best_of(votes, kept - policy.observed))
            self.heads[h] = [stored[t] for t in [*best, *range(edge, tokens)]]


class H2O(NaiveCache):
    def weighed(self, weights: Any) -> list[list[float]]:
        return self.draw(weights, len(weights[0][0]))

    def evict(self, weights: Any) -> None:
        policy, tokens = self.policy, len(self.heads[0])
        weight = self.weighed(weights)
        for h, stored in enumerate(self.heads):
            for token, one in zip(stored, weight[h], strict=True):
                token.drawn = one
            if policy.tokens < tokens:
                edge = tokens - policy.recent
                best = sorted(best_of(weight[h][:edge], policy.tokens - policy.recent))
                self.heads[h] = [stored[t] for t in [*best, *range(edge, tokens)]]

    def after(self) -> None:
        for stored in self.heads:
            if len(stored) > self.policy.tokens:
                old = stored[: len(stored) - self.policy.recent]
                least = min(range(len(old)), key=lambda i: (old[i].drawn, i))
                # the oldest recent token takes the slot
                stored[least] = stored[len(old) - 1]
                del stored[len(old) - 1]


class Scissorhands(H2O):
    def weighed(self, weights: Any) -> list[list[float]]:
        tokens = len(weights[0][0])
        first = tokens - min(self.policy.history, tokens)
        return [
            [
                sum(row[q][t] >= 1 / (q + 1) for row in head for q in range(max(first, t), tokens))
                for t in range(tokens)
            ]
            for head in weights
        ]

    def decode(self, queries: Vector, keys: Vector, values: Vector) -> Vector:
        context = torch.empty_like(queries)
        for h, stored in enumerate(self.heads):
            stored.append(Token(keys[h, 0], values[h, 0]))
            for g in range(queries.shape[1]):
                weight = softmax(queries[h, g, 0], stored)
                context[h, g, 0] = mean_of(weight, stored)
                for token, one in zip(stored, weight, strict=True):
                    token.drawn += one >= 1 / len(stored)
        self.after()
        return context


class TOVA(NaiveCache):
    def evict(self, weights: Any) -> None:
        tokens = len(self.heads[0])
        if self.policy.tokens >= tokens:
            return
        drawn = self.draw(weights, 1)
        total = [sum(head[t] for head in drawn) for t in range(tokens)]
        best = sorted(best_of(total, self.policy.tokens))
        self.heads = [[stored[t] for t in best] for stored in self.heads]

    def decode(self, queries: Vector, keys: Vector, values: Vector) -> Vector:
        for stored in self.heads:
            for token in stored:
                token.drawn = 0.0
        return super().decode(queries, keys, values)

    def after(self) -> None:
        if len(self.heads[0]) <= self.policy.tokens:
            return
        count = len(self.heads[0])
        total = [sum(stored[t].drawn for stored in self.heads) for t in range(count)]
        least = min(range(count), key=lambda t: (total[t], t))
        for stored in self.heads:
            stored[least] = stored[-1]
            del stored[-1]


class Quest(NaiveCache):
    def chosen(self, stored: list[Token], query: Vector) -> list[Token]:
        size = self.policy.page
        pages = [stored[at : at + size] for at in range(0, len(stored), size)]
        wanted = max(math.ceil(self.policy.keep * len(pages) - 1e-9), 2)
        if len(pages) <= 2 or wanted >= len(pages):
            return stored
        bounds = []
        for page in pages[1:-1]:
            bound = 0.0
            for d in range(len(query)):
                column = [float(query[d] * token.key[d]) for token in page]
                bound += max(column)
            bounds.append(bound)
        picked = [1 + i for i in best_of(bounds, wanted - 2)]
        return [token for i in [0, *sorted(picked), len(pages) - 1] for token in pages[i]]


class Oracle(NaiveCache):
    def chosen(self, stored: list[Token], query: Vector) -> list[Token]:
        best = best_of([float(query @ token.key) for token in stored], self.policy.tokens)
        return [stored[i] for i in best]


NAMED: dict[str, type[NaiveCache]] = {
    "clusterkv": ClusterKV,
    "d2o": D2O,
    "ems": EMS,
    "h2o": H2O,
    "kvcrush": KVCrush,
    "oracle": Oracle,
    "quest": Quest,
    "scissorhands": Scissorhands,
    "snapkv": SnapKV,
    "streaming": Streaming,
    "tova": TOVA,
    "treekv": TreeKV,
    "windowkv": WindowKV,
}
