"""The odds of local truncation: counted by the walk, derived share by share, met over many."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from protocols.test_dealer import SETTING, perform
from test_model_ranges import made_up
from typer.testing import CliRunner

from mpcache.cli import app
from mpcache.config import load
from mpcache.costing import quick
from mpcache.models.known import KNOWN
from mpcache.odds import Odds, odds
from mpcache.program import predict
from mpcache.protocols.activation import gated, silu
from mpcache.protocols.arithmetic import linear, multiply
from mpcache.protocols.counting import hollow
from mpcache.protocols.dealer_roles import CountingDealer, OnlineDealer
from mpcache.protocols.functions import logistic
from mpcache.protocols.ledger import Ledger, Prediction
from mpcache.protocols.norm import norm
from mpcache.protocols.operation import PlainMachine, SecureMachine
from mpcache.protocols.secret import Secret
from mpcache.protocols.softmax import softmax
from mpcache.protocols.work import Cut
from mpcache.ranges import Row

LOCAL = replace(SETTING, truncation="local")
BITS = 16


def cut(x0: torch.Tensor, x: torch.Tensor | int) -> torch.Tensor:
    """What two parties with shares x0 and x - x0 make of x, cut by `BITS`."""
    total = torch.zeros_like(x0)
    for rank, share in enumerate((x0, x - x0)):
        channel: Any = SimpleNamespace(rank=rank)
        suite = OnlineDealer(LOCAL, channel, Ledger(rank, 2), None, None)  # type: ignore[arg-type]
        total += suite.truncate(Secret(share, 32), BITS).share
    return total


def wrong(x0: torch.Tensor, x: torch.Tensor | int) -> torch.Tensor:
    return (cut(x0, x) - (x >> BITS)).abs() > 1


@pytest.mark.parametrize("x", [1, 5 << 40, (1 << 58) + 3])
def test_just_so_many_shares_go_wrong(x: int) -> None:
    """Of x >= 0 the lowest x shares, of -x the highest x: |x| of 2^64 each."""
    low, high = -(1 << 63), (1 << 63) - 1
    lost = torch.tensor([low, low + x // 2, low + x - 1])
    kept = torch.tensor([low + x, low + x + 1, 0, high - 1, high])
    assert bool(wrong(lost, x).all()) and not wrong(kept, x).any()
    lost = torch.tensor([high, high - x // 2, high - x + 1])
    kept = torch.tensor([high - x, high - x - 1, 0, low + 1, low])
    assert bool(wrong(lost, -x).all()) and not wrong(kept, -x).any()
    off = (cut(torch.tensor([low]), x) - (x >> BITS)).abs() - (1 << (64 - BITS))
    assert int(off.abs()) <= 1, "by 2^(64 - bits) units"


@pytest.mark.parametrize("x", [1 << 58, -(1 << 58), 3 << 57])
def test_the_odds_are_met(x: int) -> None:
    count, p = 1 << 19, abs(x) / 2**64
    generator = torch.Generator().manual_seed(7)
    x0 = torch.randint(-(1 << 63), (1 << 63) - 1, (count,), generator=generator)
    found = float(wrong(x0, x).double().mean())
    assert abs(found - p) <= 5 * math.sqrt(p * (1 - p) / count)  # one test in two million fails


@pytest.mark.slow
def test_a_hundred_million_local_cuts_go_wrong_as_often_as_is_said() -> None:
    """25 times 4 million values of 10 integer bits at 32 fractional bits: 12 are expected wrong."""
    generator = torch.Generator().manual_seed(8)
    count, found, expected = 4_000_000, 0, 0.0
    for _ in range(25):
        x = torch.randint(-(1 << 42), 1 << 42, (count,), generator=generator)
        x0 = torch.randint(-(1 << 63), (1 << 63) - 1, (count,), generator=generator)
        lost = wrong(x0, x)
        off = (cut(x0[lost], x[lost]) - (x[lost] >> BITS)).abs() - (1 << (64 - BITS))
        assert bool((off.abs() <= 1).all()), "by 2^(64 - bits) units"
        found += int(lost.sum())
        expected += float(x.abs().double().sum()) / 2**64
    assert abs(found - expected) <= 5 * math.sqrt(expected)


def tiny(machine: SecureMachine) -> None:
    """15 values of a linear map, 6 of a product, and 4 squares inside a logistic."""
    with machine.scope("layer3"):
        linear(machine, hollow((3, 4), 16), hollow((4, 5), 16))
    multiply(machine, hollow((2, 3), 16), hollow((2, 3), 16))
    logistic(machine, hollow((4,), 16))


def test_the_count_and_the_bound_are_those_worked_out_by_hand() -> None:
    prediction = Prediction(2)
    tiny(SecureMachine(CountingDealer(LOCAL, prediction), prediction))
    assert prediction.work["layer3/linear"].cuts == {Cut(32, 16): 15}
    assert prediction.work["multiply"].cuts == {Cut(32, 16): 6}
    assert prediction.work["logistic"].cuts == {Cut(32, 16): 4}, "the polynomial is cut exactly"
    found = odds(prediction.work, None)
    assert (found.values, found.dropped) == (25, {16: 25})
    assert found.wrong == 21 * 2.0**-2 + 4 * 2.0**-31 and found.run == 1.0
    # measured: the linear map of that layer stays below 2^5; products were seen elsewhere alone
    rows = [Row("linear", "result", 3, 5, 18, 18), Row("multiply", "result", 3, 1, 30, 30)]
    found = odds(prediction.work, made_up(rows))
    assert found.wrong == 15 * 2.0**-27 + 6 * 2.0**-2 + 4 * 2.0**-31
    rows.append(Row("multiply", "result", None, -3, 30, 30))
    found = odds(prediction.work, made_up(rows))
    assert found.wrong == 15 * 2.0**-27 + 6 * 2.0**-31 + 4 * 2.0**-31 == found.run
    assert "25 values (25 by 16 bits)" in found.says and "calibration measured" in found.says


def test_nothing_is_cut_locally_unless_asked() -> None:
    spec = KNOWN["smollm2"].spec
    exact, local = (
        quick(load(None, {"truncation": truncation, "max_new_tokens": 2}), spec, 30)
        for truncation in ("exact", "local")
    )
    assert odds(exact.work, None) == Odds(0, {}, 0.0, False)
    assert odds(local.work, None).values > 10**6
    assert local.total(1, "decode").dealt_bytes != exact.total(1, "decode").dealt_bytes


def test_the_quick_count_of_cuts_is_the_whole_one() -> None:
    spec = replace(KNOWN["smollm2"].spec, layers=4)
    config = load(None, {"truncation": "local", "max_new_tokens": 3})
    assert quick(config, spec, 20).work == predict(config, spec, 20).work


def normed(machine: Any, x: Any) -> Any:
    return norm(machine, x, None, None, 1e-5, False)


@pytest.mark.parametrize("operation", [silu, softmax, normed])
def test_functions_survive_local_truncation(operation: Any) -> None:
    """Values of more than 32 fractional bits are cut exactly: one logistic in eight went wrong."""
    x = torch.randn(16, 64, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 3
    got = perform(operation, [x], setting=LOCAL).values[0]
    want = operation(PlainMachine(LOCAL), x)
    assert float((got - want).abs().max()) < 0.01, "none of 1,024; some 100 would be"
    got = perform(gated, [x, x], setting=LOCAL).values[0]
    assert float((got - torch.nn.functional.silu(x) * x).abs().max()) < 0.05


def test_the_command_prints_the_odds() -> None:
    command = ["cost", "--model", "opt-125m", "--prompt-tokens", "20", "--max-new-tokens", "2"]
    said = CliRunner().invoke(app, [*command, "--set", "truncation=local"])
    assert said.exit_code == 0, said.output
    text = " ".join(said.output.split())
    assert "is wrong by 2^(64 - bits) with odds |x| / 2^64; expected wrong at most" in text
    assert "run mpcache calibrate" in text
    said = CliRunner().invoke(app, [*command, "--set", "truncation=local", "--json"])
    found = json.loads(said.output)["truncation"]
    assert found["values"] == sum(found["dropped"].values()) > 10**5
    assert found["odds"] == 1.0 and found["calibrated"] is False
    said = CliRunner().invoke(app, [*command, "--json"])
    assert "truncation" not in json.loads(said.output)
