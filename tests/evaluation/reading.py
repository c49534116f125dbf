"""The fixed reading of an operation or a whole program."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from protocols.harness import listed

from mpcache.evaluation.fixed import FixedMachine
from mpcache.protocols.secret import Secret
from mpcache.protocols.setting import Setting

SETTING = Setting(suite="dealer")


def on_fixed(
    operation: Callable[..., Any],
    inputs: Sequence[torch.Tensor],
    fracs: Sequence[int] | None = None,
) -> list[torch.Tensor]:
    """The results of `operation` on inputs with so many fractional bits, or the setting's."""
    machine = FixedMachine(SETTING)
    secrets = [
        Secret(machine.encode(x, frac), frac)
        for x, frac in zip(inputs, fracs or [SETTING.frac] * len(inputs), strict=True)
    ]
    return [machine.seen(value) for value in listed(operation(machine, *secrets))]
