"""Oblivious selection: ranks, and top-k as one-hot rows."""

from __future__ import annotations

import torch

from mpcache.protocols.comparison import at_least
from mpcache.protocols.dealer import DealerSuite
from mpcache.protocols.operation import Operation, PlainMachine, SecureMachine, Value
from mpcache.protocols.secret import Secret


class Rank(Operation):
    """How many elements of the last dimension [n] beat each one: 0 for the greatest.

    Of two equal elements the earlier one wins, so ranks are a permutation. On shares: all
    n (n - 1) / 2 comparisons in one batch, then public sums. Exact, but for elements that `bits`
    does not tell apart: see `Suite.negative`. With a dealer elements are cut before they are
    compared, so that ranks are a permutation even then, and with `width` the shares count modulo
    2^width.
    """

    name = "rank"

    def plain(self, machine: PlainMachine, x: Value, **bits: int) -> Value:
        order = torch.argsort(x, dim=-1, descending=True, stable=True)
        places = torch.arange(x.shape[-1], device=x.device).expand_as(order)
        return torch.empty_like(order).scatter_(-1, order, places).to(x.dtype)

    def run(self, machine: SecureMachine, x: Secret, **bits: int) -> Secret:
        size = x.shape[-1]
        first, second = torch.triu_indices(size, size, 1, device=x.share.device)
        wins = at_least(machine, x.take(first), x.take(second), **bits)
        ranks = wins.pour(second, size) - wins.pour(first, size)
        return machine.shift(ranks, torch.arange(size - 1, -1, -1, dtype=torch.float64))

    def run_dealer(self, machine: SecureMachine, x: Secret, **bits: int) -> Secret:
        suite, size = machine.suite, x.shape[-1]
        assert isinstance(suite, DealerSuite)
        first, second = torch.triu_indices(size, size, 1, device=x.share.device)
        losses = suite.pairs_negative(x, **bits)
        ranks = losses.pour(first, size) - losses.pour(second, size)
        return machine.shift(ranks, torch.arange(size, dtype=torch.float64))


class TopK(Operation):
    """The k greatest of the last dimension [n], as one-hot rows [..., k, n] in order of position.

    1. Keep bit b_i = [rank_i < k].
    2. Place p_i = b_0 + ... + b_i: linear.
    3. Row j is [p_i > j] - [p_(i-1) > j]: 1 exactly where the j-th kept element stands.

    Rows are integers without fractional bits, so a product with them is exact. Public: k and n.
    """

    name = "top-k"

    def plain(self, machine: PlainMachine, x: Value, k: int, **bits: int) -> Value:
        kept = rank(machine, x) < k
        rows = kept.cumsum(-1)
        wanted = torch.arange(1, k + 1, device=x.device).unsqueeze(-1)
        return ((rows.unsqueeze(-2) == wanted) & kept.unsqueeze(-2)).to(x.dtype)

    def run(self, machine: SecureMachine, x: Secret, k: int, **bits: int) -> Secret:
        size = x.shape[-1]
        width = size.bit_length() + 1
        ranks = rank(machine, x, **bits)
        kept = machine.shift(-at_least(machine, ranks, float(k), magnitude=width), 1.0)
        places = kept.cumsum(-1)
        wanted = torch.arange(1, k + 1, dtype=torch.float64, device=x.share.device).unsqueeze(-1)
        reached = at_least(machine, places.unsqueeze(-2), wanted.expand(k, size), magnitude=width)
        before = machine.cat([reached[..., :1].times(0), reached[..., :-1]], -1)
        return reached - before


class Best(Operation):
    """The k greatest of the last dimension [n], as one-hot rows [..., k, n] in order of rank.

    Row j is [rank_i == j]: one more round than the ranks with a dealer, who deals a table for
    each rank. Public: k and n. Exact, but for elements that `bits` does not tell apart.
    """

    name = "best"

    def plain(self, machine: PlainMachine, x: Value, k: int, **bits: int) -> Value:
        wanted = torch.arange(k, device=x.device).unsqueeze(-1)
        return (rank(machine, x).unsqueeze(-2) == wanted).to(x.dtype)

    def run(self, machine: SecureMachine, x: Secret, k: int, **bits: int) -> Secret:
        size = x.shape[-1]
        ranks = rank(machine, x, **bits).unsqueeze(-2)
        wanted = torch.arange(k + 1, dtype=torch.float64).unsqueeze(-1).expand(k + 1, size)
        reached = at_least(machine, ranks, wanted, magnitude=size.bit_length() + 1)
        return reached[..., :k, :] - reached[..., 1:, :]

    def run_dealer(self, machine: SecureMachine, x: Secret, k: int, **bits: int) -> Secret:
        suite, size = machine.suite, x.shape[-1]
        assert isinstance(suite, DealerSuite)
        rows = suite.one_hot(rank(machine, x, width=16, **bits), 0, max(1, (size - 1).bit_length()))
        return rows[:k].permute(*range(1, rows.ndim - 1), 0, rows.ndim - 1)


rank = Rank()
top_k = TopK()
best = Best()
