"""FastKV (Jo et al. 2025, arXiv 2502.01068): behind a middle layer few tokens of a prompt go on.

1. Up to the layer of token-selective propagation all tokens go through the prefill. There the last
   queries, all heads together, vote as in SnapKV; the tokens with the most votes and those queries
   themselves go on, the last token always among them.
2. The layers behind work on those tokens alone, which makes the prefill cheap.
3. Every layer stores, of the tokens it has seen, those that SnapKV would.

How many go on is public, who does is not: their activations are one-hot rows times all activations.
So their positions are secret in the layers behind, and so are the angles that turn queries and keys
there: the same rows times the public tables of cos and sin, which is local, and masked once. A
turn is then a product of two secrets instead of one with a public table.

They leave behind the attention of their layer, before its feed-forward block, which works on each
token alone: the same result for less. The paper sets the layer for each model by trial; here it is
the middle one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from mpcache.eviction.base import Budget, Cache
from mpcache.eviction.mpcache import share_of
from mpcache.eviction.oblivious import Top, top
from mpcache.eviction.snapkv import SnapKV, SnapKVCache
from mpcache.models.rotary_tables import rotary_tables
from mpcache.models.spec import ModelSpec
from mpcache.protocols.operation import Machine, Value

PASSED = 0.2  # the paper's share of the prompt that goes on


@dataclass(frozen=True)
class FastKV(SnapKV):
    """Args:
    passed: tokens of the prompt that go on behind the layer `last`, the window among them.
    last: the last layer that sees all tokens; None for the middle one of the model.
    """

    passed: int = 256
    last: int | None = None
    name: ClassVar[str] = "fastkv"
    paper: ClassVar[str] = "FastKV: Jo et al. 2025, arXiv 2502.01068"
    meaning: ClassVar[str] = "tokens of the prompt that stay; a fifth at least goes through layers"
    alters_prefill: ClassVar[bool] = True

    @classmethod
    def at(cls, budget_tokens: int, prompt_tokens: int) -> FastKV:
        observed = min(cls.observed, max(1, budget_tokens // 2))
        passed = max(budget_tokens, share_of(PASSED, prompt_tokens))
        return cls(budget_tokens, observed, passed=passed)

    def fitted(self, spec: ModelSpec) -> FastKV:
        return self if self.last is not None else replace(self, last=(spec.layers - 1) // 2)

    def going_on(self, prompt_tokens: int) -> int:
        """Tokens that go on behind `last`."""
        return min(max(self.passed, self.observed), prompt_tokens)

    def layer_kind(self, layer: int) -> int:
        return 0 if self.last is None else 1 + (layer > self.last) - (layer < self.last)

    def layer_budget(self, layer: int, prompt_tokens: int, new_tokens: int) -> Budget:
        seen = self.going_on(prompt_tokens) if self.layer_kind(layer) == 2 else prompt_tokens
        return self.budget(seen, new_tokens)

    def start(self, spec: ModelSpec, prompt_tokens: int, new_tokens: int) -> Cache:
        return FastKVCache(spec, self.fitted(spec), prompt_tokens)


class FastKVCache(SnapKVCache):
    """`going`: the tokens that go on, once they are chosen; None while, or where, all do."""

    policy: FastKV

    def __init__(self, spec: ModelSpec, policy: FastKV, prompt_tokens: int) -> None:
        super().__init__(spec, policy)
        self.prompt_tokens = prompt_tokens
        self.going: Top | None = None
        self.turned: tuple[Value, Value] | None = None

    def prefill(
        self, machine: Machine, layer: int, queries: Value, keys: Value, values: Value
    ) -> Value:
        behind = self.policy.layer_kind(layer) == 2
        if behind and self.going is not None and keys.shape[1] == self.prompt_tokens:
            # a replay of what another cache was asked: the others did not come here
            heads, group, tokens, width = queries.shape
            flat = self.going.of(machine, queries.reshape(heads * group, tokens, width))
            queries = flat.reshape(heads, group, -1, width)
            keys, values = self.going.stored(machine, keys, values)
        return super().prefill(machine, layer, queries, keys, values)

    def _chosen(self, machine: Machine, layer: int, votes: Value, kept: int) -> Top:
        count = self.policy.going_on(self.prompt_tokens)
        if layer == self.policy.last and count < self.prompt_tokens:
            with machine.scope("propagate"):
                self.going = top(machine, votes.sum(0), count, 0, self.policy.observed)
        return super()._chosen(machine, layer, votes, kept)

    def passed(self, machine: Machine, layer: int, x: Value) -> Value:
        if layer != self.policy.last or self.going is None or x.shape[0] != self.prompt_tokens:
            return x  # a step's token always goes on
        with machine.scope("propagate"):
            if self.spec.positions == "rotary":
                tables = rotary_tables(self.spec, 0, self.prompt_tokens)
                cos, sin = (self.going.read(machine, table) for table in tables)
                if self.going.placed is not None:
                    cos, sin = machine.keep(cos), machine.keep(sin)
                self.turned = cos, sin
            return self.going.of(machine, x.unsqueeze(0)).squeeze(0)

    def angles(self, layer: int) -> tuple[Value, Value] | None:
        behind = self.policy.layer_kind(layer) == 2
        return self.turned if behind and layer not in self.keys else None
