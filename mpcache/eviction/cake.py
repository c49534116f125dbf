"""CAKE (Qin et al., ICLR 2025, arXiv 2503.12491): layers get what they prefer of the budget.

1. A layer's preference H^(1/tau1) V^(1/tau2) weighs how widely its attention is dispersed (the
   entropy H) and how much it shifts from query to query (the variance V).
2. The budget of all layers together is cut in proportion to their preferences.
3. A token's worth is the mean of the last queries' attention plus gamma times its variance: what
   draws attention by turns is kept. Each key/value head keeps the best, and those queries' tokens.

The paper measures preferences on the prompt itself: the counts would tell of it. Here they are
measured ahead on a public text (`mpcache eval preferences`) and are public: those of SmolLM2 come
along, and layers of other models get equal parts unless the configuration says otherwise
(`cache.preferences`). As all budgets are known before the prefill, the paper's cascade, which takes
memory back from earlier layers, is not needed.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from importlib import resources
from typing import ClassVar

import yaml

from mpcache.errors import UsageError
from mpcache.eviction.base import Budget, Cache
from mpcache.eviction.oblivious import Top, top
from mpcache.eviction.snapkv import SnapKV, SnapKVCache
from mpcache.models.spec import ModelSpec
from mpcache.protocols.operation import Machine, Operation, PlainMachine, SecureMachine, Value
from mpcache.protocols.secret import Secret, lifted

TABLE = "cake.yaml"
TOLD_APART = 10  # fractional bits of a worth: a unit of 32 queries' probability is 2^-11 in it


@dataclass(frozen=True)
class Cake(SnapKV):
    """Args:
    tokens: kept of the prompt in a layer on average. Generated tokens all stay.
    gamma: weight of the variance, a whole number.
    preferences: of each layer, whole numbers; none for those of the model, or equal ones.
    """

    gamma: int = 200
    preferences: tuple[int, ...] = ()
    name: ClassVar[str] = "cake"
    paper: ClassVar[str] = "CAKE: Qin et al., ICLR 2025, arXiv 2503.12491"
    meaning: ClassVar[str] = "tokens of the prompt that stay in a layer on average"
    leaks: ClassVar[str] = "layers' parts, measured ahead: they tell of the weights, of no prompt"

    def fitted(self, spec: ModelSpec) -> Cake:
        """With the preferences of the model's layers.

        Raises:
            UsageError: there are given ones, and not one for each layer.
        """
        known = self.preferences or preferences_of(spec) or (1,) * spec.layers
        if len(known) != spec.layers:
            raise UsageError(
                f"cache.preferences has {len(known)} numbers, and {spec.name} has {spec.layers}"
                " layers; give one for each, or none"
            )
        return replace(self, preferences=known)

    def layer_kind(self, layer: int) -> int:
        return layer if len(set(self.preferences)) > 1 else 0

    def layer_budget(self, layer: int, prompt_tokens: int, new_tokens: int) -> Budget:
        mean = self.budget(prompt_tokens, new_tokens)
        window = min(self.observed, prompt_tokens)
        free = (mean.static - window) * len(self.preferences)
        kept = window + parts(free, self.preferences, prompt_tokens - window)[layer]
        return Budget(kept, tuple(kept + step for step in range(1, new_tokens)))

    def start(self, spec: ModelSpec, prompt_tokens: int, new_tokens: int) -> Cache:
        fits = len(self.preferences) >= spec.layers  # of a cut of its model, too
        return CakeCache(spec, self if fits else self.fitted(spec))


@functools.lru_cache(maxsize=1024)
def parts(total: int, weights: Sequence[int], most: int) -> tuple[int, ...]:
    """`total` in whole parts in proportion to `weights`, none over `most`; they sum up to it.

    What a full part cannot take the others share. Of the fractions the largest are rounded up.
    """
    full: set[int] = set()
    while True:
        rest = total - most * len(full)
        whole = sum(weight for i, weight in enumerate(weights) if i not in full)
        exact = [
            Fraction(most) if i in full else Fraction(rest * weight, whole)
            for i, weight in enumerate(weights)
        ]
        over = {i for i, part in enumerate(exact) if part > most}
        if not over:
            break
        full |= over
    found = [int(part) for part in exact]
    order = sorted(range(len(weights)), key=lambda i: (found[i] - exact[i], i))
    for i in order[: total - sum(found)]:
        found[i] += 1
    return tuple(found)


@functools.cache
def preferences_of(spec: ModelSpec) -> tuple[int, ...]:
    """What was measured for a model of this shape; nothing where it was not."""
    text = resources.files("mpcache.eviction").joinpath(TABLE).read_text("utf-8")
    for entry in yaml.safe_load(text) or ():
        if entry["shape"] == spec.digest():
            return tuple(entry["preferences"])
    return ()


class Worth(Operation):
    """Mean plus `gamma` times the variance over n queries, times n^2; summed over a group.

    Args:
        weights: probabilities [kv_heads, group, n, tokens].

    [kv_heads, tokens]: n S + gamma (n Q - S^2), with the sums S of probabilities and Q of their
    squares. Everything public is a whole number, and squares keep all their bits: exact on shares
    for the shared probabilities.
    """

    name = "worth"

    def plain(self, machine: PlainMachine, weights: Value, gamma: int) -> Value:
        count, total = weights.shape[2], weights.sum(2)
        spread = count * weights.square().sum(2) - total.square()
        return (count * total + gamma * spread).sum(1)

    def run(self, machine: SecureMachine, weights: Secret, gamma: int) -> Secret:
        count, total = weights.shape[2], weights.sum(2)
        both = machine.cat([weights, total.unsqueeze(2)], 2)
        squares = machine.suite.square(both)
        spread = squares[:, :, :count].sum(2).times(count) - squares[:, :, count]
        mean = lifted(total.times(count), spread.frac)
        return (mean + spread.times(gamma)).sum(1)


worth = Worth()


class CakeCache(SnapKVCache):
    policy: Cake

    def _votes(self, machine: Machine, weights: Value) -> Value:
        return worth(machine, weights, self.policy.gamma)

    def _chosen(self, machine: Machine, layer: int, votes: Value, kept: int) -> Top:
        queries, group = self.policy.observed, self.spec.group
        # probabilities and their squares sum to 1 at most over a row's tokens
        magnitude = (queries * queries * (1 + self.policy.gamma) * group).bit_length()
        return top(machine, votes, kept, 0, queries, magnitude=magnitude, keep=TOLD_APART)
