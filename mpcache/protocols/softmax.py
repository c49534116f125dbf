"""Softmax with a public mask, and attention made of it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import torch

from mpcache.protocols.arithmetic import matmul, multiply, product, scale
from mpcache.protocols.comparison import maximum
from mpcache.protocols.dealer import DealerSuite
from mpcache.protocols.functions import decay, inverting, reciprocal
from mpcache.protocols.operation import Machine, Operation, PlainMachine, SecureMachine, Value
from mpcache.protocols.plays import Play
from mpcache.protocols.reach import Reach, Reached, within
from mpcache.protocols.secret import Secret, lifted

HIDDEN = -(2.0**13)  # scores stay between it and 2^13
MAGNITUDE = 14  # so that their differences stay below 2^14
SCORE = within("score", MAGNITUDE - 1)
# a ceiling reads scores up to 66; where a row's greatest is below -64 the row fades
GREATEST = Reach("greatest score of a row", 6)
WEIGHTED = within("weighted values", 14)
CEILED = 1 << 15  # scores up to which a table each is worth the rounds of a maximum
CELL, CELLS = 1, 6  # a ceiling reads scores in 2^6 cells of 2^1, around 0
WEIGHT_FRAC, ROOMY = 16, 8  # fractional bits of weights that are not normalised, for 2^8 tokens
CONTEXT_FRAC = 24  # of their sum over values
SUM_FRAC = 26  # of the inverse of their total
CONTEXT = within("context", 62 - CONTEXT_FRAC - SUM_FRAC)  # what a truncation of 64 bits reads


class Spread(Protocol):
    """Maps weights over the tokens to weights over what is stored, where that is more."""

    def __call__(self, weights: Value) -> Value: ...

    def playing(self, suite: DealerSuite, weights: Secret) -> Play:
        """The same as a play, with a dealer."""
        ...


class Softmax(Operation):
    """Probabilities over the last dimension, where `visible` (public, 0/1, or None for all).

    On shares:

    1. Hidden places get -2^13; d = x - max(x), clipped to [-16, 0].
    2. e = exp(d), hidden places set to 0; r = 1 / sum(e); p = e r.

    CrypTen's softmax does not clip, and its exp grows again below about -500. Error in
    cuts: that of exp over the sum s of all e, p times the same for s, 4 p, and 1. For |x| < 2^13.
    """

    name = "softmax"

    def plain(self, machine: PlainMachine, x: Value, visible: torch.Tensor | None = None) -> Value:
        if visible is not None:
            x = x.masked_fill(visible.to(x.device) == 0, float("-inf"))
        return torch.softmax(x, -1)

    def run(self, machine: SecureMachine, x: Secret, visible: torch.Tensor | None = None) -> Secret:
        x, visible = _hide(machine, x, visible)
        top = maximum(machine, x, x.ndim - 1, magnitude=MAGNITUDE, keep=4)
        e = decay(machine, x - top, magnitude=MAGNITUDE)
        if visible is not None:
            e = e.times(visible)
        r = reciprocal(machine, e.sum(-1, keepdim=True), float(x.shape[-1]))
        return multiply(machine, e, r)

    def reaches(self, result: Value, x: Value, visible: torch.Tensor | None = None) -> Reached:
        yield SCORE, _seen(x, visible)


def _hide(
    machine: SecureMachine, x: Secret, visible: torch.Tensor | None
) -> tuple[Secret, torch.Tensor | None]:
    if visible is None:
        return x, None
    visible = visible.to(torch.int64)
    hidden = max(HIDDEN, -(2.0 ** (x.width - x.frac - 2)))  # a quarter of what its ring holds
    return machine.shift(x.times(visible), hidden * (1 - visible)), visible


@dataclass(frozen=True)
class Weighted:
    """What attention makes of scores [.., queries, tokens].

    The context [.., queries, head_dim] is normalised; the weights are where `inverse` is None,
    else they are to be multiplied with it [.., queries, 1].
    """

    context: Value
    weights: Value
    inverse: Value | None


class Attend(Operation):
    """Softmax of scores, and the values' mean under it.

    Args:
        scores: [.., queries, tokens], with any fractional bits.
        values: [.., stored, head_dim].
        visible: public 0/1 mask over the scores, or None for all.
        spread: maps weights over the tokens to weights over what is stored, where that is more.

    With a dealer:

    1. m near the maximum: 1 at most below it and 3 above, read off one opening where scores are
       few; else the maximum itself.
    2. e = exp(x - m), with 16 fractional bits, fewer for more than 256 tokens.
    3. Context: (e values) / sum(e), the sums and the inverse side by side; the weights themselves
       are not normalised.

    Error: a weight is off by a unit of its fractional bits, as often up as down, where the greatest
    is e^-3 at least, and by 2^-14 of itself, as is their total.

    Range: |x| < 2^13, where nothing wraps. Where scores are few, those from 66 on count as equal,
    and the context of a row fades to 0 where its greatest score falls from -64 to -77. Where they
    are many, there are no such ends. The sum of exp(x - m) |values| must stay below 2^14, of which
    exp(x - m) is e at most: the ring of that product holds no more. The context itself must stay
    below 2^12: beside its total's inverse it has 50 fractional bits.
    """

    name = "softmax"

    def plain(
        self,
        machine: PlainMachine,
        scores: Value,
        values: Value,
        visible: torch.Tensor | None = None,
        spread: Spread | None = None,
    ) -> Weighted:
        weights = softmax.plain(machine, scores, visible)
        return Weighted((spread(weights) if spread else weights) @ values, weights, None)

    def run(
        self,
        machine: SecureMachine,
        scores: Secret,
        values: Secret,
        visible: torch.Tensor | None = None,
        spread: Spread | None = None,
    ) -> Weighted:
        weights = softmax.run(machine, machine.settle(scores), visible)
        with machine.scope("values"):
            context = matmul(machine, spread(weights) if spread else weights, values)
        return Weighted(context, weights, None)

    def run_dealer(
        self,
        machine: SecureMachine,
        scores: Secret,
        values: Secret,
        visible: torch.Tensor | None = None,
        spread: Spread | None = None,
    ) -> Weighted:
        suite = machine.suite
        assert isinstance(suite, DealerSuite)
        x, visible = _hide(machine, scores, visible)
        if x.share.numel() <= CEILED:
            top = lifted(_ceiling(machine, x, visible), x.frac)
        else:
            top = maximum(machine, x, x.ndim - 1, magnitude=MAGNITUDE, keep=4)
        tokens = x.shape[-1]
        with machine.scope("exp"):
            e = _weights(suite, x - top, visible, weight_frac(tokens))
        total = e.sum(-1, keepdim=True)
        with machine.scope("values"):
            high = tokens.bit_length() + 2
            context, over = suite.together(
                _averaging(suite, e, values, spread), inverting(machine, total, -6, high, SUM_FRAC)
            )
        with machine.scope("normalise"):
            context = suite.multiply(context, over)
            context = suite.play(suite.trimming(context, context.frac - suite.setting.frac))
        return Weighted(context, e, over)

    def reaches(
        self,
        result: Weighted,
        scores: Value,
        values: Value,
        visible: torch.Tensor | None = None,
        spread: Spread | None = None,
    ) -> Reached:
        seen = _seen(scores, visible)
        yield SCORE, seen
        hidden = scores.new_zeros(()) if visible is None else 1 - visible.to(scores)
        yield GREATEST, (seen + HIDDEN * hidden).amax(-1)
        weights = result.weights / result.weights.amax(-1, keepdim=True)
        weights = spread(weights) if spread else weights
        yield WEIGHTED, math.e * (weights @ values.abs())
        yield CONTEXT, result.context


def _seen(scores: Value, visible: torch.Tensor | None) -> Value:
    """Scores, and 0 for those that are hidden."""
    return scores if visible is None else scores * visible.to(scores)


def weight_frac(tokens: int) -> int:
    """Fractional bits of weights that are not normalised: fewer where more of them are added up.

    In the ring of attention their products with values then have room for a sum of all.
    """
    return WEIGHT_FRAC - max(0, (tokens - 1).bit_length() - ROOMY)


def _averaging(suite: DealerSuite, e: Secret, values: Secret, spread: Spread | None) -> Play:
    """(e values), with SUM_FRAC fractional bits at most."""
    if spread is not None:
        e = yield from spread.playing(suite, e)
    context = yield from suite.multiplying_matrices(e, values)
    cut = max(context.frac - CONTEXT_FRAC, 1)
    return (yield from suite.truncating(context, cut))


def _weights(suite: DealerSuite, x: Secret, visible: torch.Tensor | None, frac: int) -> Secret:
    """exp(x) where visible, else 0: hidden places cost nothing."""
    short = suite.setting.short
    if visible is None:
        e = suite.exp(x)
        return suite.play(suite.trimming(e, e.frac - frac, short))
    places = _places(visible, tuple(x.shape))
    e = suite.exp(x.flatten().take(places))
    e = suite.play(suite.trimming(e, e.frac - frac, short))
    return e.pour(places, x.share.numel()).reshape(*x.shape)


def _places(visible: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Where a flattened [shape] is visible. A mask without data stands for the causal one."""
    if not visible.is_meta:
        return visible.expand(shape).flatten().nonzero().squeeze(-1)
    tokens = shape[-1]
    count = math.prod(shape) // tokens * (tokens + 1) // 2
    return torch.empty(count, dtype=torch.int64, device="meta")


def _ceiling(machine: SecureMachine, x: Secret, visible: torch.Tensor | None) -> Secret:
    """An integer [.., 1] that the greatest x, kept to [-64, 62), exceeds by 1 at most, or misses
    by 3.

    1. The cell of 2 that each x is in, or one below; those beyond the ends are in the last ones.
    2. One-hot rows over cells and their sum: how many x are in each cell.
    3. Sums from the top: where they are not zero, the greatest x is at least as high.
    """
    suite = machine.suite
    assert isinstance(suite, DealerSuite)
    count = 1 << CELLS
    with machine.scope("ceiling"):
        moved = machine.shift(x, float(count << (CELL - 1)))
        cells = suite.clamp(moved, -CELL, CELLS)
        bits = x.shape[-1].bit_length()  # of a count
        width = 8 if bits <= 8 else 16 if bits <= 16 else 32
        counts = suite.tally(cells, 0, CELLS, visible, width)
        below = counts.permute(*range(1, counts.ndim), 0).cumsum(-1)  # [.., cells]
        above = below[..., -1:] - below[..., :-1]
        empty = suite.is_zero(above, bits, 16)  # scores have no more integer bits
        reached = machine.shift(-empty.sum(-1, keepdim=True), float(count - 1))
        offset = (2 << CELL) - 1 - (count << (CELL - 1))
        return machine.shift(reached.times(1 << CELL), float(offset))


softmax = Softmax()
attend = Attend()


def scores_of(machine: Machine, queries: Value, keys: Value) -> Value:
    """Scaled products of queries with all keys, with all their fractional bits.

    Args:
        queries: [kv_heads, group, queries, head_dim], rotated. keys: [kv_heads, tokens, head_dim].

    Returns:
        [kv_heads, group, queries, tokens].
    """
    heads, group, count, width = queries.shape
    with machine.scope("scores"):
        flat = scale(machine, queries, 1 / math.sqrt(width)).reshape(heads, group * count, width)
        scores = product(machine, flat, keys.transpose(-1, -2))
    return scores.reshape(heads, group, count, keys.shape[-2])


def attention(
    machine: Machine,
    queries: Value,
    keys: Value,
    values: Value,
    visible: torch.Tensor | None = None,
    observed: int | None = None,
) -> tuple[Value, Value]:
    """Softmax attention of grouped query heads over shared key/value heads.

    Args:
        queries: [kv_heads, group, queries, head_dim], rotated.
        keys, values: [kv_heads, tokens, head_dim].
        visible: public 0/1 mask, broadcast to [kv_heads, group, queries, tokens].
        observed: of how many last queries the probabilities are wanted; None for all.

    Returns:
        The context [kv_heads, group, queries, head_dim] and the probabilities of the observed
        queries [kv_heads, group, observed, tokens], None where there are none.
    """
    heads, group, count, width = queries.shape
    tokens = keys.shape[-2]
    scores = scores_of(machine, queries, keys).reshape(heads, group * count, tokens)
    if visible is not None:
        visible = visible.expand(heads, group, count, tokens).reshape(heads, group * count, tokens)
    weighted = attend(machine, scores, values, visible)
    context = weighted.context.reshape(heads, group, count, width)
    first = 0 if observed is None else count - observed
    if first == count:
        return context, None
    weights = weighted.weights.reshape(heads, group, count, tokens)[:, :, first:]
    if weighted.inverse is not None:
        over = weighted.inverse.reshape(heads, group, count, 1)[:, :, first:]
        with machine.scope("probabilities"):
            weights = multiply(machine, weights, over)
    return context, weights
