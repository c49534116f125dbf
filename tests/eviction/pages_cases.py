"""The twin's decode steps through the kernels beside those of the text; says ``equal`` at the end.

A program of its own, since Triton reads ``TRITON_INTERPRET`` when it is first imported.

    python -m tests.eviction.pages_cases cpu|cuda
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch

from mpcache.evaluation.lanes import Engine
from mpcache.eviction import pages
from mpcache.eviction.mpcache import MPCache
from mpcache.eviction.mpcache_paper import MPCachePaper
from mpcache.models.decoder import load_weights
from mpcache.protocols.operation import PlainMachine
from mpcache.protocols.setting import Setting

sys.path.insert(0, "tests")  # as pytest has it
from protocols.tiny import LLAMA, OPT, PROMPT, weights

from eviction.harness import random_activations, walk

SMALL = {"sink": 1, "recent": 2, "static_keep": 0.9, "observe": 5}
# kv_heads, group, prompt, steps, head_dim, policy
CASES = [
    (2, 3, 63, 3, 20, MPCache(clusters=(6, 3), dynamic_keep=0.3, **SMALL)),
    (1, 1, 60, 7, 7, MPCache(clusters=(12, 6), dynamic_keep=0.4, **SMALL)),  # one fills up
    (3, 2, 47, 2, 33, MPCache(clusters=(8, 4), per_head=False, dynamic_keep=0.3, **SMALL)),
    (1, 2, 65, 5, 16, MPCache(clusters=(8, 2), coarse_keep=0.6, dynamic_keep=0.3, **SMALL)),
    (2, 1, 50, 2, 16, MPCache(clusters=(8, 2), coarse_keep=0.1, dynamic_keep=0.2, **SMALL)),
    (1, 4, 31, 2, 6, MPCache(clusters=(4, 4), dynamic_keep=0.05, **SMALL)),  # the ends alone
    (1, 2, 9, 2, 6, MPCache(clusters=(12, 12), **SMALL)),  # nothing to choose
    (1, 3, 61, 3, 12, MPCache(clusters=(6, 3), summary="extrema", dynamic_keep=0.3, **SMALL)),
    (2, 2, 79, 3, 8, MPCachePaper(clusters=(8, 4), dynamic_keep=0.3)),
    (1, 1, 290, 1, 5, MPCache(clusters=(2, 2), most_clusters=999, dynamic_keep=0.03, **SMALL)),
]  # fmt: skip
LAYERS = (2, 3)  # the second takes the first one's choice where layers share
BOUND = 2e-5  # float32 sums of a few hundred products of numbers around 1


@contextmanager
def poisoned() -> Iterator[None]:
    """Buffers that nobody has written are NaN, or far beyond every index."""
    empty = torch.empty

    def full(*shape: Any, **options: Any) -> torch.Tensor:
        made = empty(*shape, **options)
        if made.is_meta:
            return made
        return made.fill_(float("nan") if made.is_floating_point() else 1 << 30)

    with mock.patch.object(torch, "empty", full):
        yield


@contextmanager
def counted() -> Iterator[list[int]]:
    """How many steps went through the pages."""
    steps = [0]
    attend = pages.Pages.attend

    def noted(*given: Any) -> torch.Tensor:
        steps[0] += 1
        return attend(*given)

    with mock.patch.object(pages.Pages, "attend", noted):
        yield steps


@contextmanager
def text() -> Iterator[None]:
    with mock.patch.object(pages, "takes_kernels", lambda tensor: False):
        yield


def check_steps(device: str) -> None:
    machine = PlainMachine(Setting(), device)
    for seed, (heads, group, prompt, steps, width, policy) in enumerate(CASES):
        given = random_activations(seed, LAYERS, heads, group, prompt, steps, width)
        tensors = [tensor.float().to(device) for tensor in given.tensors]
        program = walk(policy, given)
        with text(), counted() as none:
            want = program(machine, *tensors)
        with poisoned(), counted() as through:
            got = program(machine, *tensors)
        kept = policy.sized(prompt).static_kept(prompt)
        chosen = [policy.sized(prompt).choice(kept + i).selects for i in range(1, steps + 1)]
        assert through[0] == len(LAYERS) * sum(chosen) and none[0] == 0, (seed, through)
        assert all(chosen) is not (seed == 6)
        for one, other in zip(got, want, strict=True):
            assert float((one - other).abs().max()) <= BOUND, (seed, policy)


def check_model(device: str) -> None:
    """Whole models, token by token."""
    policy = MPCache(clusters=(4, 2), dynamic_keep=0.5, sink=1, recent=2)
    for spec in (LLAMA, OPT):
        machine = PlainMachine(Setting(), device)
        engine = Engine(machine, load_weights(machine, spec, weights(spec)))
        logits = []
        for how in (text, poisoned):
            with how(), counted() as through:
                lane = engine.start(policy, engine.prefill(PROMPT), 4)
                steps = [engine.step([lane], [token])[0] for token in PROMPT[:3]]
            logits.append(torch.stack(steps))
            assert through[0] == (0 if how is text else len(steps) * spec.layers)
        assert float((logits[0] - logits[1]).abs().max()) <= 1e-4


def main(device: str) -> None:
    with torch.inference_mode():
        check_steps(device)
        check_model(device)
    print("equal")


if __name__ == "__main__":
    main(sys.argv[1])
