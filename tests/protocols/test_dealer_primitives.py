"""What the suite dealer has beside a suite's usual primitives: exact, at the declared cost."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcache.errors import MpcacheError
from mpcache.protocols.correlation import Monomials, OneHot, Steps, Triple
from mpcache.protocols.dealer import DealerSuite
from mpcache.protocols.operation import SecureMachine
from mpcache.protocols.secret import Kept, cat
from mpcache.protocols.selection import best

from .test_dealer import deal_and_run, normal, perform

WORD = 2**64


def random_ring(*shape: int) -> torch.Tensor:
    return torch.randint(-(2**63), 2**63 - 1, shape)


def suite_of(machine: SecureMachine) -> DealerSuite:
    assert isinstance(machine.suite, DealerSuite)
    return machine.suite


def run(build: Any, *values: torch.Tensor) -> Any:
    """Ring results of `build(suite, *secrets)`, opened; party 0 holds the values."""

    def program(machine: SecureMachine, rank: int | None) -> list[Any]:
        suite = suite_of(machine)
        given = [suite.share(v if rank == 0 else None, tuple(v.shape), 0, 0) for v in values]
        return [suite.open(value, 1, "test") for value in build(suite, *given)]

    done = deal_and_run(program)
    done.check_cost()
    return done


# --- operands that stay --------------------------------------------------------------------------


def test_products_of_what_was_kept() -> None:
    """On either side, on both, after every linear map of shape; and the bits are exact."""
    x, y = random_ring(2, 3, 7), random_ring(2, 7, 5)

    def build(suite: DealerSuite, x: Any, y: Any) -> list[Any]:
        kx, ky = suite.keep(x), suite.keep(y)
        turned = suite.keep(y.transpose(1, 2).contiguous()).transpose(1, 2)
        longer = cat([ky, ky], 2)
        assert isinstance(longer, Kept) and isinstance(turned, Kept)
        return [
            suite.matmul(kx, y),
            suite.matmul(x, turned),
            suite.matmul(kx, ky),
            suite.multiply(kx, kx),
            suite.matmul(x, longer),
            suite.matmul(x[:, :1], ky[..., 1:3].times(3)),
            suite.matmul(x, ky.sum(2, keepdim=True)),
            kx,
            kx + x,
            suite.keep(kx),
        ]

    got = run(build, x, y).values
    want = [
        x @ y, x @ y, x @ y, x * x, x @ torch.cat([y, y], 2), x[:, :1] @ (3 * y[..., 1:3]),
        x @ y.sum(2, keepdim=True), x, 2 * x, x,
    ]  # fmt: skip
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)


def test_a_product_with_what_was_kept_opens_the_other_operand_alone() -> None:
    x, y = random_ring(1, 4), random_ring(4, 1000)
    kept = run(lambda suite, x, y: [suite.matmul(x, suite.keep(y))], x, y).ledgers[0].total()
    both = run(lambda suite, x, y: [suite.matmul(x, y)], x, y).ledgers[0].total()
    assert kept.rounds == both.rounds + 1
    twice = run(
        lambda suite, x, y: (lambda k: [suite.matmul(x, k), suite.matmul(x, k)])(suite.keep(y)),
        x,
        y,
    )
    opened = 8 * 1000  # what the test opens, at party 1
    more = twice.ledgers[0].total().sent_bytes - kept.sent_bytes
    assert 8 * 4 < more < opened + 8 * 4 + 200
    assert Triple(torch.matmul, (1, 4), (4, 9), (1, 9), "y").dealt_bytes == 8 * 9


def test_products_in_a_smaller_ring() -> None:
    x, y = random_ring(3, 8), random_ring(8, 5)

    def build(suite: DealerSuite, x: Any, y: Any) -> list[Any]:
        return [suite.matmul(suite.keep(x), y, 32), suite.matmul(x, y, 32)]

    done = run(build, x, y)
    low = (1 << 32) - 1
    for got in done.values:
        assert torch.equal(got & low, (x @ y) & low)


def test_coarse_drops_bits_at_no_cost() -> None:
    x = torch.randint(-(2**40), 2**40, (500,))
    done = run(lambda suite, x: [suite.coarse(x.halved(30), 16)], x)
    moved = (done.values[0] - (x >> 14)) & ((1 << 50) - 1)
    assert set(moved.tolist()) <= {0, (1 << 50) - 1}
    assert done.ledgers[0].total().rounds == 1  # the opening


# --- several operands in a round -----------------------------------------------------------------


def test_combining_is_exact_with_repeated_and_kept_operands_and_factors() -> None:
    """Bit for bit in the ring: sums of products of one to four operands, broadcast."""
    x, y, z = random_ring(2, 5), random_ring(1, 5), random_ring(2, 1)
    monomials = [(0,), (0, 1), (1, 1), (2, 0, 1), (1, 1, 1), (0, 1, 1, 2), (2, 2)]
    factors = [(-3, 0), (1, 0), (2**40 + 1, 0), (7, 0), (-1, 0), (5, 0), (2**62, 0)]

    def build(suite: DealerSuite, x: Any, y: Any, z: Any) -> list[Any]:
        kept = suite.keep(y)
        return [
            suite.play(suite.combining(list(operands), monomials, factors))
            for operands in ((x, y, z), (x, kept, z), (x, kept, suite.keep(z)))
        ] + [suite.play(suite.combining([kept, kept], [(0, 1), (0, 0)]))]

    done = run(build, x, y, z)
    by = (x, y, z)
    want = sum(
        factor * math.prod((by[i] for i in monomial), start=torch.ones_like(x))
        for monomial, (factor, _) in zip(monomials, factors, strict=True)
    )
    for got in done.values[:3]:
        assert torch.equal(got, want)
    assert torch.equal(done.values[3], 2 * y * y)
    # y is kept in one round and z in another; of kept operands nothing is opened
    assert done.ledgers[0].total().rounds == 3 + 2 + 4
    deals = Monomials([(1,)] * 3, [(0, 1), (0, 1, 2), (1, 1)], {})
    # products of masks: 0 1, 0 2, 1 1, 1 2 and 0 1 2
    assert deals.dealt_bytes == 5 * 8


def test_combining_counts_in_the_narrowest_operand_s_ring_and_wants_one_scale() -> None:
    x, y = random_ring(7), random_ring(7)

    def build(suite: DealerSuite, x: Any, y: Any) -> list[Any]:
        return [suite.play(suite.combining([x.modulo(44), y], [(0, 0, 1), (1,)]))]

    done = run(build, x, y)
    assert torch.equal(low_bits(done.values[0], 44), low_bits(x * x * y + y, 44))
    counted = perform(
        lambda machine, x, y: suite_of(machine).play(
            suite_of(machine).combining([x, y], [(0, 1), (0,)], [(1, 0), (3, 5)])
        ),
        [torch.tensor([1.5]), torch.tensor([2.0])],
        [8, 5],
    )
    assert counted.values[0].item() == 1.5 * 2.0 + 1.5 * 3 / 32
    with pytest.raises(MpcacheError, match="fractional bits"):
        run(lambda suite, x: [suite.play(suite.combining([x.halved(3)], [(0, 0), (0,)]))], x)


def low_bits(values: torch.Tensor, bits: int) -> torch.Tensor:
    return values & ((1 << bits) - 1)


# --- truncations ---------------------------------------------------------------------------------


def signed(values: torch.Tensor, bits: int) -> torch.Tensor:
    return values << (64 - bits) >> (64 - bits)


@pytest.mark.parametrize("space", [64, 48])
def test_settling_kept_is_one_round_and_kept(space: int) -> None:
    """A cut in a ring that leaves 48 bits: what it opens serves products, right modulo 2^48."""
    x = torch.randint(-(2 ** (space - 2)) + 1, 2 ** (space - 2), (3, 7))
    y = random_ring(7, 2)
    extra = space - 48 or 16  # 48 bits are left, or fewer

    def build(suite: DealerSuite, x: Any, y: Any) -> list[Any]:
        value = x.modulo(space).halved(suite.setting.frac + extra)
        settled = suite.settle_kept(value)
        assert isinstance(settled, Kept) and settled.frac == suite.setting.frac
        assert suite.settle_kept(settled) is settled
        return [settled, suite.matmul(settled, y)]

    done = run(build, x, y)
    width = 48 if space == 64 else 64
    cut = signed(done.values[0], width)
    assert set((cut - (x >> extra)).flatten().tolist()) <= {0, 1}
    assert torch.equal(low_bits(done.values[1], width - 16), low_bits(cut @ y, width - 16))
    assert torch.equal(low_bits(done.values[1], 48), low_bits(cut @ y, 48))
    # a ring of 32 bits would hold no product: there x is cut first and kept then
    assert done.ledgers[0].total().rounds == (1 if space == 64 else 2) + 1 + 2


@pytest.mark.parametrize(
    ("space", "bits"),
    [(64, 1), (64, 6), (64, 7), (64, 16), (64, 40), (48, 1), (48, 6), (48, 7), (48, 16), (48, 28)],
)
def test_trimming_is_off_by_a_unit_and_2_to_the_minus_6_of_one(space: int, bits: int) -> None:
    x = torch.randint(-(2 ** (space - 3)), 2 ** (space - 3), (20_000,))

    def build(suite: DealerSuite, x: Any) -> list[Any]:
        value = x.modulo(space)
        return [
            suite.play(suite.trimming(value, bits)),
            suite.play(suite.trimming(value, bits, 20)),
        ]

    done = run(build, x)
    error = ((done.values[0] << bits) - x).double() / 2.0**bits
    assert float(error.min()) >= -1 - 2.0**-6 and float(error.max()) <= 1
    assert int(signed(done.values[1] - done.values[0], 20).abs().max()) <= 2
    sent = done.ledgers[0].total().sent_bytes
    assert bits > 6 or sent > 2 * 20_000 * space // 8
    assert bits <= 6 or sent < 2 * 20_000 * (space - bits + 7) // 8 + 20_000 * 11 + 500


# --- zero, and kept inside a range ---------------------------------------------------------------


@pytest.mark.parametrize("bits", [1, 7, 8, 16, 19, 33])
def test_zero_is_told_on_any_number_of_bits(bits: int) -> None:
    """Modulo 2^bits: a multiple of it counts as zero."""
    whole = 1 << bits
    x = torch.tensor([0, 1, -1, whole, -whole, whole + 1, whole // 2, 5 * whole])
    for width in (8, 64):
        done = run(lambda suite, x: [suite.is_zero(x, bits, width)], x)  # noqa: B023
        want = (x % whole == 0).long()
        assert torch.equal(low_bits(done.values[0], 8), want)


@pytest.mark.parametrize(("keep", "bits"), [(0, 1), (-1, 6), (4, 7), (16, 19)])
@pytest.mark.parametrize("width", [64, 48])
def test_clamp_keeps_what_is_far_outside_at_the_ends(keep: int, bits: int, width: int) -> None:
    """Values up to where the bits above the window end: 2^11 windows off, or the ring's end."""
    far = min(2.0**14, 2.0 ** (bits - keep + 11) - 2.0 ** (bits - keep))
    size = 2.0 ** (bits - keep)
    x = torch.cat(
        [
            torch.tensor([-far, -far / 3, -size, -1.0, -(2.0**-20), 0.0, 2.0**-20, 1.0]),
            torch.linspace(0, float(size), 97),
            torch.tensor([size - 2.0**-20, size, size + 1, 2 * size, far / 3, far - 1]),
        ]
    ).double()
    x = torch.round(x * 2**32) / 2**32
    done = perform(
        lambda machine, x: suite_of(machine).clamp(x.modulo(width), keep, bits), [x], [32]
    )
    done.check_cost()
    want = torch.floor(x * 2.0**keep).clamp(0, (1 << bits) - 1)
    got = low_bits(done.values[0].long(), bits).double()
    lower = torch.floor(x * 2.0**keep - 1).clamp(0, (1 << bits) - 1)
    assert bool(((got == want) | (got == lower)).all())
    assert bool((got[x <= -1] == 0).all() and (got[x >= size + 1] == (1 << bits) - 1).all())


# --- steps ---------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(
    values=st.lists(st.integers(-(2**61), 2**61), min_size=1, max_size=9),
    steps=st.lists(st.integers(-(2**61), 2**61), min_size=1, max_size=9),
)
def test_steps_are_exact(values: list[int], steps: list[int]) -> None:
    x = torch.tensor([*values, *(s - 1 for s in steps), *steps, 0])
    thresholds = torch.tensor(sorted(steps))
    done = run(lambda suite, x: list(suite.steps(x, thresholds)), x)
    reached, products = done.values
    want = (x.unsqueeze(-1) >= thresholds).long()
    assert torch.equal(reached, want)
    assert torch.equal(products, want * x.unsqueeze(-1))


def test_steps_take_one_round() -> None:
    x, thresholds = torch.tensor([[5, -5]]), torch.arange(-3, 3)
    done = run(lambda suite, x: [suite.steps(x, thresholds)[0]], x)
    assert done.ledgers[0].total().rounds == 2  # and the opening
    words = 61 * 4 + 1 + 2 * 4
    assert Steps((1,)).dealt_bytes == 8 * (2 + words)


# --- one-hot rows --------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [16, 64])
@pytest.mark.parametrize("bits", [1, 5, 6])
def test_one_hot_rows_are_exact(bits: int, width: int) -> None:
    x = torch.arange(1 << bits).repeat(3)
    (rows,) = run(lambda suite, x: [suite.one_hot(x, 0, bits, width)], x).values
    wanted = torch.nn.functional.one_hot(x, 1 << bits).t()
    assert torch.equal(rows & ((1 << min(width, 62)) - 1), wanted)
    assert OneHot((1,), 6, 16).dealt_bytes == 64 * 2


def test_one_hot_rows_of_cut_values_miss_by_one_cell_at_most() -> None:
    x = torch.arange(0, 1 << 12, 7)
    (rows,) = run(lambda suite, x: [suite.one_hot(x.halved(8), 0, 4)], x).values
    assert bool((rows.sum(0) == 1).all())
    cell = rows.argmax(0)
    assert set(((x >> 8) - cell).remainder(16).tolist()) <= {0, 1}


@pytest.mark.parametrize(("size", "k"), [(1, 1), (2, 1), (9, 4), (33, 7)])
def test_best_rows_in_order_of_rank(size: int, k: int) -> None:
    x = normal(3, size)
    done = perform(lambda machine, x: best(machine, x, k), [x])
    order = x.argsort(-1, descending=True)[:, :k]
    assert torch.equal(done.values[0].long(), torch.nn.functional.one_hot(order, size))
