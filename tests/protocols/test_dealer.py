"""Suite `dealer`: every operation within its bound, and measured == predicted == dealt.

The same cases as for suite `crypten`, where their values are in the suite's ranges; the operations
that it computes in its own way have bounds of their own, derived beside them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import drawn
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcache.errors import MpcacheError
from mpcache.kernels.prg import Stream
from mpcache.parties.local import run_parties
from mpcache.parties.transport import Wires
from mpcache.protocols.comparison import maximum
from mpcache.protocols.correlation import Lookup, Truncated
from mpcache.protocols.counting import hollow
from mpcache.protocols.dealer import DealerSuite
from mpcache.protocols.dealer_roles import CountingDealer, Dealing, OnlineDealer
from mpcache.protocols.digits import Clamped, Exponents, Positive, Signs, Zeros
from mpcache.protocols.ledger import Ledger, Prediction, Scopes
from mpcache.protocols.norm import norm
from mpcache.protocols.operation import PlainMachine, SecureMachine
from mpcache.protocols.setting import Setting
from mpcache.protocols.softmax import attention, weight_frac

from .harness import UNIT, Tape, counts, listed
from .test_operations import CASES, Case, normal, operate

SETTING = Setting(suite="dealer")
SETTINGS = {"lan": SETTING, "wan": Setting(suite="dealer", profile="wan")}
# |x| < 2^15 is what a comparison of this suite reads; these cases go beyond on purpose.
BEYOND = {"negative-edges", "relu"}


@dataclass
class Done:
    values: list[torch.Tensor]
    ledgers: list[Ledger]
    predicted: list[Ledger]
    dealt_bytes: int

    def check_cost(self) -> None:
        for ledger, prediction in zip(self.ledgers, self.predicted, strict=True):
            assert counts(ledger) == counts(prediction)
            assert ledger.transcript.hexdigest() == prediction.transcript.hexdigest()
        used = sum(ledger.total().dealt_bytes for ledger in self.ledgers)
        assert used == self.dealt_bytes


def deal_and_run(
    program: Callable[[SecureMachine, int | None], list[Any]], setting: Setting = SETTING
) -> Done:
    """Deal for `program`, predict it, and run it; it gets the machine and its rank, or None."""
    seeds = drawn.dealers_seeds()
    tape = Tape()
    dealing = Dealing(setting, (Stream(seeds[0]), Stream(seeds[1])), tape.items.append)
    program(SecureMachine(dealing, Scopes()), None)
    prediction = Prediction(2)
    program(SecureMachine(CountingDealer(setting, prediction), prediction), None)

    def run(wires: Wires) -> tuple[list[Any], Ledger]:
        corrections = tape if wires.rank == 1 else None
        suite = OnlineDealer(setting, wires, wires.ledger, Stream(seeds[wires.rank]), corrections)
        return program(SecureMachine(suite, wires.ledger), wires.rank), wires.ledger

    done = run_parties(2, run)
    assert tape.at == len(tape.items), "corrections were left over"
    return Done(done[1][0], [ledger for _, ledger in done], prediction.ranks, dealing.dealt_bytes)


def perform(
    operation: Callable[..., Any],
    inputs: Sequence[torch.Tensor],
    fracs: Sequence[int] | None = None,
    setting: Setting = SETTING,
    **options: Any,
) -> Done:
    fracs = fracs or [setting.frac] * len(inputs)

    def program(machine: SecureMachine, rank: int | None) -> list[Any]:
        shares = [
            hollow(x.shape, frac)
            if rank is None
            else machine.suite.share(
                machine.encode(x, frac) if rank == 0 else None, tuple(x.shape), frac, 0
            )
            for x, frac in zip(inputs, fracs, strict=True)
        ]
        values = listed(operation(machine, *shares, **options))
        return [machine.open(value, "client", "test") for value in values]

    return deal_and_run(program, setting)


def spline_bound(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """a + b x + c x^2 with coefficients below 4: half a unit each, x^2 cut, the sum cut; and what
    a quadratic leaves of the function in a segment and half a segment beyond: 8 units at most."""
    return 0.5 * (1 + x.abs() + x**2) + 4 + 1 + 8


def own_bound(case: Case, inputs: Sequence[torch.Tensor]) -> torch.Tensor | float | None:
    """Bounds in units of what this suite computes in its own way; None elsewhere."""
    kind = case.name.split("-")[0]
    x = inputs[0]
    if kind == "decay":
        # 14 bits of u: one step of 2^-14, four units, times e^x; two factors, and a cut
        return 4 * torch.exp(x) + 2 + 1 + math.exp(-12) / UNIT
    if kind == "logistic":
        return 3.0 * 7 + 1  # each power is cut at most three times; coefficients sum below 7
    if kind == "reciprocal":
        return spline_bound(torch.ones_like(x) * 2, x) + 2
    if case.name == "inverse-sqrt":
        return spline_bound(x, x) + 2
    if kind == "softmax":
        # e within 8 units, its sum within 8 a term, 1/sum within a spline's bound
        return 8.0 * 2 + 24 + 8 * x.shape[-1] / 4
    if kind == "attention":
        return 200.0
    if kind == "gelu":
        # two cells of 1/13 leave 0.96 of h, whose third derivative is 0.76 at most; the square's
        # coefficient is off by 0.05 of a unit at the cells' ends; h is trimmed
        return 0.96 + 0.1 + 1 + 2.0**-6
    if kind == "silu":
        return (1 + x.abs()) * 40
    return None


@pytest.mark.parametrize("profile", SETTINGS)
@pytest.mark.parametrize(
    "case", [case for case in CASES if case.name not in BEYOND], ids=lambda case: case.name
)
def test_within_the_bound_at_the_cost(case: Case, profile: str) -> None:
    fracs = case.fracs or (SETTING.frac,) * len(case.inputs)
    inputs = [
        torch.round(x.double() * 2.0**frac) / 2.0**frac
        for x, frac in zip(case.inputs, fracs, strict=True)
    ]
    done = perform(operate(case), inputs, fracs, SETTINGS[profile])
    done.check_cost()
    expected = listed(case.reference(*inputs))
    own = own_bound(case, inputs)
    for value, wanted in zip(done.values, expected, strict=True):
        bound = own if own is not None else case.bound(*inputs, cut=1.0)
        error = (value - wanted).abs() / UNIT
        assert bool((error <= torch.as_tensor(bound)).all()), float(error.max())


def test_truncation_never_blows_up() -> None:
    """A million random ring elements below 2^62: each within one unit."""
    x = torch.randint(-(2**62) + 1, 2**62, (1_000_000,))
    x[:4] = torch.tensor([2**62 - 1, -(2**62) + 1, 0, -1])

    def program(machine: SecureMachine, rank: int | None) -> list[Any]:
        shape = tuple(x.shape)
        secret = machine.suite.share(x if rank == 0 else None, shape, 32, 0)
        cut = machine.suite.truncate(secret, 16)
        return [machine.suite.open(cut, 1, "test")]

    (opened,) = deal_and_run(program).values
    difference = opened - (x >> 16)
    assert difference.min() >= 0 and difference.max() <= 1


@pytest.mark.slow
@pytest.mark.parametrize("part", range(25))
def test_truncation_a_hundred_million_times(part: int) -> None:
    """25 times 4 million values of 24 integer bits at 32 fractional bits."""
    x = torch.randint(-(2**56), 2**56, (4_000_000,))

    def program(machine: SecureMachine, rank: int | None) -> list[Any]:
        secret = machine.suite.share(x if rank == 0 else None, tuple(x.shape), 32, 0)
        return [machine.suite.open(machine.suite.truncate(secret, 16), 1, "test")]

    (opened,) = deal_and_run(program).values
    difference = opened - (x >> 16)
    assert difference.min() >= 0 and difference.max() <= 1


@settings(max_examples=15, deadline=None)
@given(
    bits=st.integers(2, 52),
    values=st.lists(st.integers(-(2**51), 2**51 - 1), min_size=1, max_size=40),
)
def test_signs_on_any_number_of_bits(bits: int, values: list[int]) -> None:
    """Exact on `bits` bits, for every cut into digits and nodes, the ends included."""
    half = 1 << (bits - 1)
    x = torch.tensor([*((v + half) % (2 * half) - half for v in values), -half, half - 1, 0, -1])

    def program(machine: SecureMachine, rank: int | None) -> list[Any]:
        secret = machine.suite.share(x if rank == 0 else None, tuple(x.shape), 0, 0)
        return [machine.suite.open(machine.suite.negative(secret, bits - 1), 1, "test")]

    done = deal_and_run(program)
    done.check_cost()
    assert torch.equal(done.values[0], (x < 0).long())


def test_declared_costs_of_the_primitives() -> None:
    """Literals, so that a changed formula turns red: corrections' bytes of one element on a lan.

    A word for a digit of w bits takes 2^w bits, one for a node's output as many as its inputs say.

    * Truncated: the high part on 64 bits, and the top bit times 2^(64 - 16) on the 16 bits where
      that is not 0; 36 bits are packed into 5 bytes. With results modulo 2^48 there is no top
      bit; a ring of 48 bits leaves 32 for it.
    * 31 bits below a sign: digits of 6, 5, 5, 5, 5, 5; less_0, less_1, equal_1, less_2, equal_2
      join in a node of 5 inputs, the others in one of 6 with two outputs; 3 bits read 8 entries.
    * 18 bits: digits of 6, 6, 6, whose 5 bits read 32 entries of 2 bytes. 12: of 6, 6.
    * Positive on 23 bits: digits of 5, 5, 5, 4, 4; nodes of 5 and of 4 inputs; 3 results.
    * Exponents: 6, 6, 6 below and 4, 4, 4 above, of which the top one has two more words; nodes
      of 5 (less), 3, 3 (equal, twice), 5 (sign), then of 4 with two outputs; 4 entries of 8 + 1.
    * Zeros on 8 bits: digits of 4, 4; 4 entries of a byte.
    * Clamped to 6 bits of 15: digits of 3; nodes of 3 (less), 3, 3, 5, then 4 with two outputs;
      twice 4 entries of 6 bits.
    """
    shape = (1,)
    assert Truncated(shape, 16).dealt_bytes == 8 + 2
    assert Truncated(shape, 36).dealt_bytes == 8 + 5
    assert Truncated(shape, 16, 64, 48).dealt_bytes == 6
    assert Truncated(shape, 16, 48).dealt_bytes == 8 + 4
    assert Signs(shape, 32, "lan").dealt_bytes == (8 + 5 * 4) + (4 + 2 * 8) + 8 * 8
    assert Signs(shape, 19, "lan", width=16).dealt_bytes == 3 * 8 + 32 * 2
    assert Signs(shape, 13, "lan").dealt_bytes == 2 * 8 + 8 * 8
    assert Positive(shape, 24, "lan").dealt_bytes == (3 * 4 + 2 * 2) + (4 + 2 * 2) + 8 * 3 * 8
    exponents = Exponents(shape, 18, 12, 14, 20, 43, "lan")
    words, nodes = 3 * 8 + (3 + 2) * 2, (4 + 1 + 1 + 4) + 2 * 2
    assert exponents.dealt_bytes == words + nodes + 4 * (8 + 1)
    assert Zeros(shape, 8, "lan", 8).dealt_bytes == 2 * 2 + 4
    clamped = Clamped(shape, 6, 9, "lan", 6)
    assert clamped.dealt_bytes == (5 + 2) + (1 + 1 + 1 + 4) + 2 * 2 + 2 * 4 * 6 // 8
    assert Lookup(shape, 7, torch.zeros(3, 128, dtype=torch.int64)).dealt_bytes == 3 * 128 * 8


@settings(max_examples=15, deadline=None)
@given(
    extra=st.integers(0, 20),
    values=st.lists(st.integers(-(2**29), 2**29 - 1), min_size=1, max_size=40),
)
def test_positive_cuts_and_clamps_in_one(extra: int, values: list[int]) -> None:
    """max(x, 0) of values with more fractional bits than the setting's, to one unit."""
    x = torch.tensor([*values, 0, -1, 2**29 - 1, -(2**29)])

    def program(machine: SecureMachine, rank: int | None) -> list[Any]:
        ring = x << extra if rank == 0 else None
        secret = machine.suite.share(ring, tuple(x.shape), 16 + extra, 0)
        assert isinstance(machine.suite, DealerSuite)
        return [machine.suite.open(machine.suite.positive(secret, 13)[0], 1, "test")]

    done = deal_and_run(program)
    done.check_cost()
    assert bool((done.values[0] - x.clamp(min=0)).abs().le(1 if extra else 0).all())


@pytest.mark.parametrize("width", [64, 48])
def test_exp_saturates_beyond_its_window(width: int) -> None:
    """0 below -15, and nearly e from 1 on, up to what a ring of 48 bits holds beside 32 of them."""
    below = torch.tensor([-(2.0**15), -30000, -4096, -500, -16, -15.1], dtype=torch.float64)
    inside = torch.tensor([-15, -14.99, -1, 0, 0.5, 0.99], dtype=torch.float64)
    above = torch.tensor([1.01, 2, 20, 480, 4096, 30000, 2.0**15 - 32], dtype=torch.float64)
    x = torch.cat([below, inside, above])

    def exp(machine: SecureMachine, x: Any) -> Any:
        assert isinstance(machine.suite, DealerSuite)
        return machine.settle(machine.suite.exp(x.modulo(width)))

    done = perform(exp, [x], [32])
    done.check_cost()
    value = done.values[0]
    assert bool((value[: len(below)] <= UNIT).all() and (value[: len(below)] >= 0).all())
    wanted = torch.exp(inside)
    got = value[len(below) : -len(above)]
    assert bool(((got - wanted).abs() <= (4 * wanted + 3) * UNIT).all())
    # e to 4 fractional bits
    assert bool(((value[-len(above) :] - 43 / 16).abs() <= UNIT).all())
    assert abs(43 / 16 - math.e) < 2.0**-5


def test_maximum_by_groups_equals_the_tree() -> None:
    x = normal(3, 47)
    done = perform(lambda machine, x: maximum(machine, x, 1), [x])
    assert bool(((done.values[0] - x.amax(1, keepdim=True)).abs() <= UNIT / 2).all())


def test_a_weight_stays_with_its_owner() -> None:
    """Party 1 never holds W: what reaches it is W - B, and products are right all the same."""
    weight = torch.randint(-(2**20), 2**20, (63, 5))
    x = normal(3, 63)
    held: dict[int, torch.Tensor] = {}

    def program(machine: SecureMachine, rank: int | None) -> list[Any]:
        suite = machine.suite
        matrix = suite.matrix(weight if rank == 0 else None, (63, 5), 16)
        if rank is not None:
            held[rank] = matrix.share
        ring = machine.encode(x) if rank == 1 else None
        return [suite.open(suite.matmul(suite.share(ring, (3, 63), 16, 1), matrix), 1, "test")]

    done = deal_and_run(program)
    done.check_cost()
    assert torch.equal(done.values[0], torch.round(x * 2**16).long() @ weight)
    assert torch.equal(held[0].long(), weight)
    assert not (held[1] == weight).any()
    assert done.ledgers[0].total().rounds == 3  # the mask, the activations, the opening


def test_corrections_are_used_once_and_none_is_missing() -> None:
    """A party that asks for more than was dealt is refused."""
    tape = Tape()
    seeds = drawn.dealers_seeds()
    dealing = Dealing(SETTING, (Stream(seeds[0]), Stream(seeds[1])), tape.items.append)
    dealing.square(hollow((3,), 16))

    def run(wires: Wires) -> None:
        suite = OnlineDealer(
            SETTING, wires, wires.ledger, Stream(seeds[wires.rank]), tape if wires.rank else None
        )
        x = suite.share(torch.ones(3, dtype=torch.int64), (3,), 16, wires.rank)
        suite.square(suite.square(x))

    with pytest.raises(MpcacheError, match="nothing is left"):
        run_parties(2, run)


@pytest.mark.parametrize("size", [1, 8, 63, 576, 2048])
@pytest.mark.parametrize("centered", [False, True], ids=["rms", "layer"])
@pytest.mark.parametrize("gained", [False, True], ids=["folded", "gain"])
def test_norm_of_all_rows(size: int, centered: bool, gained: bool) -> None:
    """Root mean squares from 2^-7 to where the sum of squares reaches 2^30, and a row of zeros."""
    eps = 1e-5
    largest = 0.99 * 2**15 / math.sqrt(size)
    rows = torch.tensor([0.0, 2.0**-7, 0.3, 1.0, 20.0, largest], dtype=torch.float64).unsqueeze(-1)
    x = normal(len(rows), size)
    x = x / x.square().mean(-1, keepdim=True).sqrt() * rows
    x = torch.round(x * 2**16) / 2**16
    gain = torch.round((1 + normal(size, spread=0.5)) * 2**16) / 2**16
    inputs = [x, gain] if gained else [x]

    def operation(machine: SecureMachine, x: Any, gain: Any = None) -> Any:
        return norm(machine, x, gain, None, eps, centered)

    done = perform(operation, inputs)
    done.check_cost()
    gain = gain if gained else torch.ones(size)
    y = operation(PlainMachine(SETTING), x)
    # relative: x of the line is cut and a line leaves 2^-17 each (2^-16 of a root of 1/2), and the
    # root times the factor, 1 / rms, is cut at 2^-26; the sum of squares of a centered row is off
    # with its mean
    variance = x.var(-1, correction=0, keepdim=True) if centered else None
    mean_square = x.square().mean(-1, keepdim=True) if variance is None else variance
    inverse = torch.rsqrt(mean_square + eps)
    relative = 2.0**-15 + 2.0**-26 / inverse
    moved = inverse * UNIT * (1 + y.abs()) * 2 if centered else torch.zeros_like(inverse)
    bound = gain.abs() * (y.abs() * relative + UNIT * 1.01 + moved) + UNIT
    error = (done.values[0] - y * gain).abs()
    assert bool((error <= bound).all()), (error / bound).amax(-1)


@pytest.mark.parametrize("tokens", [1, 127, 128, 150, 255, 256, 300])
def test_attention_over_any_number_of_tokens(tokens: int) -> None:
    """The ceiling counts tokens on few bits: as many as the count needs, whatever it is.

    Bound: weights are off by a unit, up or down, independently, where the greatest may be e^-3: so
    the context by six deviations of their sum, over the weights' total; and by 2^-13 of the values'
    weighted sizes, since weights and total are off by 2^-14 of themselves; and two cuts.
    """
    generator = torch.Generator().manual_seed(tokens)
    shapes = ((2, 2, 1, 8), (2, tokens, 8), (2, tokens, 8))
    q, k, v = (torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in shapes)

    def program(machine: Any, q: Any, k: Any, v: Any) -> Any:
        return attention(machine, 3 * q, k, v, None, 0)[0]

    want = program(PlainMachine(Setting()), q, k, v)

    def shared(machine: Any, q: Any, k: Any, v: Any) -> Any:
        return attention(machine, q.times(3), k, v, None, 0)[0]

    done = perform(shared, (q, k, v))
    done.check_cost()
    scores = 3 * q @ k.unsqueeze(1).transpose(2, 3) / 8**0.5
    weights, values = torch.softmax(scores, -1), v.unsqueeze(1)
    total = torch.exp(scores - scores.amax(-1, keepdim=True) - 3).sum(-1, keepdim=True)
    spread = (values.unsqueeze(2) - want.unsqueeze(-2)).square().sum(-2).sqrt()
    unit = 2.0 ** -weight_frac(tokens)
    bound = 6 * unit / total * spread + 2.0**-13 * (weights @ values.abs()) + 2 * UNIT
    assert bool(((done.values[0] - want).abs() <= bound).all())
