"""Policies by brute force: lists of tokens, loops, one head and one token at a time.

Written from the methods' descriptions, without the policies' code. Each class is the cache of one
layer; `layers` is what its layers share.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from mpcache.eviction.base import Policy

from .harness import Activations

Vector = torch.Tensor


@dataclass
class Token:
    """A stored token of one head: what it has drawn, and from how many queries."""

    key: Vector
    value: Vector
    drawn: float = 0.0
    seen: float = 1.0


def softmax(query: Vector, tokens: list[Token]) -> list[float]:
    scores = [float(query @ token.key) / math.sqrt(len(query)) for token in tokens]
    top = max(scores)
    e = [math.exp(score - top) for score in scores]
    return [x / sum(e) for x in e]


def mean_of(weights: list[float], tokens: list[Token]) -> Vector:
    total = torch.zeros_like(tokens[0].value)
    for weight, token in zip(weights, tokens, strict=True):
        total = total + weight * token.value
    return total


def best_of(scores: list[float], count: int) -> list[int]:
    """Positions of the `count` greatest, the greatest first, the earlier of two equal ones."""
    return sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:count]


def cosine(x: Vector, y: Vector) -> float:
    return float(x @ y / (x.norm() * y.norm()))


class NaiveCache:
    """One layer. `heads[h]` are the stored tokens of a head."""

    def __init__(self, policy: Any, layer: int, layers: dict[Any, Any]) -> None:
        self.policy, self.layer, self.layers = policy, layer, layers
        self.heads: list[list[Token]] = []

    def prefill(self, queries: Vector, keys: Vector, values: Vector) -> Vector:
        heads, group, tokens, _ = queries.shape
        context = torch.empty_like(queries)
        # weights[h][g][query][token]
        weights = [[[[0.0] * tokens for _ in range(tokens)] for _ in range(group)]
                   for _ in range(heads)]  # fmt: skip
        for h in range(heads):
            rows = [Token(k, v) for k, v in zip(keys[h], values[h], strict=True)]
            self.heads.append(rows)
            for g in range(group):
                for q in range(tokens):
                    seen = rows[: q + 1]
                    weight = softmax(queries[h, g, q], seen)
                    context[h, g, q] = mean_of(weight, seen)
                    weights[h][g][q][: q + 1] = weight
        self.evict(weights)
        return context

    def decode(self, queries: Vector, keys: Vector, values: Vector) -> Vector:
        context = torch.empty_like(queries)
        for h, stored in enumerate(self.heads):
            stored.append(Token(keys[h, 0], values[h, 0]))
            for token in stored[:-1]:
                token.seen += 1
            for g in range(queries.shape[1]):
                seen = self.chosen(stored, queries[h, g, 0])
                weight = softmax(queries[h, g, 0], seen)
                context[h, g, 0] = mean_of(weight, seen)
                for token, drawn in zip(seen, weight, strict=True):
                    token.drawn += drawn
        self.after()
        return context

    def draw(self, weights: Any, observed: int) -> list[list[float]]:
        """Attention [head][token] that the last `observed` queries give."""
        tokens = len(weights[0][0])
        return [
            [
                sum(
                    weights[h][g][q][t]
                    for g in range(len(weights[h]))
                    for q in range(tokens - observed, tokens)
                )
                for t in range(tokens)
            ]
            for h in range(len(weights))
        ]

    def evict(self, weights: Any) -> None: ...

    def chosen(self, stored: list[Token], query: Vector) -> list[Token]:
        return stored

    def after(self) -> None: ...


class WindowKV(NaiveCache):
    def evict(self, weights: Any) -> None:
        policy, tokens = self.policy, len(self.heads[0])
        if tokens <= policy.observed:
            return
        begins = range(0, tokens - policy.observed - policy.window + 1, policy.window)
        windows = [range(at, at + policy.window) for at in begins]
        rest = range(len(windows) * policy.window, tokens)
        picks = max(0, policy.tokens - len(rest)) // policy.window
        drawn = self.draw(weights, policy.observed)
        for h, stored in enumerate(self.heads):
            scores = [sum(drawn[h][t] for t in window) for window in windows]
            if self.layer % policy.shared == 0:
                self.layers[h] = sorted(best_of(scores, picks))
            kept = [t for i in self.layers[h] for t in windows[i]] if picks else []
            self.heads[h] = [stored[t] for t in [*kept, *rest]]


class TreeKV(NaiveCache):
    def evict(self, weights: Any) -> None:
        tokens = len(self.heads[0])
        observed = -(-tokens // 5)
        drawn = self.draw(weights, observed)
        for h, stored in enumerate(self.heads):
            for t, token in enumerate(stored):
                token.drawn, token.seen = drawn[h][t], min(observed, tokens - t)
            self.heads[h] = []
            self.turn = 0
            for token in stored:
                self.add(h, token)

    def add(self, h: int, token: Token | None) -> None:
        stored, size = self.heads[h], self.policy.tokens
        if token is not None:
            stored.append(token)
        if len(stored) > size:
            left, right = stored[self.turn], stored[self.turn + 1]
            loses = left if left.drawn / left.seen < right.drawn / right.seen else right
            stored[:] = [token for token in stored if token is not loses]
            self.turn = (self.turn + 1) % size

    def after(self) -> None:
        turn = self.turn
        for h in range(len(self.heads)):
            self.turn = turn
            self.add(h, None)


class EMS(NaiveCache):
    def evict(self, weights: Any) -> None:
        policy, tokens = self.policy, len(self.heads[0])
        if policy.tokens >= tokens:
            return
        recent = max(1, policy.recent)
        whole, local = self.draw(weights, tokens), self.draw(weights, recent)
        edge, centres = tokens - policy.recent, policy.tokens - policy.recent
        for h, stored in enumerate(self.heads):
            scores = [whole[h][t] / (tokens - t) + local[h][t] / recent for t in range(edge)]
            order = best_of(scores, 2 * centres)
            joined: dict[int, list[int]] = {t: [t] for t in order[:centres]}
            for t in order[centres:]:
                near = {c: cosine(stored[t].key, stored[c].key) for c in joined}
                to = max(near, key=lambda c: near[c])
                if near[to] >= policy.similar:
                    joined[to].append(t)
            merged = [
                Token(sum(stored[t].key for t in group) / len(group),
                      sum(stored[t].value for t in group) / len(group))
                for group in joined.values()
            ]  # fmt: skip
            self.heads[h] = merged + stored[edge:]


class KVCrush(NaiveCache):
    def evict(self, weights: Any) -> None:
        policy, tokens = self.policy, len(self.heads[0])
        if policy.tokens >= tokens:
            return
        edge = tokens - policy.recent
        rows = range(edge, tokens)
        each = [[sum(member[q][t] for q in rows) for t in range(tokens)]
                for head in weights for member in head]  # fmt: skip
        important = policy.tokens - policy.recent - policy.representatives
        total = [sum(head[t] for head in each) for t in range(edge)]
        kept = best_of(total, important)
        distance = {
            t: sum(int(head[t] >= sum(head) / tokens) != i % 2 for i, head in enumerate(each))
            for t in range(edge) if t not in kept
        }  # fmt: skip
        order = sorted(distance, key=lambda t: (distance[t], t))
        for i in range(policy.representatives):
            kept.append(order[math.floor((i + 0.5) * len(order) / policy.representatives)])
        for h, stored in enumerate(self.heads):
            self.heads[h] = [stored[t] for t in kept] + stored[edge:]


class ClusterKV(NaiveCache):
    def evict(self, weights: Any) -> None:
        size, tokens = self.policy.size, len(self.heads[0])
        count = tokens // size - 2
        if count < 2:
            return
        edge = (count + 1) * size
        for h, stored in enumerate(self.heads):
            inner = self.halved(stored[size:edge], count)
            self.heads[h] = [*stored[:size], *inner, *stored[edge:]]

    def halved(self, tokens: list[Token], count: int) -> list[Token]:
        if count == 1:
            return tokens
        middle = sum(token.key for token in tokens) / len(tokens)
        side = [i < len(tokens) // 2 for i in range(len(tokens))]
        for _ in range(self.policy.steps):
            direction = sum(t.key - middle for t, on in zip(tokens, side, strict=True) if on)
            places = [float((token.key - middle) @ direction) for token in tokens]
            side = [place >= 0 for place in places]
        ordered = [tokens[i] for i in best_of(places, len(tokens))]
        cut = count // 2 * self.policy.size
        return self.halved(ordered[:cut], count // 2) + self.halved(
            ordered[cut:], count - count // 2
        )

    def chosen(self, stored: list[Token], query: Vector) -> list[Token]:
        size = self.policy.size
        clusters = [stored[at : at + size] for at in range(0, len(stored), size)]
        wanted = max(math.ceil(self.policy.keep * len(clusters) - 1e-9), 2)
        if len(clusters) <= 2 or wanted >= len(clusters):
            return stored
        near = [float(query @ sum(t.key for t in c)) / size for c in clusters[1:-1]]
        picked = [1 + i for i in best_of(near, wanted - 2)]
        return [token for i in [0, *picked, len(clusters) - 1] for token in clusters[i]]


class D2O(NaiveCache):
    def evict(self, weights: Any) -> None:
        policy, tokens = self.policy, len(self.heads[0])
        drawn = self.draw(weights, tokens)
        self.thresholds: list[float | None] = [None] * len(self.heads)
        for h, stored in enumerate(self.heads):
            for token, weight in zip(stored, drawn[h], strict=True):
                token.drawn = weight
            if policy.tokens >= tokens:
                continue
            edge = tokens - policy.recent
            heavy = best_of(drawn[h][:edge], policy.tokens - policy.recent)
            kept = [stored[t] for t in [*sorted(heavy), *range(edge, tokens)]]
            gone = [stored[t] for t in range(edge) if t not in heavy]
            most = [max(cosine(token.key, k.key) for k in kept) for token in gone]
            self.thresholds[h] = sum(most) / len(most)
            self.heads[h] = self.merged(h, kept, gone)

    def merged(self, h: int, kept: list[Token], gone: list[Token]) -> list[Token]:
        threshold = self.thresholds[h]
        sums = [(k.key, k.value, 1.0) for k in kept]
        for token in gone:
            near = [cosine(token.key, k.key) for k in kept]
            to = best_of(near, 1)[0]
            if near[to] >= threshold:
                w, (key, value, mass) = math.exp(near[to] - 1), sums[to]
                sums[to] = (key + w * token.key, value + w * token.value, mass + w)
        return [
            Token(key / mass, value / mass, k.drawn)
            for (key, value, mass), k in zip(sums, kept, strict=True)
        ]

    def after(self) -> None:
        policy = self.policy
        for h, stored in enumerate(self.heads):
            if len(stored) <= policy.tokens:
                continue
            old = stored[: len(stored) - policy.recent]
            least = min(range(len(old)), key=lambda i: (old[i].drawn, i))
            gone, kept = stored[least], stored[:least] + stored[least + 1 :]
            most = max(cosine(gone.key, k.key) for k in kept)
            if self.thresholds[h] is None:
                self.thresholds[h] = most
            self.heads[h] = self.merged(h, kept, [gone])
            self.thresholds[h] += policy.pace * (most - self.thresholds[h])


def walk_naive(
    kinds: dict[str, type[NaiveCache]], policy: Policy, activations: Activations
) -> list[Vector]:
    """The contexts of prefill and of every step, layer by layer."""
    shared: dict[Any, Any] = {}
    caches = {layer: kinds[policy.name](policy, layer, shared) for layer in activations.layers}
    prompt, contexts = activations.prompt, []
    for layer, (queries, keys, values) in activations.layers.items():
        contexts.append(
            caches[layer].prefill(queries[:, :, :prompt], keys[:, :prompt], values[:, :prompt])
        )
    for at in range(prompt, prompt + activations.steps):
        for layer, (queries, keys, values) in activations.layers.items():
            now = slice(at, at + 1)
            contexts.append(caches[layer].decode(queries[:, :, now], keys[:, now], values[:, now]))
    return contexts
