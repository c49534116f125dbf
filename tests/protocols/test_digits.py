"""Plans for digits: each gives the right bits for any r and y, and the cheapest one is taken."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from mpcache.protocols import plans
from mpcache.protocols.dealer import DealerSuite
from mpcache.protocols.digits import Signs, Zeros
from mpcache.protocols.operation import SecureMachine
from mpcache.protocols.plans import WIDEST, Plan, borrow, equality, window

from .test_dealer import deal_and_run

PROFILES = ("lan", "wan")


def evaluated(plan: Plan, r: torch.Tensor, y: torch.Tensor) -> list[torch.Tensor]:
    """The plan's last bits in the clear, from what its questions and nodes mean."""
    begins = [sum(plan.widths[:digit]) for digit in range(len(plan.widths))]
    bits = []
    for question in plan.questions:
        size = 1 << plan.widths[question.digit]
        source = y - (1 << plan.low) if question.turned else y
        own, v = ((t >> begins[question.digit]) & (size - 1) for t in (r, source))
        bits.append(
            {
                "less": v < own,
                "equal": v == own,
                "half0": (v - own) % size >= size // 2,
                "half1": (v - own - 1) % size >= size // 2,
            }[question.kind]
        )
    for level in plan.levels:
        made = []
        for node in level:
            index = sum(bits[number].long() << place for place, number in enumerate(node.inputs))
            for output in node.outputs:
                table = torch.tensor([output >> v & 1 for v in range(1 << len(node.inputs))])
                made.append(table[index].bool())
        bits += made
    return [bits[number] for number in plan.last]


def borrowed(bits: Sequence[torch.Tensor]) -> torch.Tensor:
    """Less of less_0, less_1, equal_1, ...: the highest group that is not equal decides."""
    found = bits[0]
    for less, equal in zip(bits[1::2], bits[2::2], strict=True):
        found = less | (equal & found)
    return found


def pairs(bits: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """All (r, y) of up to 7 bits; else many, with r near y, and far from it in each bit alone."""
    whole = 1 << bits
    if bits <= 7:
        r, y = torch.cartesian_prod(torch.arange(whole), torch.arange(whole)).unbind(1)
        return r, y
    r = torch.randint(whole, (300,), generator=torch.Generator().manual_seed(seed))
    r = torch.cat([r, torch.tensor([0, 1, whole - 1, whole - 2, whole // 2, whole // 2 - 1])])
    moved = torch.tensor([0, 1, -1, 2, -2, *(s << k for k in range(bits) for s in (1, -1))])
    other = torch.randint(whole, (len(r), 40), generator=torch.Generator().manual_seed(seed + 1))
    y = torch.cat([r.unsqueeze(1) + moved, other], 1) % whole
    return r.unsqueeze(1).expand(y.shape).flatten(), y.flatten()


def check_form(plan: Plan, bits: int) -> None:
    """Digits and nodes of 6 bits at most; a node reads what is there before its level."""
    assert plan.bits == bits and max(plan.widths) <= WIDEST == 6
    known = len(plan.questions)
    assert len(set(plan.questions)) == known
    for level in plan.levels:
        assert level, "a level without nodes would be a round for nothing"
        for node in level:
            assert 1 <= len(node.inputs) <= 6
            assert len(set(node.inputs)) == len(node.inputs) and max(node.inputs) < known
            assert all(0 <= output < 1 << (1 << len(node.inputs)) for output in node.outputs)
        known += sum(len(node.outputs) for node in level)
    assert 1 <= len(plan.last) <= 6 and max(plan.last) < known
    assert plan.rounds == len(plan.levels) + 1


@pytest.mark.parametrize("last", [1, 2, 3])
@pytest.mark.parametrize("bits", [*range(1, 25), 31, 36, 47])
def test_every_plan_of_a_borrow(bits: int, last: int) -> None:
    r, y = pairs(bits)
    found = plans._borrows(bits, last)
    assert found
    for plan in found:
        check_form(plan, bits)
        found = evaluated(plan, r, y)
        assert len(found) <= 2 * last - 1
        assert torch.equal(borrowed(found), y < r)


@pytest.mark.parametrize("bits", [*range(1, 20), 24, 31])
def test_every_plan_of_an_equality(bits: int) -> None:
    r, y = pairs(bits)
    found = plans._equalities(bits)
    assert found
    for plan in found:
        check_form(plan, bits)
        assert torch.equal(torch.stack(evaluated(plan, r, y)).all(0), y == r)


def placed(low: int, high: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """r, y = x + r, and signed x at the ends of its window and of its range, and anywhere.

    The last 2^low values are no x: see `plans.window`.
    """
    whole, top = 1 << (low + high), 1 << (low + high - 1)
    r, _ = pairs(low + high)
    r = r.unique()[:2000]
    ends = [0, 1, 1 << low, 1 << (low - 1) if low else 0, 2 << low, top, -top, top - (1 << low)]
    x = torch.tensor([end + step for end in ends for step in (-1, 0, 1)])
    anywhere = torch.randint(-top, top, (200,), generator=torch.Generator().manual_seed(low))
    if low + high <= 7:
        anywhere = torch.arange(-top, top)
    x = (torch.cat([x, anywhere]) + top) % whole - top
    x = x[x < top - (1 << low)]
    return r.unsqueeze(1).expand(-1, len(x)), (r.unsqueeze(1) + x) % whole, x.expand(len(r), -1)


@pytest.mark.parametrize(
    ("low", "high"),
    [
        *((low, high) for low in range(1, 6) for high in range(2, 8 - low)),
        *((6, 9), (6, 12), (7, 12), (10, 5), (18, 2), (18, 12), (18, 14), (19, 13), (9, 17)),
    ],
)
def test_every_plan_of_a_window(low: int, high: int) -> None:
    r, y, x = placed(low, high)
    found = plans._windows(low, high)
    assert found
    for plan in found:
        check_form(plan, low + high)
        assert plan.low == low and len(plan.last) == 2
        inside, upper = evaluated(plan, r, y)
        mask = (1 << low) - 1
        stands = (x >= 0) & (x <= mask)
        assert torch.equal(inside, stands)
        assert torch.equal(upper[stands], ((y & mask) < (r & mask))[stands])
        assert torch.equal(upper[~stands], (x > mask)[~stands])


def test_the_cheapest_plan_is_taken_and_rounds_are_dearer_on_a_wan() -> None:
    fewer = 0
    for elements in (1, 500, 1 << 13, 1 << 14, 1 << 20):
        for bits in (7, 15, 19, 31):
            rounds = {}
            for profile in PROFILES:
                rounded = 1 << (elements - 1).bit_length()
                best = borrow(bits, elements, 8.0, profile)
                prices = [p.price(rounded, 8.0, profile) for p in plans._borrows(bits, 3)]
                assert best.price(rounded, 8.0, profile) == min(prices)
                rounds[profile] = best.rounds
                found = plans._equalities(bits)
                prices = [p.price(rounded, 1.0, profile) for p in found]
                best = equality(bits, elements, 1.0, profile)
                assert best.price(rounded, 1.0, profile) == min(prices)
                found = plans._windows(bits, 9)
                best = window(bits, 9, elements, 9.0, profile)
                prices = [p.price(rounded, 9.0, profile) for p in found]
                assert best.price(rounded, 9.0, profile) == min(prices)
            assert rounds["wan"] <= rounds["lan"]
            fewer += rounds["wan"] < rounds["lan"]
    assert fewer, "a profile that never changes a plan would be none"


def test_the_price_of_a_plan_by_hand() -> None:
    """[y < r] on 12 bits in two digits of 6, without nodes: three last bits.

    A word of 64 bits answers less, and equal with it: 8 bytes a digit; 3 bits are sent for the
    last table of 8 entries. A dealt byte counts half and a round 2^17 bytes on a LAN, 2 and 2^20 on
    a WAN.
    """
    (plan,) = (plan for plan in plans._borrows(12, 3) if plan.widths == (6, 6) and not plan.levels)
    assert plan.words == ((0, "less"), (1, "less"))
    assert plan.sizes == (2 * 8, 3 / 8)
    assert plan.price(1000, 4.0, "lan") == 1000 * (3 / 8 + (16 + 4 * 8) / 2) + (1 << 17)
    assert plan.price(1000, 4.0, "wan") == 1000 * (3 / 8 + 2 * (16 + 4 * 8)) + (1 << 20)


@pytest.mark.parametrize("number", range(12))
def test_every_plan_is_read_right_on_shares(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The words and tables that are dealt for a plan say what the plan says."""

    def chosen(found: Sequence[Plan], *_: Any) -> Plan:
        return found[number % len(found)]

    monkeypatch.setattr(plans, "_cheapest", chosen)
    bits = 19
    x = torch.randint(-(2**18), 2**18, (211 + number,))  # a shape of its own: forms are made once
    x[:8] = torch.tensor([0, -1, 1, 2**18 - 1, -(2**18), 2**17, -(2**17) - 1, 2])

    def program(machine: SecureMachine, rank: int | None) -> list[Any]:
        suite = machine.suite
        assert isinstance(suite, DealerSuite)
        secret = suite.share(x if rank == 0 else None, tuple(x.shape), 0, 0)
        values = [
            suite.negative(secret, bits - 1),
            suite.is_zero(secret, bits),
            suite.clamp(secret, 0, 9),
            suite.positive(secret, bits - 1)[0],
        ]
        return [suite.open(value, 1, "test") for value in values]

    done = deal_and_run(program)
    done.check_cost()
    below, zero, kept, upper = done.values
    assert torch.equal(below, (x < 0).long())
    assert torch.equal(zero, (x == 0).long())
    assert torch.equal(kept & 511, x.clamp(0, 511))
    assert torch.equal(upper, x.clamp(min=0))


@pytest.mark.parametrize("profile", PROFILES)
def test_a_plan_s_words_and_tables_are_what_is_dealt(profile: str) -> None:
    """Words of 2^width bits for a digit's question, 2^inputs for a node's output, 2^last rows."""
    for kind, entry in ((Signs, 8), (Zeros, 8)):
        correlation = kind((1,), 19, profile)
        plan = correlation.plan
        words = sum(-(-(2 ** plan.widths[digit]) // 8) for digit, _ in plan.words)
        nodes = sum(
            -(-(2 ** len(node.inputs)) // 8) * len(node.outputs)
            for level in plan.levels
            for node in level
        )
        assert correlation.dealt_bytes == words + nodes + entry * 2 ** len(plan.last)
