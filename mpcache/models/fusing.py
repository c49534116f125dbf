"""Weights as a machine takes them: norms folded in, matrices with a common input side by side.

Norms are folded into the matrices around them: see `models.folding`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from mpcache.models.folding import Folded, folded_shapes
from mpcache.models.spec import ModelSpec

FUSED = {
    "attention.input": ("attention.query", "attention.key", "attention.value"),
    "ffn.input": ("ffn.gate", "ffn.up"),
}


@dataclass(frozen=True)
class Group:
    """Folded weights that stand side by side, and the shape that they have together.

    `layer` is None for what stands before the layers or behind them.
    """

    parts: tuple[str, ...]
    shape: tuple[int, ...]
    layer: int | None


@functools.lru_cache(maxsize=16)
def fused_groups(spec: ModelSpec) -> Mapping[str, Group]:
    """Every weight that a machine takes, by name, in the order in which it takes them.

    That is layer by layer; before them comes what is embedded, behind them the head.
    """
    shapes = folded_shapes(spec)
    names: dict[str, tuple[str, ...]] = {name: (name,) for name in shapes}
    for layer in range(spec.layers):
        for fused, parts in FUSED.items():
            for suffix in ("", ".bias"):
                own = [f"layers.{layer}.{part}{suffix}" for part in parts]
                own = [name for name in own if names.pop(name, None)]
                if own:
                    names[f"layers.{layer}.{fused}{suffix}"] = tuple(own)
    found = {}
    for name, parts in sorted(names.items(), key=lambda named: _place(named[0], spec.layers)):
        shape = (*shapes[parts[0]][:-1], sum(shapes[part][-1] for part in parts))
        place = _place(name, spec.layers)
        found[name] = Group(parts, shape, place if 0 <= place < spec.layers else None)
    return found


def _place(name: str, layers: int) -> int:
    """The number of a weight's layer; -1 for what is embedded, `layers` for the head."""
    kind, _, rest = name.partition(".")
    if kind == "layers":
        return int(rest.partition(".")[0])
    return -1 if kind == "embed" else layers


class Fused(Mapping[str, torch.Tensor]):
    """The weights of `fused_groups`, each made when it is asked for, contiguous.

    Args:
        tensors: the model's own weights by canonical name.
    """

    def __init__(self, spec: ModelSpec, tensors: Mapping[str, torch.Tensor]) -> None:
        self.groups, self.folded = fused_groups(spec), Folded(spec, tensors)

    def __iter__(self) -> Iterator[str]:
        return iter(self.groups)

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, name: str) -> torch.Tensor:
        parts = [self.folded[part] for part in self.groups[name].parts]
        whole = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
        return whole.contiguous()  # products read rows in order
