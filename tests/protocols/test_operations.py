"""Every operation, on two and three parties: within its bound of exact arithmetic, at its cost.

References are written here in float64, not taken from `plain`, which must equal them too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import drawn
import pytest
import torch

from mpcache.protocols.activation import gelu, relu, silu
from mpcache.protocols.arithmetic import linear, matmul, multiply, scale, settle
from mpcache.protocols.comparison import at_least, choose, extrema, maximum, negative
from mpcache.protocols.functions import (
    clipped,
    decay,
    exponential,
    inverse_sqrt,
    logistic,
    reciprocal,
    stairs,
)
from mpcache.protocols.greatest import argmax
from mpcache.protocols.norm import norm
from mpcache.protocols.public import read
from mpcache.protocols.rotary import rotary
from mpcache.protocols.selection import rank, top_k
from mpcache.protocols.softmax import attention, softmax

from . import bounds
from .harness import TRUNCATION, UNIT, WORLDS, grid, listed, perform, plain

Bound = Callable[..., Any]
DRAW = drawn.of_module(__name__)


def normal(*shape: int, spread: float = 1.0) -> torch.Tensor:
    return torch.randn(*shape, generator=DRAW, dtype=torch.float64) * spread


def between(low: float, high: float, *shape: int) -> torch.Tensor:
    return low + (high - low) * torch.rand(*shape, generator=DRAW, dtype=torch.float64)


def exact(*inputs: torch.Tensor, cut: float) -> float:
    return 0.0


def one_cut(*inputs: torch.Tensor, cut: float) -> float:
    return cut


@dataclass(frozen=True)
class Case:
    """An operation on inputs [any shape], what it must be, and its bound in units.

    `fracs` are the inputs' fractional bits where they are not the setting's.
    """

    name: str
    operation: Callable[..., Any]
    inputs: tuple[torch.Tensor, ...]
    reference: Callable[..., Any]
    bound: Bound = exact
    options: dict[str, Any] = field(default_factory=dict)
    fracs: tuple[int, ...] | None = None


def softmax_of(x: torch.Tensor, visible: torch.Tensor | None = None) -> torch.Tensor:
    e = torch.exp(x - x.max()) * (1 if visible is None else visible)
    return e / e.sum(-1, keepdim=True)


def causal(tokens: int) -> torch.Tensor:
    return torch.ones(tokens, tokens, dtype=torch.int64).tril()


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, -1)
    turned = torch.complex(first, second) * torch.complex(cos, sin)
    return torch.cat([turned.real, turned.imag], -1)


def ranks_of(x: torch.Tensor) -> torch.Tensor:
    """Of equal elements the earlier one wins."""
    rows = []
    for row in x.reshape(-1, x.shape[-1]).tolist():
        order = sorted(range(len(row)), key=lambda i: (-row[i], i))
        rows.append([float(order.index(i)) for i in range(len(row))])
    return torch.tensor(rows, dtype=torch.float64).reshape(x.shape)


def rows_of(x: torch.Tensor, k: int) -> torch.Tensor:
    """One-hot rows of the k greatest, in order of position."""
    flat = x.reshape(-1, x.shape[-1]).tolist()
    result = torch.zeros(len(flat), k, x.shape[-1], dtype=torch.float64)
    for i, row in enumerate(flat):
        best = sorted(sorted(range(len(row)), key=lambda j: (-row[j], j))[:k])
        for j, position in enumerate(best):
            result[i, j, position] = 1
    return result.reshape(*x.shape[:-1], k, x.shape[-1])


THRESHOLDS = torch.tensor([-1.0, 0.0, 0.5, 2.0], dtype=torch.float64)
TABLES = (
    torch.tensor([3.0, -1.0, 0.25, 100.0, -7.5], dtype=torch.float64),
    torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0], dtype=torch.float64),
)
ANGLES = between(-3.2, 3.2, 7, 3)
TABLE = grid(normal(63, 3))
ROWS = torch.eye(63, dtype=torch.float64)[[0, 62, 7, 7, 31]]
TIED = torch.tensor([[1.0, 2, 2, -3, 2], [0, 0, 0, 0, 0], [5, 4, 3, 2, 1]], dtype=torch.float64)


def stairs_of(x: torch.Tensor) -> list[torch.Tensor]:
    steps = [sum(value >= float(step) for step in THRESHOLDS) for value in x.tolist()]
    return [torch.stack([table[step] for step in steps]) for table in TABLES]


def _scale(machine: Any, x: Any, factor: Any) -> Any:
    return settle(machine, scale(machine, x, factor))


def _scale_case(name: str, factor: Any, x: torch.Tensor) -> Case:
    bound = lambda x, cut: bounds.scale(x, factor, cut)  # noqa: E731
    return Case(name, partial(_scale, factor=factor), (x,), lambda x: x * factor, bound)


def _attention(machine: Any, *inputs: Any) -> Any:
    return attention(machine, *inputs)[0]


def attended(queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    context = torch.empty_like(queries)
    for head, group, row in torch.cartesian_prod(*map(torch.arange, queries.shape[:3])).tolist():
        scores = keys[head] @ queries[head, group, row] / queries.shape[-1] ** 0.5
        context[head, group, row] = softmax_of(scores) @ values[head]
    return context


SUMS = [
    *(Case(f"multiply-{n}", multiply, (normal(n), normal(n)), torch.mul, one_cut)
      for n in (0, 1, 63, 500)),
    Case("multiply-broadcast", multiply, (normal(5, 1, 3), normal(7, 1)), torch.mul, one_cut),
    Case("multiply-big", multiply, (normal(9, spread=300), normal(9, spread=300)), torch.mul,
         one_cut),
    Case("matmul", matmul, (normal(3, 63), normal(63, 5)), torch.matmul, one_cut),
    Case("matmul-row", matmul, (normal(1, 500), normal(500, 1)), torch.matmul, one_cut),
    Case("matmul-batch", matmul, (normal(2, 1, 3, 7), normal(5, 7, 2)), torch.matmul, one_cut),
    Case("matmul-empty", matmul, (normal(0, 3), normal(3, 2)), torch.matmul, one_cut),
    Case("linear", linear, (normal(7, 63), normal(63, 9), normal(9)),
         lambda x, w, b: x @ w + b, one_cut),
    _scale_case("scale-sixth", 1 / 6, normal(63)),
    _scale_case("scale-minus-3.3", -3.3, normal(500)),
    _scale_case("scale-tiny", 1e-4, normal(63, spread=1000)),
    _scale_case("scale-tensor", normal(1, 9), normal(7, 9)),
    Case("scale-quarter", partial(scale, factor=0.25), (normal(63),), lambda x: x / 4),
    Case("scale-one", partial(scale, factor=1.0), (normal(1),), lambda x: x),
    Case("settle", settle, (grid(normal(63), 21),), lambda x: x, one_cut, fracs=(21,)),
    Case("settle-nothing", settle, (normal(63),), lambda x: x),
    Case("rotary", partial(rotary, cos=ANGLES.cos(), sin=ANGLES.sin()), (normal(2, 7, 6),),
         lambda x: rotated(x, ANGLES.cos(), ANGLES.sin()), bounds.rotary),
    Case("rotary-secret", rotary, (normal(5, 7, 6), ANGLES.cos(), ANGLES.sin()), rotated, one_cut),
    Case("rotary-secret-1", rotary, (normal(1, 1, 2), *between(-1, 1, 2, 1, 1)), rotated, one_cut),
    *(Case(f"read-{k}", partial(read, table=TABLE), (ROWS[:k],), lambda rows: rows @ TABLE,
           fracs=(0,)) for k in (0, 1, 5)),
]  # fmt: skip
COMPARISONS = [
    *(Case(f"negative-{n}", negative, (normal(n),), lambda x: (x < 0).double())
      for n in (0, 1, 63)),
    Case("negative-edges", negative, (torch.tensor([0.0, UNIT, -UNIT, 2.0**46, -(2.0**46)]),),
         lambda x: torch.tensor([0.0, 0, 1, 0, 1])),
    Case("at-least", at_least, (normal(5, 1), normal(7)), lambda x, y: (x >= y).double()),
    Case("at-least-equal", partial(at_least, y=0.5), (torch.tensor([0.5, 0.5 - UNIT, 0.5 + UNIT]),),
         lambda x: torch.tensor([1.0, 0, 1])),
    Case("choose", choose, (torch.tensor([0.0, 1, 1, 0, 1]), normal(5), normal(5)),
         lambda bit, x, y: torch.where(bit > 0, x, y), fracs=(0, 16, 16)),
    *(Case(f"maximum-{n}", partial(maximum, dim=1), (normal(2, n, 3),),
           lambda x: x.amax(1, keepdim=True)) for n in (1, 2, 7)),
    Case("maximum-63", partial(maximum, dim=-1), (normal(63),), lambda x: x.amax(-1, keepdim=True)),
    *(Case(f"extrema-{n}", partial(extrema, dim=1), (normal(2, n, 3),),
           lambda x: [x.amax(1), x.amin(1)]) for n in (1, 2, 5, 16)),
    Case("extrema-last", partial(extrema, dim=-1), (normal(3, 7),),
         lambda x: [x.amax(-1), x.amin(-1)]),
    Case("clipped", partial(clipped, low=-16.0), (normal(63, spread=30),),
         lambda x: x.clamp(min=-16)),
    Case("stairs", stairs, (torch.cat([normal(63), THRESHOLDS, THRESHOLDS - UNIT]),), stairs_of,
         options={"thresholds": THRESHOLDS, "tables": TABLES}),
    Case("relu", relu, (torch.cat([normal(500), torch.tensor([0.0, 1e9, -1e9])]),),
         lambda x: x.clamp(min=0)),
    *(Case(f"rank-{n}", rank, (normal(3, n),), ranks_of) for n in (1, 2, 17)),
    Case("rank-ties", rank, (TIED,), ranks_of),
    *(Case(f"top-{k}", partial(top_k, k=k), (normal(2, 9),), partial(rows_of, k=k))
      for k in (0, 1, 4, 9)),
    Case("top-1-of-1", partial(top_k, k=1), (normal(3, 1),), partial(rows_of, k=1)),
    Case("top-ties", partial(top_k, k=2), (TIED,), partial(rows_of, k=2)),
    *(Case(f"argmax-{n}", argmax, (normal(2, n),), lambda x: x.argmax(-1)) for n in (1, 2, 63)),
]  # fmt: skip
FUNCTIONS = [
    Case("exp-1", exponential, (between(-3, 0, 1),), torch.exp, bounds.exponential),
    Case("exp-500", exponential, (between(-16, 0, 500),), torch.exp, bounds.exponential),
    Case("decay", decay, (-between(0, 1, 63) ** 9 * 4000,), torch.exp, bounds.decay),
    Case("logistic", logistic, (between(0, 1, 63),), lambda e: 1 / (1 + e), bounds.logistic),
    Case("exp-near-0", exponential, (between(-0.1, 0, 63),), torch.exp, bounds.exponential),
    *(Case(f"reciprocal-{upper:g}", partial(reciprocal, upper=upper), (between(1, upper, 63),),
           lambda x: 1 / x, partial(bounds.reciprocal, upper=upper))
      for upper in (2.0, 63.0, 64.0, 500.0)),
    Case("reciprocal-edges",  # where the first guess is farthest off
         partial(reciprocal, upper=2.0),
         (torch.tensor([1.0, 2**0.5, 1.99, 2 - UNIT, 2.0], dtype=torch.float64).repeat(9),),
         lambda x: 1 / x, partial(bounds.reciprocal, upper=2.0)),
    Case("reciprocal-powers", partial(reciprocal, upper=64.0), (2.0 ** torch.arange(7),),
         lambda x: 1 / x, partial(bounds.reciprocal, upper=64.0)),
    Case("inverse-sqrt", inverse_sqrt, (torch.cat([between(1, 4, 500), torch.ones(1)]),),
         torch.rsqrt, bounds.inverse_sqrt),
    *(Case(f"softmax-{n}", softmax, (normal(3, n, spread=4),), softmax_of, bounds.softmax)
      for n in (1, 2, 63, 500)),
    Case("softmax-equal", softmax, (torch.zeros(2, 63),), softmax_of, bounds.softmax),
    Case("softmax-causal", partial(softmax, visible=causal(7)), (normal(2, 7, 7, spread=4),),
         partial(softmax_of, visible=causal(7)), partial(bounds.softmax, visible=causal(7))),
    Case("attention", _attention, (normal(2, 3, 1, 6), normal(2, 11, 6), normal(2, 11, 6)),
         attended, bounds.attention),
    Case("gelu-1", gelu, (between(1, 3, 1),), torch.nn.functional.gelu, bounds.gelu),
    Case("gelu-500", gelu, (normal(500, spread=3),), torch.nn.functional.gelu, bounds.gelu),
    Case("gelu-edges", gelu,
         (torch.tensor([0.0, UNIT, -UNIT, 5.6, 5.7, -5.6, 4.92, -4.93, 100, -100, 8191, -8191]),),
         torch.nn.functional.gelu, bounds.gelu),
    *(Case(f"silu-{x.numel()}", silu, (x,), lambda x: x / (1 + torch.exp(-x)), bounds.silu)
      for x in (between(1, 3, 1), normal(500, spread=3))),
]  # fmt: skip
CASES = SUMS + COMPARISONS + FUNCTIONS


def operate(case: Case) -> Callable[..., Any]:
    """The case's operation, with tables given by position."""
    if "tables" not in case.options:
        return case.operation
    return lambda machine, x: case.operation(
        machine, x, case.options["thresholds"], *case.options["tables"]
    )


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_within_the_bound_at_the_cost(case: Case, world: int) -> None:
    fracs = case.fracs or (16,) * len(case.inputs)
    inputs = [grid(x, frac) for x, frac in zip(case.inputs, fracs, strict=True)]
    outcome = perform(world, operate(case), inputs, fracs)
    outcome.check_cost()
    expected = listed(case.reference(*inputs))
    twin = listed(operate(case)(plain(), *inputs))
    bound = case.bound(*inputs, cut=TRUNCATION[world]) * UNIT
    for got, want, computed in zip(outcome.results, expected, twin, strict=True):
        torch.testing.assert_close(computed.double(), want.double(), rtol=1e-12, atol=1e-12)
        assert tuple(got.shape) == tuple(want.shape)
        assert bool(((got - want).abs() <= bound).all()), f"{(got - want).abs().max() / UNIT} units"
        if want.any():
            assert bool((2 * want.abs() > bound).any()), "three times the answer would pass"


NORM_ROWS = {
    1: [2.0**-7, 1.0, 1e4],
    8: [2.0**-7, 0.3, 30.0, 1e4],
    63: [0.0, 2.0**-7, 1.0, 4000.0],
    576: [2.0**-7, 0.05, 1.0, 20.0, 1300.0],
}


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("size", NORM_ROWS)
@pytest.mark.parametrize("centered", [False, True], ids=["rms", "layer"])
def test_norm_from_the_smallest_to_the_greatest_rows(world: int, size: int, centered: bool) -> None:
    eps = 1e-5
    rows = torch.tensor(NORM_ROWS[size]).double().unsqueeze(-1)
    x = normal(len(rows), size)
    x = x / x.square().mean(-1, keepdim=True).sqrt() * rows  # that root mean square, exactly
    x, gain, bias = grid(x), grid(1 + normal(size, spread=0.5)), grid(normal(size))
    inputs = [x, gain, bias] if centered else [x, gain]

    def operation(machine: Any, x: Any, gain: Any, bias: Any = None) -> Any:
        return norm(machine, x, gain, bias, eps, centered)

    outcome = perform(world, operation, inputs)
    outcome.check_cost()
    if centered:
        expected = torch.nn.functional.layer_norm(x, (size,), gain, bias, eps)
    else:
        expected = torch.nn.functional.rms_norm(x, (size,), gain, eps)
    torch.testing.assert_close(operation(plain(), *inputs), expected, rtol=1e-9, atol=1e-9)
    bound = bounds.norm(x, gain, eps, centered, TRUNCATION[world]) * UNIT
    error = (outcome.results[0] - expected).abs()
    assert bool((error <= bound).all()), (error / bound).amax(-1)
