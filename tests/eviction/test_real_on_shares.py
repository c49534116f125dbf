"""Every policy on shares, on what four layers of SmolLM2 make of a real text."""

from __future__ import annotations

import pytest
import torch
from evaluation.reading import on_fixed
from protocols.test_dealer import perform

from mpcache.eviction.registry import POLICIES, policy_at
from mpcache.protocols.operation import PlainMachine
from mpcache.protocols.setting import Setting

from .harness import Activations, walk
from .test_real_activations import activations

__all__ = ["activations"]

BUDGET = 30  # of 150 tokens
SAME = 0.02  # what was stored of one token by the twin and by the parties; two tokens differ more


def rows(stored: list[torch.Tensor]) -> torch.Tensor:
    """Stored keys or values of all layers, one row a token: [tokens, head_dim]."""
    return torch.cat([tensor.reshape(-1, tensor.shape[-1]) for tensor in stored])


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in POLICIES if POLICIES[name].oblivious])
def test_keeps_the_twins_tokens(name: str, activations: Activations) -> None:
    """Contexts and stored tokens equal the twin's, but where a decision was as good as a tie."""
    program = walk(policy_at(name, BUDGET, activations.prompt), activations)
    twin = program(PlainMachine(Setting()), *activations.tensors)
    done = perform(program, activations.tensors)
    done.check_cost()
    stored = len(twin) - 2 * len(activations.layers)
    assert len(done.values) == len(twin)
    got, want = rows(done.values[stored:]), rows(twin[stored:])
    assert got.shape == want.shape
    # in whatever order: clusterkv sorts, and two tokens next to each other may be as good as equal
    equal = (torch.cdist(got, want, float("inf")).amin(1) < SAME).double().mean()
    got = torch.cat([x.flatten(0, -2) for x in done.values[:stored]])
    want = torch.cat([x.flatten(0, -2) for x in twin[:stored]])
    near = ((got - want).abs().amax(-1) < SAME).double().mean()
    print(f"{name}: {float(equal):.2%} of stored rows, {float(near):.2%} of contexts")
    assert equal > 0.99 and near > 0.99
    # the fixed reading is off from the parties by the same chances, so by no more
    fixed = torch.cat([x.flatten(0, -2) for x in on_fixed(program, activations.tensors)[:stored]])
    assert float(((got - fixed).abs().amax(-1) < SAME).double().mean()) > 0.99
