"""The twin in fixed point: what the parties' number format alone does to a result."""

from __future__ import annotations

from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch

from mpcache.protocols.arithmetic import linear, product
from mpcache.protocols.operation import Operation, PlainMachine, Value
from mpcache.protocols.setting import Setting


class FixedMachine(PlainMachine):
    """A twin whose values have the setting's fractional bits and stay in the ring's range.

    Weights and public summands are rounded as the parties encode them, and so is the output of
    every operation; the operation itself computes in float64. An operation that keeps all bits of
    its factors (`product`, an unsettled `linear`) is rounded to twice as many. The parties cut
    where this machine rounds, off by less than 1 unit instead of 1/2, and work out exp, 1/x and
    1/sqrt(x) with errors of their own: this is the format's share of the error, not all of it.

    A product before its truncation must stay below 2^62: values saturate at 2^(62 - 2 frac), where
    the parties' would wrap around. `saturated` counts how many did; none should.
    """

    def __init__(self, setting: Setting, device: str | torch.device = "cpu") -> None:
        super().__init__(setting, device)
        self.limit = 2.0 ** (62 - 2 * setting.frac)
        self.saturated = 0

    def perform(self, operation: Operation, *args: Any, **options: Any) -> Any:
        result = super().perform(operation, *args, **options)
        keeps = operation is product or (operation is linear and not _settled(args, options))
        return self._held(result, 2 * self.setting.frac if keeps else self.setting.frac)

    def _held(self, value: Any, frac: int) -> Any:
        """`value`, a tensor or several, with `frac` fractional bits; integers stay as they are."""
        if isinstance(value, torch.Tensor):
            return self._round(value, frac) if value.is_floating_point() else value
        if isinstance(value, tuple | list):
            return type(value)(self._held(item, frac) for item in value)
        if is_dataclass(value) and not isinstance(value, type):
            parts = {item.name: getattr(value, item.name) for item in fields(value)}
            return replace(value, **{name: self._held(part, frac) for name, part in parts.items()})
        return value

    def _round(self, value: torch.Tensor, frac: int) -> torch.Tensor:
        value = torch.round(value.double() * 2.0**frac) / 2.0**frac
        beyond = int((value.abs() > self.limit).sum())
        if not beyond:
            return value
        self.saturated += beyond
        return value.clamp(-self.limit, self.limit)

    def shift(self, value: Value, public: torch.Tensor | float) -> Value:
        exact = torch.as_tensor(public, dtype=torch.float64, device=self.device)
        return value + self._round(exact, self.setting.frac)

    def weight(self, name: str, tensor: torch.Tensor | None, shape: tuple[int, ...]) -> Value:
        return self._round(super().weight(name, tensor, shape), self.setting.frac)


def _settled(args: tuple[Any, ...], options: dict[str, Any]) -> bool:
    """Whether a call of `linear` (x, weight, bias, settled) asks for a settled result."""
    return bool(args[3]) if len(args) > 3 else bool(options.get("settled", True))
