"""Public numbers: exact, and no party computes any other way than by exact arithmetic."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest import mock

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mpcache.models.rotary_tables import SPAN, rotary_tables
from mpcache.models.spec import ModelSpec, RopeScaling
from mpcache.protocols.activation import _gelu_pieces
from mpcache.protocols.dealer_roles import OnlineDealer
from mpcache.protocols.dealer_tables import EXP_FRAC, EXP_WINDOW, _public_exp
from mpcache.protocols.exact import exact, fitted, powers_of_two, rounded
from mpcache.protocols.functions import _logistic_factors
from mpcache.protocols.operation import SecureMachine

from .tiny import FULL, MPCACHE, SPECS, config, run

# What IEEE 754 rounds correctly, and what only moves numbers. A sum's order is the library's own.
NAMES = """
_local_scalar_dense _to_copy _unsafe_view abs add alias amax arange as_strided cat ceil clamp
clone copy detach diff div empty eq expand fill flip floor full gather ge gt index index_select
isfinite item le lift_fresh lt max maximum minimum mul narrow ne neg new_zeros ones permute
reciprocal reshape round rsub scalar_tensor select slice split sqrt squeeze stack sub t
transpose unbind unsqueeze view where zeros zeros_like
"""
EXACT = set(NAMES.split())


MADE_ONCE = (_logistic_factors, _gelu_pieces, _public_exp)


class OnlyExact(TorchDispatchMode):
    """Refuses every operation on floats that another machine may round otherwise."""

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        results = out if isinstance(out, tuple | list) else [out]
        floats = any(isinstance(r, torch.Tensor) and r.is_floating_point() for r in results)
        name = func.overloadpacket.__name__
        assert not floats or name.rstrip("_") in EXACT, name
        return out


@contextmanager
def watched() -> Iterator[set[int]]:
    """Party 1's operations, who has no weights to fold, compute floats exactly; yields who ran."""
    original, seen, inside = SecureMachine.perform, set(), threading.local()

    def perform(self: SecureMachine, *args: Any, **options: Any) -> Any:
        online = isinstance(self.suite, OnlineDealer) and self.suite.rank == 1
        if not online or getattr(inside, "watched", False):
            return original(self, *args, **options)
        seen.add(self.suite.rank)  # type: ignore[attr-defined]
        for made_once in MADE_ONCE:  # in dealing, which is not watched
            made_once.cache_clear()
        inside.watched = True
        try:
            with OnlyExact():
                return original(self, *args, **options)
        finally:
            inside.watched = False

    with mock.patch.object(SecureMachine, "perform", perform):
        yield seen


GELU = replace(SPECS["opt"], name="tiny-gelu", activation="gelu")


@pytest.mark.parametrize("spec", [*SPECS.values(), GELU], ids=lambda spec: spec.name)
@pytest.mark.parametrize("cache", [MPCACHE, FULL], ids=["mpcache", "full"])
@pytest.mark.parametrize("profile", ["lan", "wan"])
def test_public_numbers_do_not_hang_on_the_machine(
    spec: ModelSpec, cache: dict[str, object], profile: str
) -> None:
    """Two parties whose public factors differ in the last bit would end with garbage."""
    with watched() as seen:
        run(config(2, cache, protocol="dealer", profile=profile), spec)
    assert seen == {1}


def test_what_is_watched_is_refused() -> None:
    with pytest.raises(AssertionError, match="exp"), OnlyExact():
        torch.exp(torch.ones(3))


def test_exp_at_every_index() -> None:
    bits = EXP_FRAC + EXP_WINDOW
    index = torch.arange(1 << bits)
    wanted = torch.exp(index.double() / 2**EXP_FRAC - 15)
    assert ((_public_exp()(index) / wanted - 1).abs() < 1e-15).all()
    for place in (0, 1, 511, 512, 77_777, (1 << bits) - 1):
        value = exact.exp(exact.mpf(place) / 2**EXP_FRAC - 15)
        assert float(_public_exp()(index[place : place + 1])) == pytest.approx(float(value), 1e-15)


def test_small_functions() -> None:
    assert powers_of_two([-3, 0, 40]).tolist() == [0.125, 1.0, 2.0**40]
    line = fitted([0, 1, 2], [1, 3, 5], 1)
    assert [round(float(c), 12) for c in line] == [1.0, 2.0]
    assert [rounded(exact.mpf(x), 4) for x in ("0.49", "-0.49", "0.01")] == [8, -8, 0]


SCALED = RopeScaling(factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_context=512)


@pytest.mark.parametrize("scaling", [None, SCALED])
@pytest.mark.parametrize(
    ("start", "count"), [(0, 1), (0, SPAN), (5, 7), (SPAN - 1, 2), (63, 130), (4_000, 65)]
)
def test_angles_equal_the_formula(start: int, count: int, scaling: RopeScaling | None) -> None:
    spec = replace(SPECS["llama"], head_dim=12, rope_base=10_000.0, rope_scaling=scaling)
    frequencies = spec.rope_base ** (-torch.arange(6, dtype=torch.float64) / 6)
    if scaling is not None:
        turns = scaling.original_context * frequencies / (2 * torch.pi)
        blend = ((turns - 1.0) / 3.0).clamp(0, 1)
        frequencies = frequencies * (blend + (1 - blend) / scaling.factor)
    angles = torch.arange(start, start + count, dtype=torch.float64).unsqueeze(-1) * frequencies
    cos, sin = rotary_tables(spec, start, count)
    assert cos.shape == sin.shape == (count, 6)
    assert (cos - angles.cos()).abs().max() < 1e-11 and (sin - angles.sin()).abs().max() < 1e-11
