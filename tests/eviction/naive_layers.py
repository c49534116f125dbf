"""More policies by brute force, as in `naive`: those that treat layers apart, or were trained."""

from __future__ import annotations

import math
from typing import Any

import torch
from models import reference

from mpcache.models.spec import ModelSpec

from .gates import gates
from .naive import NaiveCache, Vector, best_of
from .naive_known import SnapKV


def level_parts(total: int, weights: tuple[int, ...], most: int) -> list[float]:
    """min(most, level * weight) with the level at which they sum up to `total`, by halving."""
    low, high = 0.0, most / min(weights) + 1
    for _ in range(200):
        level = (low + high) / 2
        if sum(min(most, level * weight) for weight in weights) < total:
            low = level
        else:
            high = level
    return [min(most, high * weight) for weight in weights]


def pooled(votes: list[float], size: int) -> list[float]:
    side = size // 2
    return [sum(votes[max(0, t - side) : t + side + 1]) for t in range(len(votes))]


class Cake(NaiveCache):
    def evict(self, weights: Any) -> None:
        policy, tokens = self.policy, len(self.heads[0])
        window = policy.observed
        kept = policy.layer_budget(self.layer, tokens, 1).static
        if kept >= tokens:
            return
        for h, stored in enumerate(self.heads):
            worth = []
            for t in range(tokens - window):
                total = 0.0
                for member in weights[h]:
                    seen = [member[q][t] for q in range(tokens - window, tokens)]
                    mean = sum(seen) / window
                    total += mean + policy.gamma * sum((p - mean) ** 2 for p in seen) / window
                worth.append(total)
            best = sorted(best_of(pooled(worth, policy.pooled), kept - window))
            self.heads[h] = [stored[t] for t in [*best, *range(tokens - window, tokens)]]


class FastKV(SnapKV):
    """`layers` holds who goes on behind the policy's last whole layer."""

    def prefill(self, queries: Vector, keys: Vector, values: Vector) -> Vector:
        last = self.policy.last
        if last is not None and self.layer > last and "going" in self.layers:
            going = self.layers["going"]
            queries, keys, values = queries[:, :, going], keys[:, going], values[:, going]
        return super().prefill(queries, keys, values)

    def evict(self, weights: Any) -> None:
        tokens = len(self.heads[0])
        if self.layer == self.policy.last and self.policy.passed < tokens:
            self.layers["going"] = self.going_on(weights)
        super().evict(weights)

    def going_on(self, weights: Any) -> list[int]:
        policy, tokens = self.policy, len(self.heads[0])
        edge = tokens - policy.observed
        drawn = self.draw(weights, policy.observed)
        votes = [sum(head[t] for head in drawn) for t in range(edge)]
        best = best_of(pooled(votes, policy.pooled), policy.passed - policy.observed)
        return [*sorted(best), *range(edge, tokens)]


class AttentionGate(NaiveCache):
    def prefill(self, queries: Vector, keys: Vector, values: Vector) -> Vector:
        heads, tokens, width = keys.shape
        gate = gates(heads, width)[self.layer].double()
        self.worth = [
            [self.judged(gate[:, h], keys[:, t], values[:, t], t) for t in range(tokens)]
            for h in range(heads)
        ]
        return super().prefill(queries, keys, values)

    def judged(self, gate: Vector, keys: Vector, values: Vector, position: int) -> float:
        """`gate` over the keys [heads, width], turned back by hand, and values of one token."""
        total, heads, width = 0.0, *keys.shape
        for h in range(heads):
            own = gate[h * 2 * width : (h + 1) * 2 * width]
            for i in range(width // 2):
                angle = position * 10_000.0 ** (-2 * i / width)
                first, second = float(keys[h, i]), float(keys[h, i + width // 2])
                straight = first * math.cos(angle) + second * math.sin(angle)
                across = second * math.cos(angle) - first * math.sin(angle)
                total += float(own[i]) * straight + float(own[i + width // 2]) * across
            total += sum(float(own[width + i] * values[h, i]) for i in range(width))
        return total

    def evict(self, weights: Any) -> None:
        policy, tokens = self.policy, len(self.heads[0])
        kept = max(policy.tokens, policy.recent + policy.sink)
        if kept >= tokens:
            return
        edge = tokens - policy.recent
        for h, stored in enumerate(self.heads):
            free = best_of(self.worth[h][policy.sink : edge], kept - policy.sink - policy.recent)
            middle = sorted(policy.sink + t for t in free)
            stay = [*range(policy.sink), *middle, *range(edge, tokens)]
            self.heads[h] = [stored[t] for t in stay]


# --- a decoder on some positions of a text --------------------------------------------------------


class Walker:
    """The reference's blocks on chosen positions of one sequence; activations by position."""

    def __init__(self, spec: ModelSpec, weights: dict[str, Vector], ids: list[int]) -> None:
        self.spec, self.weights, self.reference = spec, weights, reference
        x = weights["embed.tokens"][torch.tensor(ids)]
        if "embed.project" in weights:
            x = x @ weights["embed.project"]
        if spec.positions == "learned":
            x = x + weights["embed.positions"][torch.arange(len(ids)) + spec.position_offset]
        self.x = {position: x[position] for position in range(len(ids))}

    def layer(self, number: int) -> tuple[Vector, Vector, Vector, Any]:
        """Through a layer: queries [heads, tokens, width], keys and values, and probabilities."""
        spec, ref, name = self.spec, self.reference, f"layers.{number}.attention"
        positions = sorted(self.x)
        x = torch.stack([self.x[p] for p in positions])
        norm = f"{name}.norm"
        y = ref._norm(spec, self.weights, norm, x) if spec.norm_first else x

        def heads(part: str, count: int) -> Vector:
            flat = ref._linear(self.weights, f"{name}.{part}", y)
            return flat.view(len(positions), count, -1).transpose(0, 1)

        q, k = heads("query", spec.heads), heads("key", spec.kv_heads)
        v = heads("value", spec.kv_heads)
        if spec.positions == "rotary":
            q, k = self.turned(q, positions), self.turned(k, positions)
        context, given = torch.empty_like(q), []
        for h in range(spec.heads):
            own, rows = h // spec.group, []
            for i in range(len(positions)):
                scores = [float(q[h, i] @ k[own, j]) / math.sqrt(spec.head_dim)
                          for j in range(i + 1)]  # fmt: skip
                e = [math.exp(score - max(scores)) for score in scores]
                rows.append([one / sum(e) for one in e])
                context[h, i] = sum(p * v[own, j] for j, p in enumerate(rows[-1]))
            given.append(rows)
        y = ref._linear(self.weights, f"{name}.output", context.transpose(0, 1).flatten(1))
        x = x + y if spec.norm_first else ref._norm(spec, self.weights, norm, x + y)
        prefix, norm = f"layers.{number}.ffn", f"layers.{number}.ffn.norm"
        if spec.norm_first:
            x = x + ref._ffn(spec, self.weights, prefix, ref._norm(spec, self.weights, norm, x))
        else:
            x = ref._norm(spec, self.weights, norm, x + ref._ffn(spec, self.weights, prefix, x))
        self.x = dict(zip(positions, x, strict=True))
        return q, k, v, given

    def turned(self, x: Vector, positions: list[int]) -> Vector:
        angles = torch.tensor(positions)[:, None] * self.reference.frequencies(self.spec)
        first, second = x.chunk(2, -1)
        cos, sin = angles.cos(), angles.sin()
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)

    def logits(self) -> Vector:
        """Of the last position that is left [vocab]."""
        x = self.x[max(self.x)][None]
        spec, weights = self.spec, self.weights
        if spec.final_norm:
            x = self.reference._norm(spec, weights, "final.norm", x)
        if "final.project" in weights:
            x = x @ weights["final.project"]
        return (x @ (weights["embed.tokens"].t() if spec.tied else weights["head"]))[0]


LAYERED: dict[str, type[NaiveCache]] = {
    "attention-gate": AttentionGate,
    "cake": Cake,
    "fastkv": FastKV,
}
