"""Random activations for a cache, and a walk through prefill and decode that any machine reads."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
from hypothesis import strategies as st

from mpcache.eviction import full, mpcache
from mpcache.eviction.base import Cache, Policy
from mpcache.models.spec import ModelSpec

from .reference import Reference

SPEC = ModelSpec(
    "tiny", "llama", layers=4, hidden=12, heads=2, kv_heads=1, head_dim=6, ffn=8, vocab=11,
    context=999, norm="rms", norm_eps=1e-5,
)  # fmt: skip


@dataclass(frozen=True)
class Activations:
    """Queries [kv_heads, group, tokens, head_dim], keys and values [kv_heads, tokens, head_dim].

    By layer, prompt and generated tokens in one; the first `prompt` tokens are the prompt.
    """

    layers: dict[int, tuple[torch.Tensor, torch.Tensor, torch.Tensor]]
    prompt: int

    @property
    def steps(self) -> int:
        return next(iter(self.layers.values()))[1].shape[1] - self.prompt

    @property
    def tensors(self) -> list[torch.Tensor]:
        return [tensor for parts in self.layers.values() for tensor in parts]


def random_activations(
    seed: int, layers: Sequence[int], heads: int, group: int, prompt: int, steps: int, width: int
) -> Activations:
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> torch.Tensor:
        exact = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return torch.round(exact * 2**16) / 2**16  # what shares can hold

    count = prompt + steps
    return Activations(
        {
            layer: (
                draw(heads, group, count, width),
                draw(heads, count, width),
                draw(heads, count, width),
            )
            for layer in layers
        },
        prompt,
    )


def walk(policy: Policy, activations: Activations) -> Callable[..., list[Any]]:
    """A program on the activations' tensors: prefill, then every step, layer by layer.

    It returns the contexts in that order, and each layer's stored keys and values.
    """
    layers, prompt, steps = list(activations.layers), activations.prompt, activations.steps

    def program(machine: Any, *tensors: Any) -> list[Any]:
        cache = policy.start(SPEC, prompt, steps + 1)
        parts = {layer: tensors[3 * i : 3 * i + 3] for i, layer in enumerate(layers)}
        contexts = []
        for first, last in [(0, prompt), *((i, i + 1) for i in range(prompt, prompt + steps))]:
            for layer, (queries, keys, values) in parts.items():
                with machine.scope(f"layer{layer}"):
                    contexts.append(
                        cache.attend(
                            machine,
                            layer,
                            queries[:, :, first:last],
                            keys[:, first:last],
                            values[:, first:last],
                        )
                    )
        fitted = policy.fitted(SPEC)
        for layer in layers:
            budget = fitted.layer_budget(layer, prompt, steps + 1)
            assert cache.kept.of(layer) == budget, (layer, cache.kept, budget)
        assert set(cache.kept.static) == set(layers)
        program.cache = cache  # type: ignore[attr-defined]
        return [*contexts, *cache.keys.values(), *cache.values.values()]

    return program


def attended(run: Callable[[], Any]) -> tuple[Any, list[tuple[Any, Any]]]:
    """What `run` returns, and the keys and values of every attention that it computes."""
    seen: list[tuple[Any, Any]] = []
    inner = mpcache.attention

    def spy(machine: Any, queries: Any, keys: Any, values: Any, *rest: Any) -> Any:
        seen.append((keys, values))
        return inner(machine, queries, keys, values, *rest)

    with mock.patch.object(mpcache, "attention", spy), mock.patch.object(full, "attention", spy):
        return run(), seen


def shown(policy: Policy) -> Policy:
    """The same choices, with the chosen keys and values gathered, where `attended` sees them."""
    if isinstance(policy, mpcache.MPCache):
        return dataclasses.replace(policy, gather="kv", per_head=False)
    return policy


def reference_of(policy: mpcache.MPCache) -> Reference:
    names = (
        "clusters", "alpha", "static_keep", "coarse_keep", "dynamic_keep", "sink", "recent",
        "share_layers", "summary", "observe", "pooled", "least", "most_clusters",
    )  # fmt: skip
    return Reference(**{name: getattr(policy, name) for name in names})


@dataclass
class Walked:
    """What the reference finds: kept prompt positions by layer, and each step's."""

    reference: Reference
    static: dict[int, list[int]]
    contexts: list[torch.Tensor]
    dynamic: list[list[list[int]]]  # by step and layer, head, position


def walk_reference(policy: mpcache.MPCache, activations: Activations) -> Walked:
    reference, prompt = reference_of(policy), activations.prompt
    static = {
        layer: reference.prefill(
            layer, queries[:, :, :prompt], keys[:, :prompt], values[:, :prompt]
        )
        for layer, (queries, keys, values) in activations.layers.items()
    }
    walked = Walked(reference, static, [], [])
    for at in range(prompt, prompt + activations.steps):
        for layer, (queries, keys, values) in activations.layers.items():
            context, kept = reference.decode(
                layer, queries[:, :, at : at + 1], keys[:, at : at + 1], values[:, at : at + 1]
            )
            walked.contexts.append(context)
            walked.dynamic.append(kept)
    return walked


def stacked(reference: Reference, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The reference's stored keys and values [kv_heads, tokens, head_dim]."""
    keys, values = reference.keys[layer], reference.values[layer]
    return (
        torch.stack([torch.stack(rows) for rows in keys]),
        torch.stack([torch.stack(rows) for rows in values]),
    )


shares = st.integers(1, 100).map(lambda percent: percent / 100)
policies = st.builds(
    lambda small, per, **options: mpcache.MPCache(clusters=(small * per, small), **options),
    small=st.integers(1, 5),
    per=st.integers(1, 3),
    alpha=st.sampled_from([0.0, 0.6, 1.0]),
    static_keep=shares,
    coarse_keep=shares,
    dynamic_keep=shares,
    sink=st.integers(0, 3),
    recent=st.integers(0, 4),
    share_layers=st.booleans(),
    summary=st.sampled_from(["extrema", "mean"]),
    observe=st.sampled_from([0, 1, 3, 16]),
    pooled=st.sampled_from([1, 1, 3, 5]),
    least=st.sampled_from([0, 0, 7]),
    most_clusters=st.sampled_from([4, 9, 64]),
)


__all__ = [
    "SPEC", "Activations", "Cache", "Walked", "attended", "policies", "random_activations",
    "reference_of", "shares", "shown", "stacked", "walk", "walk_reference",
]  # fmt: skip
