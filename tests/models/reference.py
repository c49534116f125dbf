"""A decoder in a page of plain torch, to test loaders without the real decoder."""

from __future__ import annotations

import math

import torch
from torch.nn import functional

from mpcache.models.spec import ModelSpec

Weights = dict[str, torch.Tensor]


def logits(spec: ModelSpec, weights: Weights, ids: list[int]) -> torch.Tensor:
    """Logits ``[tokens, vocab]`` of one sequence, computed in float32 without a cache."""
    count = len(ids)
    x = weights["embed.tokens"][torch.tensor(ids)]
    if "embed.project" in weights:
        x = x @ weights["embed.project"]
    if spec.positions == "learned":
        x = x + weights["embed.positions"][torch.arange(count) + spec.position_offset]
    for layer in range(spec.layers):
        for part, block in (("attention", _attention), ("ffn", _ffn)):
            prefix = f"layers.{layer}.{part}"
            if spec.norm_first:
                x = x + block(spec, weights, prefix, _norm(spec, weights, f"{prefix}.norm", x))
            else:
                x = _norm(spec, weights, f"{prefix}.norm", x + block(spec, weights, prefix, x))
    if spec.final_norm:
        x = _norm(spec, weights, "final.norm", x)
    if "final.project" in weights:
        x = x @ weights["final.project"]
    return x @ (weights["embed.tokens"].t() if spec.tied else weights["head"])


def greedy(spec: ModelSpec, weights: Weights, ids: list[int], new: int) -> list[int]:
    """The `new` most likely tokens after `ids`, one by one."""
    ids = list(ids)
    for _ in range(new):
        ids.append(int(logits(spec, weights, ids)[-1].argmax()))
    return ids[-new:]


def _norm(spec: ModelSpec, weights: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    gain = weights[f"{name}.gain"]
    if spec.norm == "layer":
        return functional.layer_norm(
            x, (spec.hidden,), gain, weights[f"{name}.bias"], spec.norm_eps
        )
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + spec.norm_eps) * gain


def _linear(weights: Weights, name: str, x: torch.Tensor) -> torch.Tensor:
    y = x @ weights[name]
    return y + weights[f"{name}.bias"] if f"{name}.bias" in weights else y


def _ffn(spec: ModelSpec, weights: Weights, prefix: str, x: torch.Tensor) -> torch.Tensor:
    act = getattr(functional, spec.activation)
    if spec.gated:
        gate = act(_linear(weights, f"{prefix}.gate", x))
        return _linear(weights, f"{prefix}.down", gate * _linear(weights, f"{prefix}.up", x))
    return _linear(weights, f"{prefix}.down", act(_linear(weights, f"{prefix}.up", x)))


def _attention(spec: ModelSpec, weights: Weights, prefix: str, x: torch.Tensor) -> torch.Tensor:
    count = x.shape[0]

    def heads(name: str, number: int) -> torch.Tensor:
        return _linear(weights, f"{prefix}.{name}", x).view(count, number, -1).transpose(0, 1)

    q, k = heads("query", spec.heads), heads("key", spec.kv_heads)
    v = heads("value", spec.kv_heads).repeat_interleave(spec.group, 0)
    if spec.positions == "rotary":
        q, k = _rotate(spec, q), _rotate(spec, k)
    scores = q @ k.repeat_interleave(spec.group, 0).transpose(1, 2) / math.sqrt(spec.head_dim)
    later = torch.ones(count, count, dtype=torch.bool).triu(1)
    mixed = scores.masked_fill(later, -math.inf).softmax(-1) @ v
    return _linear(weights, f"{prefix}.output", mixed.transpose(0, 1).reshape(count, -1))


def frequencies(spec: ModelSpec) -> torch.Tensor:
    """Rotary angle a position, ``[head_dim / 2]``, with the llama-3 rescaling where asked for."""
    half = torch.arange(0, spec.head_dim, 2, dtype=torch.float32) / spec.head_dim
    plain = spec.rope_base**-half
    scaling = spec.rope_scaling
    if scaling is None:
        return plain
    turns = scaling.original_context * plain / (2 * math.pi)  # over the original context
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep = ((turns - low) / (high - low)).clamp(0, 1)  # 1: unchanged, 0: divided by the factor
    return keep * plain + (1 - keep) * plain / scaling.factor


def _rotate(spec: ModelSpec, x: torch.Tensor) -> torch.Tensor:
    angles = torch.arange(x.shape[1], dtype=torch.float32)[:, None] * frequencies(spec)
    cos, sin = angles.cos(), angles.sin()
    first, second = x.chunk(2, -1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
