"""What an evaluation is asked to do, held against every mistake before any work starts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, get_args

import torch

from mpcache.errors import UsageError
from mpcache.eviction.base import Policy
from mpcache.eviction.registry import POLICIES, policy_at, policy_names
from mpcache.models.registry import Source, Weights
from mpcache.models.spec import ModelSpec

Arithmetic = Literal["float", "fixed"]
FULL = "full"


@dataclass(frozen=True)
class Settings:
    """Options of one evaluation.

    Args:
        policies: names; the full cache, which the others are compared with, always comes along.
        budgets: percent of the prompt's tokens that a decode step attends to.
        context: tokens of a window; the last `decode` of them are decoded one by one.
        windows: how many windows, or hidden passkeys.
        lanes: how many caches decode beside each other; memory grows with it.
        every: the policies are all that there are, and nobody named them.
        left_out: why some of those cannot run on the model, see `able`.
    """

    out: Path
    model: str = "smollm2"
    weights: Weights = "auto"
    texts: tuple[str, ...] = ()
    policies: tuple[str, ...] = ()
    budgets: tuple[float, ...] = (5.0, 10.0, 20.0, 50.0)
    context: int = 1024
    decode: int = 128
    windows: int = 8
    seed: int = 0
    arithmetic: Arithmetic = "float"
    device: str = "cpu"
    lanes: int = 16
    every: bool = False
    left_out: tuple[str, ...] = ()

    def check(self) -> None:
        """Raises UsageError where an option makes no sense, whatever the model."""
        for name in ("context", "decode", "windows", "lanes"):
            if getattr(self, name) < 1:
                raise UsageError(f"--{name} {getattr(self, name)}: expected 1 or more")
        if self.decode >= self.context:
            raise UsageError(
                f"--decode {self.decode} leaves no prompt in --context {self.context}; decode fewer"
            )
        if self.arithmetic not in get_args(Arithmetic):
            raise UsageError(f"--arithmetic {self.arithmetic}: expected float or fixed")
        if self.weights not in get_args(Weights):
            raise UsageError(f"--weights {self.weights}: expected auto, required or synthetic")
        if self.device not in ("cpu", "cuda"):
            raise UsageError(f"--device {self.device}: expected cpu or cuda")
        if self.arithmetic == "fixed":
            self._check_fixed()
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UsageError("--device cuda: torch sees no GPU here; use --device cpu")
        cells(self.policies, self.budgets, self.context - self.decode)

    def able(self, spec: ModelSpec) -> Settings:
        """Where nobody named the policies, those that lack nothing to run on the model."""
        lacks = {name: policy_at(name, 1, 1).lacks(spec) for name in self.policies}
        if not self.every or not any(lacks.values()):
            return self
        names = tuple(name for name, problem in lacks.items() if not problem)
        return replace(self, policies=names, left_out=tuple(filter(None, lacks.values())))

    def _check_fixed(self) -> None:
        """The fixed reading is that of shares."""
        if self.device != "cpu":
            raise UsageError(
                f"--arithmetic fixed works on the CPU, as the parties do, not on {self.device};"
                " leave --device out, or measure in float"
            )
        plain = [name for name in self.policies if not POLICIES[name].oblivious]
        if plain:
            raise UsageError(
                f"--policies {', '.join(plain)}: in plaintext only, and --arithmetic fixed reads"
                " what runs on shares; leave it out, or measure in float"
            )

    def check_model(self, source: Source, tokens: int) -> None:
        """Before work starts.

        Raises:
            UsageError: `tokens` positions exceed the model's context, or a policy lacks something
                to run on it.
        """
        if tokens > source.spec.context:
            raise UsageError(
                f"--context {self.context} needs {tokens} positions, and {source.spec.name} has"
                f" {source.spec.context}; choose a smaller --context"
            )
        for name in self.policies:
            policy_at(name, 1, 1).require(source.spec)


def parse_budgets(text: str) -> tuple[float, ...]:
    """``5,10,20`` as percent.

    Raises:
        UsageError: a part is no number over 0 and at most 100.
    """
    budgets = []
    for part in text.split(","):
        try:
            budget = float(part)
        except ValueError:
            budget = math.nan
        if not 0 < budget <= 100:
            raise UsageError(
                f"--budgets: {part.strip() or 'nothing'!r} is not allowed; expected percent of the"
                " prompt's tokens, over 0 and at most 100, such as 5,10,20,50"
            )
        budgets.append(budget)
    return tuple(dict.fromkeys(budgets))


def parse_policies(text: str | None, arithmetic: str = "float") -> tuple[str, ...]:
    """``mpcache,full`` as names; where nothing is given all policies that the arithmetic reads.

    Raises:
        UsageError: a name is unknown.
    """
    known = policy_names()
    if text is None:
        return tuple(name for name in known if arithmetic != "fixed" or POLICIES[name].oblivious)
    names = [part.strip() for part in text.split(",")]
    for name in names:
        if name not in known:
            raise UsageError(
                f"--policies: {name or 'nothing'!r} is unknown; choose of {', '.join(known)}"
            )
    return tuple(dict.fromkeys(names))


def tokens_of(budget: float, prompt_tokens: int) -> int:
    """A budget in percent as tokens, 1 at least."""
    return max(1, round(budget / 100 * prompt_tokens))


def cells(
    policies: Sequence[str], budgets: Sequence[float], prompt_tokens: int
) -> dict[tuple[str, float], Policy]:
    """Policy and budget -> the policy; the full cache comes first and once, at 100 percent.

    Raises:
        UsageError: a policy cannot be had at a budget.
    """
    found = {(FULL, 100.0): policy_at(FULL, prompt_tokens, prompt_tokens)}
    for name in policies:
        for budget in budgets:
            if name != FULL:
                tokens = tokens_of(budget, prompt_tokens)
                found[name, budget] = policy_at(name, tokens, prompt_tokens)
    return found
