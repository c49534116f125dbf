"""Suite `dealer`, at the ends of what its rings hold: right just inside, and wrong just beyond.

A range that an operation states (`Operation.reaches`) is so the one that the parties keep. What
has no end here saturates for all that its ring holds: see `test_saturation`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pytest
import torch

from mpcache.eviction import registry
from mpcache.protocols import softmax
from mpcache.protocols.activation import gated, gelu, relu, silu
from mpcache.protocols.arithmetic import linear, matmul, multiply, product, scale, settle
from mpcache.protocols.comparison import extrema, maximum, negative
from mpcache.protocols.functions import decay, inverse, reciprocal
from mpcache.protocols.greatest import argmax
from mpcache.protocols.norm import norm
from mpcache.protocols.operation import Operation, PlainMachine
from mpcache.protocols.reach import Reach
from mpcache.protocols.rotary import rotary
from mpcache.protocols.selection import best, gathered, rank
from mpcache.protocols.softmax import attend

from .harness import UNIT, grid
from .test_dealer import SETTING, SETTINGS, perform

ALMOST, MANY = 1 - 2.0**-7, 64


def row(*values: float) -> torch.Tensor:
    return torch.tensor([values], dtype=torch.float64)


def many(value: float) -> torch.Tensor:
    return row(*[value] * MANY)


@dataclass(frozen=True)
class Limit:
    """An operation on values that bring the quantity `what` to `size`, in units of its end.

    Attributes:
        inputs: the operands, for the quantity at a given magnitude.
        error: what a right result is off by at most, over 1 and the greatest of the results.
        widths, fracs: of the shares: those that the operand comes with in a model.
        beyond: how far beyond its end the ring surely wraps. A comparison just there; a truncation
            of -2 times its end goes wrong with odds 1/4, so of `MANY` some do but for 1 in 10^8.
    """

    operation: Any
    what: str
    inputs: Callable[[float], Sequence[torch.Tensor]]
    error: float = 2.0**-10
    widths: tuple[int, ...] = ()
    fracs: tuple[int, ...] = ()
    options: tuple[tuple[str, Any], ...] = ()
    beyond: float = 1 + 2.0**-4

    def results(self, size: float) -> tuple[torch.Tensor, torch.Tensor, float]:
        """What the parties make of it, what is right, and how large the quantity is."""
        inputs, options = self.inputs(size), dict(self.options)

        def program(machine: Any, *shares: Any) -> Any:
            widths = self.widths or (64,) * len(shares)
            shares = tuple(s.modulo(w) for s, w in zip(shares, widths, strict=True))
            return _first(self.operation(machine, *shares, **options))

        got = perform(program, inputs, list(self.fracs) or None).values[0]
        plain = self.operation.plain(PlainMachine(SETTING), *inputs, **options)
        reached = self.operation.reaches(plain, *inputs, **options)
        quantity = next(values for reach, values in reached if reach.what == self.what)
        return got, _first(plain).double(), float(quantity.abs().max())

    def reach(self) -> Reach:
        inputs, options = self.inputs(1.0), dict(self.options)
        plain = self.operation.plain(PlainMachine(SETTING), *inputs, **options)
        reached = self.operation.reaches(plain, *inputs, **options)
        return next(reach for reach, _ in reached if reach.what == self.what)


def _first(result: Any) -> Any:
    if hasattr(result, "context"):
        return result.context
    return result[-1] if isinstance(result, tuple | list) else result


def _normed(size: float) -> list[torch.Tensor]:
    return [grid(row(*[-math.sqrt(size / 4), math.sqrt(size / 4)] * 2))]


NORM = (("gain", None), ("bias", None), ("eps", 1e-5))
NORMED = "sum of squares"
LIMITS = {
    "negative": Limit(negative, "argument", lambda s: [row(s, 1)]),
    "negative-told": Limit(
        negative, "argument", lambda s: [row(s, 1)], options=(("magnitude", 9), ("keep", 12))
    ),
    "relu": Limit(relu, "argument", lambda s: [row(s, -1)], widths=(52,), fracs=(32,)),
    "silu": Limit(silu, "argument", lambda s: [row(-s, s)]),
    "gelu": Limit(gelu, "argument", lambda s: [row(s, -s)], widths=(52,), fracs=(32,)),
    "gated-gate": Limit(gated, "gate", lambda s: [row(s, 1), row(0.5, 1)]),
    "gated-product": Limit(
        gated, "gate times factor", lambda s: [row(256.0), many(-s / 256)], beyond=2.0
    ),
    "linear": Limit(linear, "result", lambda s: [row(512.0), many(-s / 512)], beyond=2.0),
    "linear-wide": Limit(
        linear,
        "wide result",
        lambda s: [row(2.0**15), many(-s / 2**15)],
        options=(("wide", True),),
        beyond=2.0,
    ),
    "multiply": Limit(multiply, "result", lambda s: [row(2.0**15), many(-s / 2**15)], beyond=2.0),
    "matmul": Limit(matmul, "result", lambda s: [row(2.0**15), many(-s / 2**15)], beyond=2.0),
    "product": Limit(product, "result", lambda s: [row(256.0), row(s / 256)], widths=(48, 48)),
    "scale": Limit(
        scale, "result", lambda s: [many(-8 * s)], options=(("factor", 0.1251),), beyond=2.0
    ),
    "settle": Limit(settle, "result", lambda s: [many(-s)], fracs=(32,), beyond=1.9),
    "rotary": Limit(
        rotary,
        "result",
        lambda s: [row(*[-s] * MANY, *[0] * MANY)],
        options=(("cos", torch.ones(1, MANY)), ("sin", torch.zeros(1, MANY))),
    ),
    "norm": Limit(norm, NORMED, _normed, options=(*NORM, ("centered", False))),
    "layer-norm": Limit(
        norm, NORMED, lambda s: [_normed(s)[0] + 1000], options=(*NORM, ("centered", True))
    ),
    "maximum": Limit(maximum, "difference", lambda s: [row(-s / 2, s / 2)], options=(("dim", 1),)),
    "extrema": Limit(extrema, "difference", lambda s: [row(-s / 2, s / 2)], options=(("dim", 1),)),
    "argmax": Limit(argmax, "difference", lambda s: [row(3, -s / 2, s / 2, 1)]),
    "rank": Limit(
        rank, "difference", lambda s: [row(s, 0, 1)], options=(("magnitude", 12), ("keep", 8))
    ),
    "best": Limit(best, "difference", lambda s: [row(0, s)], options=(("k", 1), ("magnitude", 12))),
    "gathered": Limit(gathered, "score", lambda s: [row(0, 1), row(1, s).t()], fracs=(0, 16)),
    "softmax-score": Limit(
        attend, "score", lambda s: [row(-s, s).unsqueeze(0), row(1, 2).t().unsqueeze(0)]
    ),
    "softmax-values": Limit(
        attend,
        "weighted values",
        lambda s: [row(*[0] * 8).unsqueeze(0), many(-s / 8 / math.e).expand(1, 8, MANY)],
        widths=(48, 48),
        fracs=(32, 16),
        beyond=2 * math.exp(4),  # weights may be e^4 times smaller
    ),
    "softmax-context": Limit(
        attend,
        "context",
        lambda s: [row(0.0).unsqueeze(0), many(-s).unsqueeze(0)],
        widths=(48, 48),
        fracs=(32, 16),
        beyond=2.0,
    ),
}


@pytest.fixture(autouse=True)
def many_scores(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores reach less far where they are many, and a maximum takes the place of a ceiling."""
    if "softmax-score" in request.node.name:
        monkeypatch.setattr(softmax, "CEILED", 0)


@pytest.mark.parametrize("name", LIMITS)
def test_inside_of_its_range_an_operation_is_right(name: str) -> None:
    limit = LIMITS[name]
    reach = limit.reach()
    got, want, size = limit.results(2.0**reach.bits * ALMOST)
    assert 2.0 ** (reach.bits - 1) < size < 2.0**reach.bits
    assert bool(((got - want).abs() <= limit.error * (1 + want.abs().max())).all()), (got, want)


@pytest.mark.parametrize("name", LIMITS)
def test_beyond_it_the_ring_wraps(name: str) -> None:
    """There nothing can saturate: that a model does not go there is what calibration tells."""
    limit = LIMITS[name]
    wraps = limit.reach().wraps
    assert wraps is not None
    got, want, size = limit.results(2.0**wraps * limit.beyond)
    assert size > 2.0**wraps
    assert bool(((got - want).abs() > 0.05 * want.abs().max().clamp(min=1)).any()), (got, want)


@pytest.mark.parametrize("profile", SETTINGS)
def test_a_layer_norm_of_rows_that_are_too_large(profile: str) -> None:
    """Between 2^30 and 2^31 a sum of squares counts as 2^31: rows come out up to 0.3 too small."""
    sums = torch.tensor([2.0**30, 1.5 * 2**30, 1.99 * 2**30], dtype=torch.float64)
    x = torch.cat([_normed(float(total))[0] for total in sums]) - 700
    mean = x.mean(-1, keepdim=True)
    want = (x - mean) * math.sqrt(4 / 2.0**31)

    def normed(machine: Any, x: Any) -> Any:
        return norm(machine, x, None, None, 1e-5, True)

    done = perform(normed, [x], setting=SETTINGS[profile])
    done.check_cost()
    assert bool(((done.values[0] - want).abs() <= want.abs() * 2.0**-12 + 4 * UNIT).all())


def test_functions_of_all_that_their_rings_hold() -> None:
    ends = torch.tensor([-(2.0**14) + 1, 2.0**14 - 1], dtype=torch.float64)
    got = perform(partial(reciprocal, upper=63.0), [ends]).values[0]
    assert bool(((got - row(1, 1 / 128)[0]).abs() <= 16 * UNIT).all())
    for width, end in ((64, 2.0**46), (48, 2.0**30)):
        x = torch.tensor([-end, end], dtype=torch.float64)
        got = perform(lambda m, x: inverse(m, x.modulo(width), -6, 5, 26), [x]).values[0]  # noqa: B023
        want = torch.tensor([2.0**6 / 0.75, 2.0**-5 / 1.5], dtype=torch.float64)
        assert bool(((got - want).abs() <= 3 * want * 2.0**-15 + 2.0**-25).all())
    x = torch.tensor([-(2.0**15), 2.0**15 - 32], dtype=torch.float64)
    got = perform(lambda m, x: decay(m, x.modulo(48)), [x], [32]).values[0]
    assert float(got[0]) == 0.0 and abs(float(got[1]) - 43 / 16) <= 2 * UNIT


def test_the_greatest_is_found_wherever_it_stands() -> None:
    """A winner that nobody is comes out as the first: the greatest must stand elsewhere too."""
    x = torch.linspace(-2047, 2047, 23, dtype=torch.float64).repeat(23, 1)
    x = torch.stack([line.roll(shift) for shift, line in enumerate(x)])
    assert torch.equal(perform(argmax, [x]).values[0], x.argmax(-1).double())


# Why there is neither a limit above nor a test of saturation: nothing here is read beyond its ring.
ELSEWHERE = {
    "decay": "test_saturation",
    "reciprocal": "test_saturation",
    "inverse": "test_saturation",
    "inverse-sqrt": "test_saturation",
    "stairs": "test_saturation",
    "places": "test_places",
    "top-k": "test_saturation",
    "softmax": "test_saturation",
    "exp": "suite crypten alone",
    "logistic": "of decay's results alone",
    "settled": "settle, side by side",
    "pick": "one-hot products are exact",
    "standing": "one-hot rows of places",
    "compact": "one-hot products and shuffles are exact",
    "embed": "rows are taken, not computed",
    "read": "one-hot products are exact",
    "sample": "argmax with noise",
    "below-mean": "negative, of at most 2^5 n",
    "worth": "sums of probabilities",
}


def test_every_operation_has_its_limit_or_a_reason() -> None:
    assert registry.configured, "all policies are loaded, and with them their operations"
    names, left = set(), list(Operation.__subclasses__())
    while left:
        kind = left.pop()
        left += kind.__subclasses__()
        if kind.__module__.startswith(("mpcache.protocols.", "mpcache.eviction.")):
            names |= {kind.name} if hasattr(kind, "name") else set()
    tested = {limit.operation.name for limit in LIMITS.values()}
    assert names - {"clustered-step"} == tested | set(ELSEWHERE)
