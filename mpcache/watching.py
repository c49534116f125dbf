"""The twin that watches: how far every quantity with a range goes, by operation and layer."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from mpcache.protocols.ledger import layer_of
from mpcache.protocols.operation import Fused, Operation, PlainMachine
from mpcache.protocols.reach import Reach
from mpcache.protocols.setting import Setting

LEAST = -16  # bits of what is smaller than any unit
BEYOND = 1024  # bits of what float32 does not hold


@dataclass(frozen=True)
class Place:
    """A quantity of an operation in a layer; None outside of the layers."""

    operation: str
    reach: Reach
    layer: int | None


class WatchingMachine(PlainMachine):
    """Computes as `PlainMachine` does, and notes the greatest magnitude of each `Place`.

    What an operation uses inside its own plain text is not noted: parties do that otherwise.

    Attributes:
        met: the greatest magnitudes so far.
    """

    def __init__(self, setting: Setting, device: str | torch.device = "cpu") -> None:
        super().__init__(setting, device)
        self.met: dict[Place, float] = {}
        self._layers: list[int | None] = [None]
        self._inside = False

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        layer = layer_of(name)
        self._layers.append(self._layers[-1] if layer is None else layer)
        try:
            yield
        finally:
            self._layers.pop()

    def perform(self, operation: Operation, *args: Any, **options: Any) -> Any:
        if self._inside:
            return operation.plain(self, *args, **options)
        if isinstance(operation, Fused):
            return operation.run(self, *args, **options)
        self._inside = True
        try:
            result = operation.plain(self, *args, **options)
            for reach, values in operation.reaches(result, *args, **options):
                self._note(Place(operation.name, reach, self._layers[-1]), values)
        finally:
            self._inside = False
        return result

    def _note(self, place: Place, values: torch.Tensor) -> None:
        if values.numel():
            greatest = float(values.abs().amax())
            greatest = math.inf if math.isnan(greatest) else greatest
            self.met[place] = max(self.met.get(place, 0.0), greatest)


def bits_of(greatest: float) -> int:
    """The least b with greatest < 2^b, from `LEAST` to `BEYOND`."""
    if not math.isfinite(greatest):
        return BEYOND
    return max(LEAST, math.frexp(greatest)[1]) if greatest else LEAST
