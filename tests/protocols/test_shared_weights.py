"""Weights that neither party knows: exact products, what they cost, and what each message is."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import drawn
import pytest
import torch

from mpcache.errors import MpcacheError
from mpcache.kernels.prg import Stream
from mpcache.models.fusing import fused_groups
from mpcache.program import predict
from mpcache.protocols.arithmetic import linear
from mpcache.protocols.channel import Spec, frame_bytes
from mpcache.protocols.dealer import DealerSuite
from mpcache.protocols.dealer_roles import KEPT_MASKS, Dealing
from mpcache.protocols.ledger import Scopes
from mpcache.protocols.operation import SecureMachine
from mpcache.protocols.secret import SharedWeight
from mpcache.protocols.setting import Setting

from .test_dealer import Done, deal_and_run
from .tiny import FULL, LLAMA, PROMPT, SPECS, config, halved, run, weights

SHARED = Setting(suite="dealer", sharing="shared")


def ring(*shape: int) -> torch.Tensor:
    return torch.randint(-(2**63), 2**63 - 1, shape)


def product(x: torch.Tensor, weight: torch.Tensor, width: int, times: int = 1) -> Done:
    """`times` products of shared activations and a shared weight, modulo 2^width."""
    halves = {}
    for name, value in (("x", x), ("weight", weight)):
        second = ring(*value.shape)
        halves[name] = (value - second, second)

    def program(machine: SecureMachine, rank: int | None) -> list[Any]:
        suite = machine.suite
        assert isinstance(suite, DealerSuite)
        own = {name: None if rank is None else half[rank] for name, half in halves.items()}
        with machine.scope("setup"):
            matrix = suite.matrix(own["weight"], tuple(weight.shape), 16)
        with machine.scope("op"):
            left = suite.weight(own["x"], tuple(x.shape), 16)
            found = [suite.matmul(left, matrix, width) for _ in range(times)]
        assert isinstance(matrix, SharedWeight)
        return [suite.open(value, 1, "test") for value in found]

    return deal_and_run(program, SHARED)


@pytest.mark.parametrize(("rows", "inputs", "outputs"), [(1, 63, 5), (7, 1, 1), (13, 37, 500)])
@pytest.mark.parametrize("width", [64, 52])
def test_products_are_exact_and_open_the_activations_alone(
    rows: int, inputs: int, outputs: int, width: int
) -> None:
    x, weight = ring(rows, inputs), ring(inputs, outputs)
    done = product(x, weight, width, times=2)
    done.check_cost()
    unused = 64 - width
    wanted = (x @ weight) << unused >> unused
    for value in done.values:
        assert torch.equal(value, wanted)
    assert done.dealt_bytes == 2 * -(-rows * outputs * width // 8)
    for ledger in done.ledgers:
        setup, op = ledger.total("setup"), ledger.total("op")
        assert (setup.rounds, op.rounds) == (1, 2)
        assert setup.sent_bytes == frame_bytes("setup:weight", [Spec((inputs, outputs))])
        packed = -(-rows * inputs * width // 8)
        spec = Spec((rows, inputs)) if width == 64 else Spec((packed,), torch.uint8)
        assert op.sent_bytes == 2 * frame_bytes("op:matmul", [spec])


def test_what_setup_opens_is_uniform_whatever_the_weights_are() -> None:
    """Each bit of what a party sends, and of their sum, is even, on weights of zeros that are
    shared as zeros: bounds of 7 standard deviations, odds of a false alarm below 1e-9."""
    sent: dict[int, torch.Tensor] = {}
    shape, zeros = (40, 100), torch.zeros(40, 100, dtype=torch.int64)

    def program(machine: SecureMachine, rank: int | None) -> list[Any]:
        suite = machine.suite
        assert isinstance(suite, DealerSuite)
        matrix = suite.matrix(None if rank is None else zeros, shape, 16)
        assert isinstance(matrix, SharedWeight)
        if rank is not None:
            assert matrix.mask is not None
            sent[rank] = -matrix.mask
            sent[2] = matrix.opened
        return []

    deal_and_run(program, SHARED)
    assert torch.equal(sent[0] + sent[1], sent[2])
    off = 7 * 0.5 / zeros.numel() ** 0.5
    for word in sent.values():
        for bit in range(64):
            assert abs(float(((word >> bit) & 1).double().mean()) - 0.5) < off


@pytest.mark.parametrize("room", [0, KEPT_MASKS])
def test_the_dealer_makes_masks_anew_where_it_has_no_room(room: int) -> None:
    """Each of them is the sum of both parties' own, by the weight's number; `first` is party 0's"""
    seeds = drawn.dealers_seeds()
    dealing = Dealing(SHARED, (Stream(seeds[0]), Stream(seeds[1])), lambda tensor: None)
    dealing._room = room
    made = [dealing.matrix(None, (5, 3), 16) for _ in range(2)]
    for number, weight in enumerate(made, 1):
        assert isinstance(weight, SharedWeight)
        zero, one = (Stream(seed, number).ring((5, 3)) for seed in seeds)
        for _ in range(2):
            assert weight.mask is not None
            assert torch.equal(weight.mask, zero + one)
            assert torch.equal(weight.first(), zero)
        assert (weight.whole() is weight.whole()) == (room > 0)


def test_a_weight_that_is_no_share_is_refused() -> None:
    dealing = Dealing(SHARED, (Stream(bytes(16)), Stream(bytes(16))), lambda tensor: None)
    machine = SecureMachine(dealing, Scopes())
    with pytest.raises(MpcacheError, match=r"^weight w: a share is int64, not torch\.float32$"):
        machine.matrix("w", torch.ones(2, 2), (2, 2))


def test_neither_party_ever_holds_a_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    """What each party keeps of a matrix differs from it in all but chance elements: its share, its
    mask and what both opened; and all of it together is the weight."""
    kept: dict[int, list[SharedWeight]] = {0: [], 1: []}
    original = DealerSuite.matrix

    def spy(self: DealerSuite, *args: Any) -> Any:
        made = original(self, *args)
        if not self.hollow:
            assert isinstance(made, SharedWeight)
            kept[self.rank].append(made)
        return made

    monkeypatch.setattr(DealerSuite, "matrix", spy)
    spec = SPECS["opt"]
    run(config(2, protocol="dealer", max_new_tokens=1, sharing="shared"), spec)
    shares = halved(spec, weights(spec))
    groups = fused_groups(spec)
    matrices = [name for name in shares[0] if len(groups[name].shape) == 2]
    matrices.remove("embed.positions")
    assert len(kept[0]) == len(kept[1]) == len(matrices) > 0
    for name, zero, one in zip(matrices, kept[0], kept[1], strict=True):
        weight = shares[0][name] + shares[1][name]
        assert zero.mask is not None and one.mask is not None
        assert torch.equal(zero.opened + zero.mask + one.mask, weight)
        assert torch.equal(zero.opened, one.opened)
        for seen in (zero.opened, zero.mask, one.mask, zero.share, one.share):
            assert not (seen == weight).any()


def test_what_sharing_costs() -> None:
    """Setup: each matrix both ways instead of one. Later: activations of linear maps both ways
    instead of one, and nothing else differs, neither in rounds nor in what is dealt."""
    owner, shared = (
        predict(config(2, FULL, protocol="dealer", sharing=sharing), LLAMA, len(PROMPT)).ranks
        for sharing in ("owner", "shared")
    )
    length = frame_bytes("setup:prompt-length", [Spec((1,))])
    weights_sent = owner[0].total("setup").sent_bytes
    ready = frame_bytes("setup:ready", [])
    assert weights_sent > ready and owner[1].total("setup").sent_bytes == length + ready
    assert [ranks.total("setup").sent_bytes - weights_sent for ranks in shared] == [0, length]
    maps = 0
    for path, entry in owner[0].entries.items():
        if path.startswith("setup"):
            continue
        before, after = ([ranks.entries[path] for ranks in both] for both in (owner, shared))
        for rank in (0, 1):
            assert after[rank].rounds == before[rank].rounds
            assert after[rank].dealt_bytes == before[rank].dealt_bytes
        if path.endswith("/linear"):  # "masked" is as long as "matmul"
            maps += 1
            assert before[0].sent_bytes < before[1].sent_bytes
            assert {part.sent_bytes for part in after} == {before[1].sent_bytes}
        else:
            assert [e.sent_bytes for e in after] == [e.sent_bytes for e in before], path
        assert entry.rounds == after[0].rounds
    assert maps == 2 * (4 * LLAMA.layers + 1)  # prefill and decode


def test_a_bias_is_added_as_shares() -> None:
    x, weight, bias = ring(3, 4) >> 40, ring(4, 2) >> 40, ring(2) >> 30
    halves = [
        (value - other, other) for value in (x, weight, bias) for other in [ring(*value.shape)]
    ]

    def program(machine: SecureMachine, rank: int | None) -> list[Any]:
        suite = machine.suite
        own = [None if rank is None else half[rank] for half in halves]
        left = suite.weight(own[0], (3, 4), 16)
        matrix, added = suite.matrix(own[1], (4, 2), 16), suite.weight(own[2], (2,), 16)
        result = linear(machine, left, matrix, added, settled=False, wide=True)
        return [suite.open(result, 1, "test")]

    done = deal_and_run(program, replace(SHARED, profile="wan"))
    assert torch.equal(done.values[0], x @ weight + (bias << 16))
