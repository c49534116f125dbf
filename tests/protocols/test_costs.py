"""What operations cost, written out: a changed formula or message turns these red."""

from __future__ import annotations

from typing import Any

import pytest

from mpcache.protocols.activation import relu, silu
from mpcache.protocols.arithmetic import matmul, multiply, scale, settle
from mpcache.protocols.comparison import maximum, negative
from mpcache.protocols.counting import cost_of, counting_machine, hollow
from mpcache.protocols.functions import exponential, inverse_sqrt, reciprocal
from mpcache.protocols.greatest import argmax
from mpcache.protocols.norm import norm
from mpcache.protocols.operation import Cost
from mpcache.protocols.secret import Secret
from mpcache.protocols.selection import rank, top_k
from mpcache.protocols.setting import Setting
from mpcache.protocols.softmax import softmax

N = (63,)
# A frame: 19 bytes, the label, 2 bytes and 4 a dimension for each tensor, 8 bytes an element.
PRODUCT = 19 + len("multiply:all_reduce") + 2 * (2 + 4 + 63 * 8)
SCATTER = 19 + len("multiply:scatter") + (2 + 4 + 63 * 8)
GATHER = 19 + len("multiply:gather") + (2 + 4 + 63 * 8)
# A comparison: one AND, six of twice its width, for each party after the first; then one opening.
COMPARED = 19 + len("negative:all_reduce")
TREE = COMPARED + 2 * (2 + 8 + 63 * 8) + 6 * (COMPARED + 2 * (2 + 12 + 126 * 8))
TO_ARITHMETIC = COMPARED + (2 + 4 + 63 * 8)


def test_the_parts_of_a_frame() -> None:
    assert (PRODUCT, SCATTER, GATHER) == (1058, 545, 544)
    assert (TREE, TO_ARITHMETIC) == (13558, 548)


GOLDEN: list[tuple[Any, Any, dict[str, Any], dict[int, tuple[int, tuple[int, ...]]]]] = [
    (multiply, (N, N), {}, {2: (1, (1058, 1058)), 3: (3, (3206, 2660, 2660))}),
    (matmul, ((3, 7), (7, 5)), {}, {2: (1, (504, 504)), 3: (3, (1334, 1170, 1170))}),
    (settle, (hollow(N, 20),), {}, {2: (0, (0, 0)), 3: (2, (1086, 542, 542))}),
    (scale, (N, 0.25), {}, {2: (0, (0, 0)), 3: (0, (0, 0, 0))}),
    (negative, (N,), {}, {2: (8, (14106, 14106)), 3: (15, (55328, 55328, 55328))}),
    (relu, (N,), {}, {2: (9, (15209, 15209)), 3: (16, (57604, 57604, 57604))}),
    (maximum, (N,), {"dim": 0}, {2: (54, (18080, 18080)), 3: (96, (68072, 68072, 68072))}),
    (rank, ((5,),), {}, {2: (8, (2698, 2698)), 3: (15, (10534, 10534, 10534))}),
    (top_k, ((5,),), {"k": 2}, {2: (24, (7138, 7138)), 3: (45, (27834, 27834, 27834))}),
    (argmax, (N,), {}, {2: (54, (18594, 18594)), 3: (96, (69016, 69016, 69016))}),
    (exponential, (N,), {}, {2: (7, (4839, 4839)), 3: (25, (19446, 14553, 14553))}),
    (inverse_sqrt, (N,), {}, {2: (9, (8082, 8082)), 3: (35, (30558, 23348, 23348))}),
    (reciprocal, (N,), {"upper": 63.0},
     {2: (16, (90902, 90902)), 3: (41, (350314, 345310, 345310))}),
    (softmax, (N,), {}, {2: (87, (42051, 42051)), 3: (181, (160210, 154025, 154025))}),
    (silu, (N,), {}, {2: (33, (44012, 44012)), 3: (81, (161508, 151977, 151977))}),
    (norm, ((1, 63), N, None, 1e-5, False), {},
     {2: (22, (9310, 9310)), 3: (65, (33920, 31270, 31270))}),
]  # fmt: skip


@pytest.mark.parametrize("world", [2, 3])
@pytest.mark.parametrize(
    ("operation", "inputs", "options", "golden"), GOLDEN, ids=lambda part: getattr(part, "name", "")
)
def test_declared_cost(operation: Any, inputs: Any, options: Any, golden: Any, world: int) -> None:
    rounds, sent = golden[world]
    cost = cost_of(operation, Setting(world=world), *inputs, **options)
    assert cost == Cost(rounds, sent, (0,) * world)


def test_costs_follow_from_the_frames() -> None:
    golden = {operation.name: by_world for operation, _, _, by_world in GOLDEN}
    assert golden["multiply"][2] == (1, (PRODUCT,) * 2)
    others = 2 * PRODUCT + GATHER
    assert golden["multiply"][3] == (3, (2 * PRODUCT + 2 * SCATTER, others, others))
    assert golden["negative"][2] == (8, (TREE + TO_ARITHMETIC,) * 2)
    assert golden["negative"][3] == (15, (2 * (2 * TREE + TO_ARITHMETIC),) * 3)


@pytest.mark.parametrize("world", [2, 3])
def test_an_opening_is_one_message_from_everybody_else(world: int) -> None:
    machine = counting_machine(Setting(world=world))
    with machine.scope("op"):
        assert machine.open(hollow(N, 16), "client", "why") is None
    frame = 19 + len("op:reduce") + 2 + 4 + 63 * 8
    sent = [ledger.total().sent_bytes for ledger in machine.ledger.ranks]  # type: ignore[attr-defined]
    client = Setting(world=world).client
    assert sent == [0 if rank == client else frame for rank in range(world)]
    for ledger in machine.ledger.ranks:  # type: ignore[attr-defined]
        assert [(o.why, o.to, o.values) for o in ledger.openings] == [("why", "client", 63)]


def test_a_hollow_secret_has_no_data() -> None:
    value = hollow((3, 500), 20)
    assert isinstance(value, Secret) and value.share.is_meta
    assert (tuple(value.shape), value.frac) == ((3, 500), 20)
