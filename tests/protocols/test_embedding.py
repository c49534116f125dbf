"""The embedding of suite `dealer`: exact, at its declared cost, and its messages tell nothing."""

from __future__ import annotations

from typing import Any

import drawn
import pytest
import torch

from mpcache.errors import MpcacheError
from mpcache.kernels.bits import packed_bytes
from mpcache.kernels.prg import Stream
from mpcache.protocols.arithmetic import embed
from mpcache.protocols.channel import frame_bytes
from mpcache.protocols.dealer import DealerSuite
from mpcache.protocols.dealer_roles import Dealing
from mpcache.protocols.embedding import Chosen, embedded
from mpcache.protocols.ledger import Scopes
from mpcache.protocols.operation import PlainMachine, SecureMachine
from mpcache.protocols.setting import Setting
from mpcache.protocols.tokens import Tokens

from .test_dealer import SETTING, Done, deal_and_run

Sent = dict[str, torch.Tensor]
SHARED = Setting(suite="dealer", sharing="shared")


def ring(*shape: int) -> torch.Tensor:
    return torch.randint(-(2**63), 2**63 - 1, shape)


def suite_of(machine: SecureMachine) -> DealerSuite:
    assert isinstance(machine.suite, DealerSuite)
    return machine.suite


def run(ids: list[int], table: torch.Tensor, watch: Any = None, shared: bool = False) -> Done:
    """Rows of ring elements `table` at `ids`, opened to the client."""
    shape = (int(table.shape[0]), int(table.shape[1]))
    second = ring(*shape)
    held = {0: table - second, 1: second} if shared else {0: table}

    def program(machine: SecureMachine, rank: int | None) -> list[Any]:
        suite = suite_of(machine)
        if watch is not None and rank is not None:
            watch(suite)
        with machine.scope("setup"):
            weight = suite.matrix(None if rank is None else held.get(rank), shape, 16)
        with machine.scope("op"):
            tokens = machine.tokens(ids if rank == 1 else None, len(ids), shape[0])
            rows = embed(machine, tokens, weight)
        assert (tuple(rows.shape), rows.frac) == ((len(ids), shape[1]), 16)
        return [suite.open(rows, 1, "test")]

    return deal_and_run(program, SHARED if shared else SETTING)


@pytest.mark.parametrize("shared", [False, True], ids=["owner", "shared"])
@pytest.mark.parametrize(
    ("vocab", "width", "count"),
    [(1, 1, 1), (7, 3, 5), (8, 2, 9), (63, 5, 1), (63, 17, 40), (500, 9, 7), (49_152, 3, 2)],
)
def test_rows_come_out_bit_for_bit_at_the_cost(
    vocab: int, width: int, count: int, shared: bool
) -> None:
    ids = torch.randint(0, vocab, (count,)).tolist()
    ids[0], ids[-1] = vocab - 1, 0
    for table in (ring(vocab, width), torch.randint(-(2**14), 2**14, (vocab, width))):
        done = run(ids, table, shared=shared)
        done.check_cost()
        assert torch.equal(done.values[0], table[ids])
    assert done.dealt_bytes == 8 * count * width
    label = "op/embed:"
    sent = [ledger.total("op").sent_bytes for ledger in done.ledgers]
    bits = frame_bytes(f"{label}chosen", []) + 2 + 8 + count * (vocab // 8 + 1)
    rows = frame_bytes(f"{label}row", []) + 2 + 8 + 8 * count * width
    assert sent == [rows, bits]
    assert [ledger.total("op").rounds for ledger in done.ledgers] == [2, 2]


@pytest.mark.parametrize("shared", [False, True], ids=["owner", "shared"])
def test_every_token_of_a_vocabulary(shared: bool) -> None:
    """Whatever the bit of the token is, and wherever it stands in its byte."""
    table = ring(63, 2)
    ids = [*range(63)] * 3
    assert torch.equal(run(ids, table, shared=shared).values[0], table[ids])


def test_the_twin_looks_rows_up() -> None:
    table = torch.randn(11, 3)
    machine = PlainMachine(Setting())
    tokens = machine.tokens([4, 0, 4], 3, 11)
    assert torch.equal(embed(machine, tokens, table), table[[4, 0, 4]])


def test_what_is_dealt() -> None:
    """Shares of (1 - 2h)(q - P), recomputed bit by bit."""
    mask, items = ring(9, 2), []
    seeds = drawn.dealers_seeds()
    dealing = Dealing(SETTING, (Stream(seeds[0]), Stream(seeds[1])), items.append)
    correlation = Chosen(3, 9, 2, lambda: mask)
    dealing.draw(correlation)
    zero, one = (correlation.draw(rank, Stream(seeds[rank])) for rank in range(2))
    assert sorted(zero) == ["m", "q"] and sorted(one) == ["bits"]
    dealt = correlation.read(items[0])["m"]
    for row in range(3):
        bits = [int(one["bits"][row, v // 8]) >> (v % 8) & 1 for v in range(10)]
        chosen = sum((mask[v] for v in range(9) if bits[v]), torch.zeros(2, dtype=torch.int64))
        wanted = (1 - 2 * bits[9]) * (zero["q"][row] - chosen)
        assert torch.equal(zero["m"][row] + dealt[row], wanted)


# --- what the parties see ------------------------------------------------------------------------


def watched(ids: list[int], table: torch.Tensor, shared: bool = False) -> tuple[Sent, Sent]:
    """All messages of an embedding by kind, and what party 1 drew and was dealt."""
    sent: Sent = {}
    drawn: Sent = {}

    def watch(suite: DealerSuite) -> None:
        pass_on, draw = suite.pass_on, suite.draw

        def noting(kind: str, source: int, specs: Any, messages: Any) -> list[torch.Tensor]:
            if source == suite.rank and kind in ("chosen", "row"):
                (sent[kind],) = messages()
            return pass_on(kind, source, specs, messages)

        def drawing(correlation: Any) -> Any:
            pieces = draw(correlation)
            if isinstance(correlation, Chosen) and suite.rank == 1:
                drawn.update(pieces)
            return pieces

        suite.pass_on, suite.draw = noting, drawing  # type: ignore[method-assign, assignment]

    done = run(ids, table, watch, shared)
    assert torch.equal(done.values[0], table[ids])
    return sent, drawn


def unpacked(bits: torch.Tensor, count: int) -> torch.Tensor:
    """Packed bits [rows, bytes] as 0/1 [rows, count]."""
    flat = (bits.unsqueeze(-1).to(torch.int64) >> torch.arange(8)) & 1
    return flat.reshape(bits.shape[0], -1)[:, :count]


@pytest.mark.parametrize("shared", [False, True], ids=["owner", "shared"])
def test_party_0_sees_uniform_bits_whatever_the_token_is(shared: bool) -> None:
    """Of 4,000 tokens, all the same: each bit is even, and so is each pair of a bit with the last.

    The last bit alone could tell: with the token's own bit it is even because it has a mask too.
    Bounds of 7 standard deviations: odds of a false alarm below 1e-9 for all of them.
    """
    vocab, count, token = 63, 4000, 41
    sent, drawn = watched([token] * count, ring(vocab, 1), shared)
    seen, own = (unpacked(bits, vocab + 1) for bits in (sent["chosen"], drawn["bits"]))
    off = 7 * 0.5 / count**0.5
    assert bool(((seen.double().mean(0) - 0.5).abs() < off).all())
    alike = seen == seen[:, -1:]
    assert bool(((alike[:, :-1].double().mean(0) - 0.5).abs() < off).all())
    turned = seen ^ own
    assert bool((turned[:, token] == 1).all())
    assert torch.equal(turned[:, -1], own[:, token])
    assert int(turned[:, :-1].sum()) == count


def test_tokens_have_bits_of_their_own() -> None:
    sent, drawn = watched([3] * 200, ring(500, 1))
    for bits in (sent["chosen"], drawn["bits"]):
        assert len({tuple(row) for row in bits.tolist()}) == 200


@pytest.mark.parametrize("shared", [False, True], ids=["owner", "shared"])
def test_party_1_sees_masked_rows_whatever_the_table_is(shared: bool) -> None:
    """Each bit of what it gets is even, on a table of zeros; and so is their sum and difference."""
    count, width = 500, 8
    sent, drawn = watched([0] * count, torch.zeros(9, width, dtype=torch.int64), shared)
    off = 7 * 0.5 / (count * width) ** 0.5
    for word in (sent["row"], drawn["m"], sent["row"] + drawn["m"], sent["row"] - drawn["m"]):
        for bit in range(64):
            assert abs(float(((word >> bit) & 1).double().mean()) - 0.5) < off


def test_no_party_but_the_client_keeps_ids() -> None:
    kept: dict[int | None, Tokens] = {}

    def program(machine: SecureMachine, rank: int | None) -> list[Any]:
        kept[rank] = machine.tokens([5, 6], 2, 9)
        return []

    deal_and_run(program)
    for rank, tokens in kept.items():
        if rank == 1:
            assert tokens.known().tolist() == [[5], [6]]
        else:
            with pytest.raises(MpcacheError, match="the client has no tokens"):
                tokens.known()
        assert repr(tokens) == "Tokens(count=2, vocab=9)"


@pytest.mark.parametrize("token", [-1, 9])
def test_a_token_that_is_not_in_the_vocabulary(token: int) -> None:
    with pytest.raises(MpcacheError, match=r"^a token is not in the vocabulary of 9$"):
        Tokens([0, token], 2, 9)


def test_only_a_weight_matrix_of_that_vocabulary_is_embedded() -> None:
    dealing = Dealing(SETTING, (Stream(bytes(16)), Stream(bytes(16))), lambda tensor: None)
    machine = SecureMachine(dealing, Scopes())
    shared = dealing.share(None, (9, 2), 16, 0)
    owned = dealing.matrix(None, (9, 2), 16)
    for vocab, table in ((9, shared), (8, owned)):
        with pytest.raises(MpcacheError, match="need a weight matrix"):
            embedded(dealing, machine.tokens(None, 1, vocab), table)


def test_a_prompt_is_a_bit_for_each_entry() -> None:
    assert packed_bytes(49_152 + 1) == 6_145
