"""The twin works in float32: no step of a policy may widen it."""

from __future__ import annotations

import pytest
import torch

from mpcache.eviction.mpcache import MPCache
from mpcache.models.spec import ModelSpec
from mpcache.protocols.operation import PlainMachine
from mpcache.protocols.setting import Setting

SPEC = ModelSpec("t", "llama", 1, 16, 4, 2, 4, 8, 8, 512, "rms", 1e-5)


@pytest.mark.parametrize("dynamic_keep", [0.2, 0.5, 0.6])
@pytest.mark.parametrize("summary", ["extrema", "mean"])
def test_a_decode_step_stays_in_float32(dynamic_keep: float, summary: str) -> None:
    policy = MPCache((8, 4), dynamic_keep=dynamic_keep, summary=summary)  # type: ignore[arg-type]
    machine, generator = PlainMachine(Setting()), torch.Generator().manual_seed(1)
    cache = policy.start(SPEC, 61, 3)
    for count in (61, 1, 1):
        queries = torch.randn(2, 2, count, 4, generator=generator)
        keys, values = torch.randn(2, 2, count, 4, generator=generator)
        context = cache.attend(machine, 0, queries, keys, values)
        assert context.dtype == torch.float32
    assert cache.kept.matches(policy.budget(61, 3))
