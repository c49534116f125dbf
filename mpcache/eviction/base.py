"""What a cache policy is: a frozen description that starts a cache for one run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch

from mpcache.errors import UsageError
from mpcache.models.decoder import KeyValueCache
from mpcache.models.spec import ModelSpec
from mpcache.protocols.growing import Growing
from mpcache.protocols.operation import Machine, Value
from mpcache.protocols.secret import Secret

Seeded = Callable[[tuple[int, ...]], Value]


@dataclass(frozen=True)
class Budget:
    """Public token counts of a layer: kept after prefill, and attended to in each decode step."""

    static: int
    dynamic: tuple[int, ...]


@dataclass
class Kept:
    """What a cache really kept, read off its tensors: per layer, and per layer and step."""

    static: dict[int, int] = field(default_factory=dict)
    dynamic: dict[int, list[int]] = field(default_factory=dict)

    def matches(self, budget: Budget) -> bool:
        return all(kept == budget.static for kept in self.static.values()) and all(
            tuple(kept) == budget.dynamic for kept in self.dynamic.values()
        )

    def of(self, layer: int) -> Budget:
        """What one layer kept."""
        return Budget(self.static[layer], tuple(self.dynamic.get(layer, ())))


class Cache(KeyValueCache, ABC):
    """The keys and values of one run, by layer. The first call for a layer is the prefill."""

    def __init__(self, spec: ModelSpec) -> None:
        self.spec = spec
        self.keys: dict[int, Value] = {}
        self.values: dict[int, Value] = {}
        self.kept = Kept()
        self._growing: dict[tuple[str, int], Growing] = {}

    def attend(
        self, machine: Machine, layer: int, queries: Value, keys: Value, values: Value
    ) -> Value:
        """Store keys and values [kv_heads, tokens, head_dim] of new tokens, and attend.

        Returns the context of `queries` [kv_heads, group, tokens, head_dim], in that shape.
        """
        with machine.scope("store"):
            both = machine.keep(machine.stack([keys, values]))
            keys, values = both[0], both[1]
        if layer not in self.keys:
            context = self.prefill(machine, layer, queries, keys, values)
            self.kept.static[layer] = self.keys[layer].shape[1]
            return context
        self.keys[layer] = self._added("keys", layer, self.keys[layer], keys)
        self.values[layer] = self._added("values", layer, self.values[layer], values)
        return self.decode(machine, layer, queries)

    def fill(
        self, machine: Machine, layer: int, keys: Value, values: Value, seeded: Seeded
    ) -> None:
        """Put seeded values where a prefill leaves its own, to measure the steps after it.

        Args:
            keys, values: of the stored tokens [kv_heads, tokens, head_dim].
            seeded: makes values from 0 to 1 of a shape, for what else a step reads.
        """
        self.keys[layer], self.values[layer] = keys, values

    def _added(self, name: str, layer: int, stored: Value, fresh: Value) -> Value:
        growing = self._growing.get((name, layer))
        if growing is None or growing.value is not stored:  # a policy has put others there
            growing = self._growing[name, layer] = Growing(stored)
        return growing.add(fresh)

    @abstractmethod
    def prefill(
        self, machine: Machine, layer: int, queries: Value, keys: Value, values: Value
    ) -> Value:
        """Attend causally over the prompt and store what the policy keeps."""

    @abstractmethod
    def decode(self, machine: Machine, layer: int, queries: Value) -> Value:
        """Attend to the stored tokens with the last token's queries [.., group, 1, head_dim]."""


class Policy(ABC):
    """A cache policy. Implementations are frozen dataclasses, one file each.

    Attributes:
        paper: who proposed it, and where.
        meaning: what its budget counts.
        leaks: what it makes public beyond the lengths of prompt and answer.
        oblivious: whether it runs on shares; else in plaintext only.
        alters_prefill: whether the prompt's tokens attend to other than all before them.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    meaning: ClassVar[str]
    leaks: ClassVar[str]
    oblivious: ClassVar[bool] = True
    alters_prefill: ClassVar[bool] = False

    @classmethod
    @abstractmethod
    def at(cls, budget_tokens: int, prompt_tokens: int) -> Policy:
        """The policy that attends to about `budget_tokens` after a prompt of `prompt_tokens`."""

    def fitted(self, spec: ModelSpec) -> Policy:
        """The policy with what it takes from a model filled in; most take nothing."""
        return self

    def lacks(self, spec: ModelSpec) -> str:
        """What is not there to run it on a model, and what to do; empty for nothing."""
        return ""

    def require(self, spec: ModelSpec) -> None:
        """To be called where the model is run, before work starts; not where it is only priced.

        Raises:
            UsageError: it lacks something.
        """
        if problem := self.lacks(spec):
            raise UsageError(problem)

    @abstractmethod
    def budget(self, prompt_tokens: int, new_tokens: int) -> Budget:
        """The public counts for a prompt and a number of generated tokens; where layers have
        budgets of their own, what they come to on average.
        """

    def layer_budget(self, layer: int, prompt_tokens: int, new_tokens: int) -> Budget:
        """The public counts of one layer, of the policy as it is `fitted` to a model."""
        return self.budget(prompt_tokens, new_tokens)

    def layer_kind(self, layer: int) -> int:
        """Layers of one kind send and take the same: what costs them need look at one of each.

        Of the policy as it is `fitted`.
        """
        return 0

    @abstractmethod
    def start(self, spec: ModelSpec, prompt_tokens: int, new_tokens: int) -> Cache:
        """An empty cache for one run of `prompt_tokens` and `new_tokens`."""


def causal_mask(tokens: int, like: Value | None = None) -> torch.Tensor:
    """Public 0/1 mask [tokens, tokens]: row i sees columns up to i.

    Args:
        like: a value on whose device the mask shall live; without data where that has none.
    """
    device = like.share.device if isinstance(like, Secret) else getattr(like, "device", None)
    return torch.ones(tokens, tokens, dtype=torch.int64, device=device).tril()
