"""Attention-Gate (Zeng et al. 2024, arXiv 2410.12876): trained gates say which tokens stay.

1. A gate in each layer looks at every token of the prompt and tells its worth for each key/value
   head, before anybody has attended to it.
2. Each head keeps the tokens of the greatest worth, the prompt's first ones and its last ones.

The paper's gate is a small attention over the layer's input, its flags are worths over a threshold,
evicted tokens are masked in the prefill already, and it is trained by gradients, with a loss that
pulls the share of flags to a target. Here:

- A threshold would leak how many tokens stay, so the count is public and the best ones stay.
- A gate is linear in the keys, turned back to position 0, and the values of all heads: what a cache
  is given. These are linear in the layer's normed input, so the gate is, too, though of fewer
  dimensions. It costs one product with a matrix; what it knows of a token's context is what the
  layers below have put there.
- The prompt attends in full: secret flags in its softmax would cost a product a score.
- A gate foretells the attention that later queries give to a token (`mpcache eval gates`): least
  squares on what the model does with a text, minutes on one core, no gradient through the model.

A gate is a weight of the model's owner, masked like all others. Those of SmolLM2 come along; of
another model only its owner has them.
"""

from __future__ import annotations

import functools
import hashlib
import os
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import ClassVar

import torch
from safetensors import SafetensorError, safe_open

from mpcache.errors import UsageError
from mpcache.eviction.base import Budget, Cache, Policy, causal_mask
from mpcache.eviction.full import FullCache
from mpcache.eviction.oblivious import top
from mpcache.models.rotary_tables import rotary_tables
from mpcache.models.spec import ModelSpec
from mpcache.protocols.arithmetic import linear
from mpcache.protocols.operation import Machine, Value
from mpcache.protocols.rotary import rotary
from mpcache.protocols.softmax import attention

WORTH = {"magnitude": 9, "keep": 14}  # logarithms of attention


@dataclass(frozen=True)
class Gates:
    """Trained gates: for each layer a matrix [kv_heads * 2 * head_dim, kv_heads].

    Inputs are a token's key and value of the first head, then of the next. `name` is a digest.
    """

    name: str
    layers: tuple[torch.Tensor, ...] = field(repr=False, compare=False)


@dataclass(frozen=True)
class AttentionGate(Policy):
    """Args:
    tokens: kept of the prompt. Generated tokens all stay.
    recent: how many of them are the last ones.
    sink: how many of them are the first ones.
    gates: of the model; None for those that this host has, if any.
    """

    tokens: int = 128
    recent: int = 32
    sink: int = 4
    gates: Gates | None = None
    name: ClassVar[str] = "attention-gate"
    paper: ClassVar[str] = "Attention-Gate: Zeng et al. 2024, arXiv 2410.12876"
    meaning: ClassVar[str] = "tokens of the prompt that stay; generated ones come on top"
    leaks: ClassVar[str] = "nothing: as many stay as the budget says, whatever the gates"

    @classmethod
    def at(cls, budget_tokens: int, prompt_tokens: int) -> AttentionGate:
        recent = min(cls.recent, max(1, budget_tokens // 2))
        return cls(budget_tokens, recent, min(cls.sink, budget_tokens // 4))

    def fitted(self, spec: ModelSpec) -> AttentionGate:
        return self if self.gates else replace(self, gates=gates_of(spec))

    def lacks(self, spec: ModelSpec) -> str:
        if self.fitted(spec).gates is not None:
            return ""
        return (
            f"cache policy {self.name} has no gates for {spec.name}; train them with `mpcache eval"
            f" gates --model {spec.name}`, which puts them to {trained_path(spec)}, or choose"
            " other policies"
        )

    def budget(self, prompt_tokens: int, new_tokens: int) -> Budget:
        static = min(max(self.tokens, self.recent + self.sink), prompt_tokens)
        return Budget(static, tuple(static + step for step in range(1, new_tokens)))

    def start(self, spec: ModelSpec, prompt_tokens: int, new_tokens: int) -> Cache:
        return AttentionGateCache(spec, self.fitted(spec))


def trained_path(spec: ModelSpec) -> Path:
    """Where gates that were trained on this host lie."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(root) / "mpcache" / "gates" / f"{spec.digest()}.safetensors"


def gates_of(spec: ModelSpec) -> Gates | None:
    """The gates for a model of this shape: this host's own, or those that come along.

    Raises:
        UsageError: the file of this host's own cannot be read.
    """
    own = trained_path(spec)
    if own.is_file():
        return _read(own, own.stat().st_mtime_ns)
    folder = Path(str(resources.files("mpcache.eviction"))) / "gates"
    shipped = folder / f"{spec.digest()[:16]}.safetensors"
    return _read(shipped, 0) if shipped.is_file() else None


@functools.lru_cache(maxsize=8)
def _read(path: Path, changed: int) -> Gates:
    try:
        with safe_open(path, "pt") as file:
            names = sorted(file.keys(), key=int)
            layers = tuple(file.get_tensor(name).to(torch.float32) for name in names)
    except (OSError, ValueError, SafetensorError) as error:
        raise UsageError(f"the gates {path} cannot be read ({error}); train them anew") from None
    return Gates(hashlib.sha256(path.read_bytes()).hexdigest()[:12], layers)


class AttentionGateCache(FullCache):
    def __init__(self, spec: ModelSpec, policy: AttentionGate) -> None:
        super().__init__(spec)
        self.policy = policy

    def prefill(
        self, machine: Machine, layer: int, queries: Value, keys: Value, values: Value
    ) -> Value:
        tokens = keys.shape[1]
        kept = self.policy.budget(tokens, 1).static
        context, _ = attention(machine, queries, keys, values, causal_mask(tokens, keys), 0)
        if kept < tokens:
            with machine.scope("evict"):
                worth = self._worth(machine, layer, keys, values)
                policy = self.policy
                chosen = top(machine, worth, kept, policy.sink, policy.recent, **WORTH)
                keys, values = chosen.stored(machine, keys, values)
        self.keys[layer], self.values[layer] = keys, values
        return context

    def _gate(self, layer: int, shape: tuple[int, ...]) -> torch.Tensor | None:
        """A layer's gate [shape] where it is known: at its owner, and in plaintext."""
        gates = self.policy.gates
        return None if gates is None else gates.layers[layer].reshape(shape)

    def _worth(self, machine: Machine, layer: int, keys: Value, values: Value) -> Value:
        """What the gate says of each token: [kv_heads, tokens]."""
        heads, tokens, width = keys.shape
        if self.spec.positions == "rotary":
            cos, sin = rotary_tables(replace(self.spec, head_dim=width), 0, tokens)
            keys = rotary(machine, keys, cos, -sin)
        inputs = machine.cat([keys, values], 2).permute(1, 0, 2).reshape(tokens, heads * 2 * width)
        shape = (heads * 2 * width, heads)
        gate = machine.matrix(f"gates.{layer}", self._gate(layer, shape), shape)
        if isinstance(gate, torch.Tensor):
            gate = gate.to(inputs)
        return linear(machine, inputs, gate, None, settled=False).transpose(0, 1)
