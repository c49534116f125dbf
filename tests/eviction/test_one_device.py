"""The twin's tensors live on the device that was asked for, under every policy."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from pretended import GPU, PretendedGPU, placed
from protocols.tiny import LLAMA, OPT, PROMPT, weights

from mpcache.evaluation import tasks
from mpcache.evaluation.lanes import Engine
from mpcache.evaluation.recall import recall
from mpcache.eviction import pages
from mpcache.eviction.base import Policy
from mpcache.eviction.mpcache import MPCache
from mpcache.eviction.mpcache_paper import MPCachePaper
from mpcache.eviction.registry import policy_at, policy_names
from mpcache.kernels import triton_cache, triton_choose
from mpcache.models.decoder import load_weights
from mpcache.models.spec import ModelSpec
from mpcache.protocols.operation import PlainMachine
from mpcache.protocols.setting import Setting

LEVELS = MPCache(clusters=(2, 1), coarse_keep=0.5, dynamic_keep=0.7, sink=1, recent=1)


SMALL = MPCache(clusters=(4, 2), dynamic_keep=0.5, sink=1, recent=2)
PAPER = MPCachePaper(clusters=(4, 2), dynamic_keep=0.7, sink=1, recent=1, static_keep=0.9)


def engine_on(device: str, spec: ModelSpec) -> Engine:
    machine = PlainMachine(Setting(), device)
    return Engine(machine, load_weights(machine, spec, weights(spec)))


def logits(device: str, spec: ModelSpec, policy: Policy) -> torch.Tensor:
    engine = engine_on(device, spec)
    lane = engine.start(policy, engine.prefill(PROMPT), 4)
    return torch.stack([engine.step([lane], [token])[0] for token in PROMPT[:3]])


POLICIES = {name: policy_at(name, 8, len(PROMPT)) for name in policy_names()} | {"levels": LEVELS}


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
@pytest.mark.parametrize("spec", [LLAMA, OPT], ids=lambda spec: spec.family)
def test_nothing_is_left_on_the_cpu(spec: ModelSpec, policy: Policy) -> None:
    with PretendedGPU(), mock.patch.object(pages, "takes_kernels", lambda tensor: False):
        there = logits("cuda:0", spec, policy)
        assert there.device == GPU
    torch.testing.assert_close(there, logits("cpu", spec, policy), rtol=0, atol=0)


@pytest.mark.parametrize("policy", [SMALL, LEVELS, PAPER], ids=["one", "two", "paper"])
def test_pages_are_where_the_cache_is(policy: MPCache) -> None:
    """The decode steps for a GPU, their kernels taken by references."""
    want = logits("cpu", LLAMA, policy)
    attend = mock.Mock(side_effect=pages.Pages.attend)
    with (
        PretendedGPU(),
        mock.patch.object(pages, "takes_kernels", lambda tensor: True),
        mock.patch.object(triton_cache, "takes_kernels", lambda tensor: False),
        mock.patch.object(triton_choose, "takes_kernels", lambda tensor: False),
        mock.patch.object(pages.Pages, "attend", lambda *given: attend(*given)),
    ):
        got = logits("cuda:0", LLAMA, policy)
    assert attend.call_count == 3 * LLAMA.layers and placed(got)
    assert float((got - want).abs().max()) <= 1e-4


@pytest.mark.parametrize("task", ["perplexity", "agreement", "recall"])
def test_tasks_run_there(task: str) -> None:
    given = {("mpcache", 50.0): SMALL}
    figures = []
    for device in ("cuda:0", "cpu"):
        with PretendedGPU(), mock.patch.object(pages, "takes_kernels", lambda tensor: False):
            engine = engine_on(device, LLAMA)
            if task == "recall":
                (found,) = recall(engine, PROMPT, 4, given, lambda what: None)
            else:
                measure = getattr(tasks, task)
                (found,) = measure(engine, PROMPT, 4, given, 8, lambda what: None)
        figures.append(found)
    assert figures[0] == figures[1]


def test_the_pretended_device_refuses_what_a_gpu_would() -> None:
    with PretendedGPU():
        x = torch.ones(3, device="cuda")
        assert x.is_cuda and (x + x).device == GPU and x.cpu().device.type == "cpu"
        assert torch.ones(3).to(x).device == GPU and (x + torch.tensor(1.0)).is_cuda
        assert x.to(torch.float64).is_cuda and not x.to("cpu").is_cuda
        with pytest.raises(RuntimeError, match="on the CPU and on the GPU"):
            x + torch.ones(3)
        with pytest.raises(RuntimeError, match="on the CPU and on the GPU"):
            torch.cat([x, torch.ones(3)])
