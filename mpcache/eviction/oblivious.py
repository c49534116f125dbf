"""What evicting policies share: nobody learns which tokens stay, but how many is public."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mpcache.eviction.base import causal_mask
from mpcache.protocols.arithmetic import matmul
from mpcache.protocols.comparison import negative, pick
from mpcache.protocols.operation import Machine, Operation, PlainMachine, SecureMachine, Value
from mpcache.protocols.public import read
from mpcache.protocols.secret import Secret
from mpcache.protocols.selection import compact, places, standing
from mpcache.protocols.softmax import Weighted, attend, scores_of

SUMMED = 4095  # probabilities that an accumulation adds up at most: the ring has room for no more


def pooled(machine: Machine, votes: Value, size: int) -> Value:
    """Sums [.., tokens] over a token and its neighbours, `size` in all; there are none beyond ends.

    A token stays for what stands beside it: of a number or a name that the prompt asks about, the
    parts are wanted together, while single ones draw little attention. Sums are free on shares.

    Args:
        votes: [.., tokens]. size: an odd number.
    """
    if size == 1:
        return votes
    count, side = votes.shape[-1], size // 2
    edge = machine.zeros_like(votes, (*votes.shape[:-1], side))
    wide = machine.cat([edge, votes, edge], -1)
    parts = [wide[..., shift : shift + count] for shift in range(size)]
    return machine.stack(parts).sum(0)


@dataclass(frozen=True)
class Top:
    """The tokens that stay: all before `first`, those that have a place, all from `last` on.

    Args:
        placed: from `places` [last - first], or [heads, last - first] where each head keeps its
            own; None where none stays in between.
        count: how many stay in between.
    """

    placed: Value | None
    count: int
    first: int
    last: int

    def of(self, machine: Machine, x: Value, kept: bool = False) -> Value:
        """What `x` [heads, tokens, width] says of the tokens that stay, in order. Exact.

        Args:
            kept: mask the chosen rows for many products (`Machine.keep`), as the others may be.
        """
        parts = [x[:, : self.first], x[:, self.last :]]
        if self.placed is not None:
            chosen = compact(machine, self.placed, x[:, self.first : self.last], self.count)
            parts.insert(1, machine.keep(chosen) if kept else chosen)
        return machine.cat(parts, 1)

    def read(self, machine: Machine, table: torch.Tensor) -> Value:
        """What a public table [tokens, width] says of the tokens that stay.

        Public where the tokens that stay are.
        """
        if self.placed is None:
            return torch.cat([table[: self.first], table[self.last :]])
        rows = standing(machine, self.placed, self.count)
        middle = read(machine, rows, table[self.first : self.last])
        if isinstance(middle, torch.Tensor):
            table = table.to(middle)
        ends = [table[: self.first], table[self.last :]]
        known = [machine.shift(machine.zeros_like(middle, tuple(end.shape)), end) for end in ends]
        return machine.cat([known[0], middle, known[1]], 0)

    def stored(self, machine: Machine, keys: Value, values: Value) -> tuple[Value, Value]:
        """Keys and values [heads, tokens, head_dim] of the tokens that stay, masked once."""
        width = keys.shape[2]
        both = self.of(machine, machine.cat([keys, values], 2), kept=True)
        return both[..., :width], both[..., width:]


def top(
    machine: Machine, importance: Value, count: int, sink: int = 0, recent: int = 0, **bits: int
) -> Top:
    """The `count` most important tokens, among them the first `sink` and the last `recent`.

    Args:
        importance: [tokens], or [heads, tokens] where each head keeps its own; not negative.
        bits: `magnitude` and `keep` of an importance: see `search.Range`.
    """
    tokens = importance.shape[-1]
    if count >= tokens:
        return Top(None, 0, tokens, tokens)
    free, last = count - sink - recent, tokens - recent
    if free <= 0:
        return Top(None, 0, sink, last)
    middle = importance[..., sink:last]
    placed = machine.choice(places(machine, middle, free, signed=False, **bits))
    return Top(placed, free, sink, last)


def prefilled(machine: Machine, queries: Value, keys: Value, values: Value) -> Weighted:
    """Causal attention over the prompt; shapes as in `Cache.attend`.

    Returns:
        Context [kv_heads, group, tokens, head_dim]; weights [kv_heads, group, tokens, tokens] and
        their inverse [kv_heads, group, tokens, 1], if they have one.
    """
    heads, group, tokens, width = queries.shape
    visible = causal_mask(tokens, keys).expand(heads, group, tokens, tokens)
    scores = scores_of(machine, queries, keys).reshape(heads, group * tokens, tokens)
    done = attend(machine, scores, values, visible.reshape(heads, group * tokens, tokens))
    return Weighted(
        done.context.reshape(heads, group, tokens, width),
        done.weights.reshape(heads, group, tokens, tokens),
        None if done.inverse is None else done.inverse.reshape(heads, group, tokens, 1),
    )


def accumulated(machine: Machine, attended: Weighted, observed: int) -> Value:
    """Probabilities summed over the last `observed` queries and a group: [kv_heads, tokens].

    One product with the inverses, instead of one for each probability. Of more than `SUMMED`
    queries the last ones count.

    Args:
        attended: from `prefilled`.
    """
    count = attended.weights.shape[2]
    first = count - min(observed, SUMMED, count)
    weights = attended.weights[:, :, first:]
    if attended.inverse is None:
        return weights.sum(2).sum(1)
    over = attended.inverse[:, :, first:].transpose(2, 3)
    with machine.scope("probabilities"):
        return matmul(machine, over, weights).squeeze(2).sum(1)


def replaced(machine: Machine, victim: Value, slots: Value, entering: Value) -> Value:
    """`slots` [.., slots, width], the victim's overwritten with `entering` [.., 1, width]. Exact.

    Args:
        victim: bits [.., slots], one of them set at most; broadcast over leading dimensions.
    """
    change = machine.stack([entering.expand(*slots.shape), -slots]).sum(0)  # stays masked if it was
    return slots + pick(machine, victim.unsqueeze(-1), change)


class BelowMean(Operation):
    """1 where an element of the last dimension is below the mean of its `counted` ones, else 0.

    Args:
        x: [.., n], not negative and at most 2^5; 0 where it does not count.
        counted: how many elements of a row count, public, [.., 1].

    n x is compared with the sum: nothing is divided, so weights need not be normalised. Exact to
    2^-12 of n x.
    """

    name = "below-mean"

    def plain(self, machine: PlainMachine, x: Value, counted: torch.Tensor) -> Value:
        return (x * counted.to(x.device) < x.sum(-1, keepdim=True)).to(x.dtype)

    def run(self, machine: SecureMachine, x: Secret, counted: torch.Tensor) -> Secret:
        if x.share.is_meta:
            counted = torch.empty(counted.shape, dtype=torch.int64, device="meta")
        total = x.sum(-1, keepdim=True).expand(*x.shape)
        return negative(
            machine, x.times(counted) - total, magnitude=5 + x.shape[-1].bit_length(), keep=12
        )


below_mean = BelowMean()
