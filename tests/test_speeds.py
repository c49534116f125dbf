"""Predicted seconds: what adds up, what overlaps, and what a grid says between its shapes."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from made_up_speeds import GRID, SPEEDS, WIRE

from mpcache.calibration import loads_of
from mpcache.protocols.ahead import AT_ONCE
from mpcache.protocols.dealer_roles import KEPT_MASKS
from mpcache.protocols.ledger import Entry
from mpcache.protocols.work import Call, Product, Work, held_bytes
from mpcache.speeds import Error, Grid, Kernels, Load, Speeds, columns

WORK = Work(
    Counter({Call("Triple", 800): 3, Call("scope", 0): 2}),
    Counter({Product("owned", 1, 1, 64, 64, False): 5}),
)


def test_a_grid_says_what_was_measured_and_lies_between() -> None:
    grid = Grid((1, 4), (8, 32), (8,), (((4e-9,), (1e-9,)), ((2e-9,), (2e-9,))), 1e-5)

    def rate(rows: int, inputs: int, outputs: int = 8) -> float:
        product = Product("shared", 1, rows, inputs, outputs, False)
        return (grid.seconds(product) - grid.call) / product.multiply_adds

    assert rate(1, 8) == pytest.approx(4e-9)
    assert rate(1, 32) == pytest.approx(1e-9)
    assert rate(1, 16) == pytest.approx(2e-9)  # half-way in logarithms
    assert rate(2, 8) == pytest.approx((4e-9 * 2e-9) ** 0.5)
    assert rate(1, 1) == pytest.approx(rate(1, 8))  # ends go on level
    assert rate(100, 999, 7777) == pytest.approx(rate(4, 32))
    batch = Product("shared", 6, 1, 8, 8, False)
    assert grid.seconds(batch) == pytest.approx(1e-5 + 6 * 64 * 4e-9)


def test_a_grid_of_another_shape_is_refused() -> None:
    for rates in ((((1.0,),),), (((0.0,), (1.0,)),)):
        with pytest.raises(ValueError, match="expected rates"):
            Grid((1,), (8, 16), (8,), rates, 0.0)


def test_each_product_has_its_kernel() -> None:
    slow, slower, slowest = (replace(GRID, call=call) for call in (1.0, 2.0, 3.0))
    kernels = Kernels(slow, slower, slowest, GRID, 0.0)
    plain = Product("shared", 1, 1, 8, 8, False)
    turned, owned = plain._replace(by_outputs=True), plain._replace(kind="owned")
    assert round(kernels.party(plain)) == 1
    assert round(kernels.party(turned)) == 2
    assert (round(kernels.party(owned)), round(kernels.dealer(owned))) == (3, 1)
    assert kernels.party(plain._replace(kind="torch")) < 1
    # four tokens' masks meet the weight at once, at party 1 and the dealer; party 0 has one row
    assert round(kernels.dealer(owned, 4), 3) == round(1 / 4, 3)
    assert round(kernels.dealer(owned._replace(by_outputs=True), 4), 3) == round(2 / 4, 3)
    assert round(kernels.party(owned, 4)) == 3
    assert kernels.dealer(owned._replace(rows=2), 4) == kernels.dealer(owned._replace(rows=2))
    assert kernels.dealer(plain, 4) == kernels.dealer(plain)


def test_columns_are_uses_bytes_and_products() -> None:
    found = columns(WORK, lambda product: 0.25 * product.multiply_adds)
    assert found == {
        "Triple uses": 3,
        "Triple bytes": 2400,
        "scope uses": 2,
        "owned products": 5 * 0.25 * 64 * 64,
    }


def test_a_product_knows_how_its_right_side_lies() -> None:
    left, right = torch.empty(3, 5, 7, device="meta"), torch.empty(3, 9, 7, device="meta")
    turned = Product.of("shared", left, right.transpose(1, 2))
    assert turned == Product("shared", 3, 5, 7, 9, True)
    assert turned.multiply_adds == 3 * 5 * 7 * 9
    straight = Product.of("owned", left, torch.empty(7, 9, device="meta"))
    assert straight == Product("owned", 3, 5, 7, 9, False)


def test_narrow_pieces_are_held_in_their_own_bytes() -> None:
    class Piece:
        shape, bits, narrow = (3, 2), 12, True

    wide = type("Wide", (Piece,), {"narrow": False})
    assert held_bytes([Piece(), wide()]) == 6 * 2 + 6 * 8


def _load(**changes: Any) -> Load:
    return replace(Load(rounds=100, sent_bytes=1e6, dealt_bytes=0, work=WORK), **changes)


def test_seconds_are_the_longest_of_what_must_be_done() -> None:
    load = _load()
    own, dealer = SPEEDS.own(load, live=False), SPEEDS.dealing(load)
    assert own > 0 and dealer > 0
    wire = 100 * WIRE.round_seconds + 1e6 * WIRE.byte_seconds
    assert SPEEDS.seconds(load, live=False, tls=False) == pytest.approx(own + wire)
    tls = SPEEDS.seconds(load, live=False)
    assert tls == pytest.approx(own + 2 * wire)
    # 20 ms a round and a second for a megabyte at 8 Mbit/s: this machine's own part is in it
    assert SPEEDS.seconds(load, (40.0, 8.0), live=False) == pytest.approx(own + 2.0 + 1.0)
    assert SPEEDS.seconds(load, (1e-6, 0.0), live=False) == tls
    slow_dealer = replace(SPEEDS, dealer={"Triple uses": 9.0, "scope uses": 0.0})
    assert slow_dealer.seconds(load) == pytest.approx(27.0)
    assert slow_dealer.seconds(load, live=False) == tls


def test_what_a_live_dealer_deals_is_sent_and_taken() -> None:
    load = _load(dealt_bytes=4e9)
    sent, taken = 4e9 * SPEEDS.tls.sent_busy, 4e9 * SPEEDS.tls.taken_busy
    own, dealer = SPEEDS.own(load), SPEEDS.dealing(load)
    longest = max(own + taken + SPEEDS.tls.seconds(load, (0.0, 0.0)), dealer + sent)
    assert SPEEDS.seconds(load) == pytest.approx(longest)
    assert SPEEDS.seconds(load, live=False) == SPEEDS.seconds(_load(), live=False)
    turns = 2 * (own + SPEEDS.tls.busy(load)) + taken + dealer + sent
    assert SPEEDS.seconds(load, shared=(2, 1)) == pytest.approx(turns)


def test_a_dealer_expands_the_masks_that_it_does_not_keep() -> None:
    wide = Product("owned", 1, 1, 1 << 16, KEPT_MASKS >> 18, False)  # twice what is kept
    load = _load(work=Work(Counter(), Counter({wide: 4})), share=0.25)
    assert load.expanded_bytes == KEPT_MASKS
    assert replace(load, together=8).expanded_bytes == KEPT_MASKS / 8
    assert replace(load, share=1 / 8).expanded_bytes == 0
    assert replace(load, first=True).expanded_bytes == 2 * KEPT_MASKS
    assert replace(load, work=Work(), first=True).expanded_bytes == 0
    kept = replace(SPEEDS.kernels, expand=0.0)
    more = SPEEDS.dealing(load) - replace(SPEEDS, kernels=kept).dealing(load)
    assert more == pytest.approx(SPEEDS.kernels.expand * KEPT_MASKS)


def test_tokens_are_worked_out_together_as_far_as_there_are_any() -> None:
    totals = {phase: ([Entry(rounds=30)], WORK) for phase in ("prefill", "decode")}
    for steps, together in ((1, 1), (3, 3), (AT_ONCE + 4, (AT_ONCE + 4) / 2), (500, 500 / 32)):
        loads = loads_of(totals, steps)
        assert (loads["token"].together, loads["token"].first) == (together, False)
        assert (loads["prefill"].together, loads["prefill"].first) == (1, True)


def test_processes_of_one_host_take_turns() -> None:
    load = _load()
    busy = SPEEDS.own(load) + SPEEDS.tls.busy(load)
    turns = (3 * busy + SPEEDS.dealing(load)) / 1
    assert SPEEDS.seconds(load, shared=(3, 1)) == pytest.approx(turns)
    assert SPEEDS.seconds(load, shared=(2, 64)) == SPEEDS.seconds(load)


def test_a_share_of_a_load_takes_that_share() -> None:
    entries = [Entry(rounds=60, sent_bytes=500), Entry(rounds=60, sent_bytes=900, dealt_bytes=7)]
    whole, third = Load.of(entries, WORK), Load.of(entries, WORK, share=1 / 3)
    assert (third.rounds, third.sent_bytes, third.dealt_bytes) == pytest.approx((20, 300, 7 / 3))
    assert SPEEDS.seconds(third) == pytest.approx(SPEEDS.seconds(whole) / 3)


def test_speeds_are_read_back() -> None:
    assert Speeds.read(json.loads(json.dumps(asdict(SPEEDS)))) == SPEEDS


def test_errors_are_relative_to_what_was_measured() -> None:
    found = Error.over([(1.0, 1.1), (2.0, 1.0), (4.0, 4.0)])
    assert (found.median, found.worst, found.count) == (pytest.approx(0.1), 0.5, 3)
    assert "off by 12% in the middle and 20% at most" in SPEEDS.accuracy
