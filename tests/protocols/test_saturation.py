"""Suite `dealer`, far out of range: every operation saturates as it says, and none wraps.

Values go up to 2^13, and to 2^15 where a linear map's ring of 48 bits holds them.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch

from mpcache.protocols import functions
from mpcache.protocols.activation import gelu, relu, silu
from mpcache.protocols.arithmetic import linear, matmul, multiply
from mpcache.protocols.comparison import at_least, extrema, maximum, negative
from mpcache.protocols.functions import clipped, decay, inverse, inverse_sqrt, reciprocal, stairs
from mpcache.protocols.greatest import argmax
from mpcache.protocols.norm import norm
from mpcache.protocols.operation import PlainMachine
from mpcache.protocols.selection import best, rank, top_k
from mpcache.protocols.softmax import softmax

from .harness import UNIT, grid
from .test_dealer import SETTING, SETTINGS, Done, perform, spline_bound

FAR = torch.tensor(
    [-(2.0**13), -8191.5, -4096, -1000.25, -100, -17, -1, -UNIT, 0, UNIT, 0.5, 1, 17, 100, 4096,
     8191.5, 2.0**13 - UNIT],
    dtype=torch.float64,
)  # fmt: skip


def checked(operation: Any, *inputs: torch.Tensor, **options: Any) -> torch.Tensor:
    done: Done = perform(operation, list(inputs), **options)
    done.check_cost()
    return done.values[0]


@pytest.mark.parametrize("profile", SETTINGS)
def test_comparisons_are_exact_up_to_2_to_the_15(profile: str) -> None:
    ends = torch.tensor([2.0**15 - UNIT, -(2.0**15), 2.0**14, -(2.0**14)], dtype=torch.float64)
    x = torch.cat([FAR, ends])
    setting = SETTINGS[profile]
    assert torch.equal(checked(negative, x, setting=setting), (x < 0).double())
    got = checked(partial(at_least, y=-1000.25), FAR, setting=setting)
    assert torch.equal(got, (FAR >= -1000.25).double())
    assert torch.equal(
        checked(partial(clipped, low=-16.0), FAR, setting=setting), FAR.clamp(min=-16)
    )


def test_the_greatest_and_their_order_are_exact() -> None:
    order = torch.randperm(len(FAR), generator=torch.Generator().manual_seed(5))
    x = torch.stack([FAR.flip(0), FAR[order]])
    assert torch.equal(checked(partial(maximum, dim=1), x), x.amax(1, keepdim=True))
    done = perform(partial(extrema, dim=1), [x])
    assert torch.equal(done.values[0], x.amax(1)) and torch.equal(done.values[1], x.amin(1))
    plain = PlainMachine(SETTING)
    assert torch.equal(checked(rank, x), rank(plain, x))
    assert torch.equal(checked(partial(top_k, k=5), x), top_k(plain, x, 5))
    near = x / 8  # elements of a row stay within 2^12 of each other
    assert torch.equal(checked(argmax, near), near.argmax(-1).double())


@pytest.mark.parametrize("keep", [7, 16])
def test_the_best_of_all_that_a_narrow_ring_holds(keep: int) -> None:
    """Similarities are sums of scores modulo 2^48: whatever their magnitude, none wraps sooner."""
    x = FAR.repeat(3, 1)

    def chosen(machine: Any, x: Any) -> Any:
        return best(machine, x.modulo(48), 4, magnitude=18, keep=keep)

    got = checked(chosen, x, fracs=[32])
    order = x.argsort(-1, descending=True)[:, :4]
    assert torch.equal(got.long(), torch.nn.functional.one_hot(order, x.shape[1]))


@pytest.mark.parametrize("narrow", [True, False])
def test_activations_of_far_values(narrow: bool) -> None:
    """As a linear map leaves them: 32 fractional bits modulo 2^48, and settled."""
    x = torch.cat([FAR, torch.tensor([2.0**15 - 1, -(2.0**15), 2.0**14]).double()])

    def rectified(machine: Any, x: Any) -> Any:
        return relu(machine, x.modulo(48) if narrow else x)

    got = checked(rectified, x, fracs=[32 if narrow else 16])
    assert bool(((got - x.clamp(min=0)).abs() <= (UNIT if narrow else 0)).all())
    got = checked(silu, FAR)
    want = torch.nn.functional.silu(FAR)
    assert bool(((got - want).abs() <= (1 + FAR.abs()) * 40 * UNIT).all())


@pytest.mark.parametrize("profile", SETTINGS)
def test_gelu_of_far_values(profile: str) -> None:
    """As a linear map leaves them, cut to 16 fractional bits on the way: 1.13 units for that."""
    x = torch.cat([FAR, torch.tensor([2.0**15 - 1, -(2.0**15), 2.0**14, 4.9, -4.9]).double()])
    x = torch.cat([x, torch.linspace(-7, 7, 999).double()])

    def narrow(machine: Any, x: Any) -> Any:
        return gelu(machine, x.modulo(48))

    got = checked(narrow, x, fracs=[32], setting=SETTINGS[profile])
    assert bool(((got - torch.nn.functional.gelu(x)).abs() <= 4 * UNIT).all())


def test_decay_of_far_values() -> None:
    got = checked(decay, FAR)
    want = torch.exp(FAR.clamp(max=0))
    falling = FAR <= 0
    assert bool(((got - want)[falling].abs() <= (4 * want[falling] + 3) * UNIT).all())
    assert bool(((got - 43 / 16)[FAR >= 17].abs() <= 2 * UNIT).all())


@pytest.mark.parametrize("few", [True, False], ids=["spline", "newton"])
@pytest.mark.parametrize("upper", [1.5, 2.0, 63.0, 300.0])
def test_a_reciprocal_counts_what_is_outside_as_its_ends(
    upper: float, few: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(functions, "FEW", 1 << 13 if few else 0)
    end = 2.0 ** (max(1, math.ceil(math.log2(upper))) + 1)
    inside = torch.cat([torch.linspace(1, end - UNIT, 200), 2.0 ** torch.arange(math.log2(end))])
    x = grid(torch.cat([FAR, inside, torch.tensor([0.97, 1 - UNIT, end, end + UNIT])]))
    got = checked(partial(reciprocal, upper=upper), x)
    want = 1 / x.clamp(1, end)
    # a factor below 1 rounds x, and the product with it is cut; see the bound for what is inside
    bound = spline_bound(torch.ones_like(x) * 2, x.clamp(1, 2)) + 2
    assert bool(((got - want).abs() <= bound * UNIT).all()), (got - want).abs().max() / UNIT


@pytest.mark.parametrize("width", [64, 48])
def test_an_inverse_counts_what_is_outside_as_its_ends(width: int) -> None:
    low, high = -6, 5
    x = grid(torch.cat([FAR, 2.0 ** torch.arange(-6, 6, 0.3), torch.tensor([0.001, 47, 49, 64])]))

    def inverted(machine: Any, x: Any) -> Any:
        return inverse(machine, x.modulo(width), low, high, 26)

    got = checked(inverted, x)
    want = 1 / x.clamp(0.75 * 2.0**low, 1.5 * 2.0**high)
    assert bool(((got - want).abs() <= 3 * want * 2.0**-15 + 2.0**-25).all())


def test_an_inverse_root_counts_what_is_outside_as_its_ends() -> None:
    near = torch.tensor([4.0, 4.5, 5, 5 + UNIT, 6], dtype=torch.float64)
    x = grid(torch.cat([FAR.clamp(-4096, 4096), torch.linspace(0, 4, 99), near]))
    inside = x.clamp(1, 5)
    bound = spline_bound(inside, x) + 2
    assert bool(((checked(inverse_sqrt, x) - torch.rsqrt(inside)).abs() <= bound * UNIT).all())


@pytest.mark.parametrize("profile", SETTINGS)
@pytest.mark.parametrize("size", [3, 63, 1000, 2048])
def test_a_norm_of_rows_that_are_too_large(profile: str, size: int) -> None:
    """Sums of squares from 2^30 to 2^31 count as 2^31."""
    sums = torch.tensor([0.999 * 2**30, 2.0**30, 1.5 * 2**30, 1.999 * 2**30], dtype=torch.float64)
    x = torch.randn(4, size, generator=torch.Generator().manual_seed(size), dtype=torch.float64)
    x[1] = 0.0
    x[1, 0] = 1.0  # all of a row in one place: the largest results
    x[3, 1:] *= 2.0**-10
    x = grid(x * (sums / x.square().sum(-1)).sqrt().unsqueeze(-1))
    counted = torch.where(sums < 2**30, x.square().sum(-1), 2.0**31).unsqueeze(-1)
    want = x * (size / counted).sqrt()

    def normed(machine: Any, x: Any) -> Any:
        return norm(machine, x, None, None, 1e-5, False)

    got = checked(normed, x, setting=SETTINGS[profile])
    bound = want.abs() * (2.0**-15 + 2.0**-26 * counted.sqrt() / math.sqrt(size)) + 3 * UNIT
    assert bool(((got - want).abs() <= bound).all()), ((got - want).abs() / bound).amax(-1)


def test_a_softmax_of_far_scores() -> None:
    rows = torch.stack([FAR, FAR.flip(0), FAR.roll(3)])
    got = checked(softmax, rows)
    want = torch.softmax(rows, -1)
    assert bool(((got - want).abs() <= 100 * UNIT).all())


def test_steps_of_far_values() -> None:
    steps = torch.tensor([-5000.0, -17, 0, 1, 5000], dtype=torch.float64)
    table = torch.tensor([3.0, -1, 0.5, 7, -7, 100], dtype=torch.float64)

    def stepped(machine: Any, x: Any) -> Any:
        return stairs(machine, x, steps, table)[0]

    want = table[(FAR.unsqueeze(-1) >= steps).sum(-1)]
    assert torch.equal(checked(stepped, FAR), want)


def test_products_hold_2_to_the_30_and_linear_maps_2_to_the_14() -> None:
    """What the ring holds, to its end: nothing can saturate beyond."""
    x = torch.tensor([2.0**15 - 1, -(2.0**15), 2.0**14, 3.5], dtype=torch.float64)
    y = torch.tensor([2.0**15 - 1, 2.0**15 - 2, -(2.0**15), -(2.0**15)], dtype=torch.float64)
    got = checked(multiply, x, y)
    assert bool(((got - x * y).abs() <= UNIT).all())
    got = checked(matmul, x.unsqueeze(0), torch.stack([y / 4, y]).t())
    want = x.unsqueeze(0) @ torch.stack([y / 4, y]).t()
    assert bool(((got - want).abs() <= UNIT).all())
    weight = torch.tensor([[1.0, -1.0, 0.5]], dtype=torch.float64)
    x = torch.tensor([[2.0**14 - 1], [-(2.0**14)], [8191.5]], dtype=torch.float64)
    got = checked(linear, x, weight)
    assert bool(((got - x @ weight).abs() <= UNIT).all())
