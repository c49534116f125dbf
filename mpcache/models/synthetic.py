"""Seeded weights in the right shapes, for timing a model whose weights one does not have.

They are public: anybody can compute them from the shape and the seed, so an ordinary generator
serves. Nothing secret may ever come from here. The text that such a model writes is meaningless.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Mapping

import torch

from mpcache.errors import UsageError
from mpcache.models.families import LOOKUP_TABLES
from mpcache.models.spec import ModelSpec

BIAS_SCALE = 0.01
POSITION_SCALE = 0.02


def _scale(spec: ModelSpec, name: str, shape: tuple[int, ...]) -> float:
    """Standard deviation: about 1/sqrt(inputs), so that every layer's output stays near 1."""
    if name == "embed.positions":
        return POSITION_SCALE
    if name.endswith(".bias"):
        return BIAS_SCALE
    inputs = shape[1] if name in LOOKUP_TABLES else shape[0]
    into_residual = name.endswith(("attention.output", "ffn.down"))
    return 1.0 / math.sqrt(inputs * (2 * spec.layers if into_residual else 1))


def synthetic_tensor(spec: ModelSpec, name: str, seed: int = 0) -> torch.Tensor:
    """The canonical weight `name`, the same for the same shape and seed, whatever came before.

    Returns:
        float32 of shape ``spec.shapes()[name]``: norm gains 1, everything else normal.

    Raises:
        UsageError: the model has no such weight.
    """
    shapes = spec.shapes()
    if name not in shapes:
        raise UsageError(f"{spec.name} has no weight {name!r}; expected a name of ModelSpec.shapes")
    shape = shapes[name]
    if name.endswith(".gain"):
        return torch.ones(shape)
    digest = hashlib.sha256(f"{seed}/{spec.digest()}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    return torch.empty(shape).normal_(0.0, _scale(spec, name, shape), generator=generator)


def synthetic_weights(spec: ModelSpec, seed: int = 0) -> dict[str, torch.Tensor]:
    """Every weight of `spec` by canonical name, float32; see `synthetic_tensor`."""
    return {name: synthetic_tensor(spec, name, seed) for name in spec.shapes()}


class SyntheticWeights(Mapping[str, torch.Tensor]):
    """As `synthetic_weights`, each made when it is looked up, and not kept."""

    def __init__(self, spec: ModelSpec, seed: int = 0) -> None:
        self.spec, self.seed, self._shapes = spec, seed, spec.shapes()

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._shapes:
            raise KeyError(name)
        return synthetic_tensor(self.spec, name, self.seed)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)
