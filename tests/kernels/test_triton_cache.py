"""The cache's kernels beside their references: interpreted, and on a device where there is one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mpcache.errors import UsageError
from mpcache.kernels import triton_cache as cache
from mpcache.kernels.triton_choose import choose

ROOT = Path(__file__).parents[2]


def run_cases(device: str, **environment: str) -> str:
    command = [sys.executable, "-m", "tests.kernels.triton_cache_cases", device]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_interpreter_agrees() -> None:
    pytest.importorskip("triton")
    assert run_cases("cpu", TRITON_INTERPRET="1") == "equal\n"


def test_the_references_pass_their_own_cases() -> None:
    assert run_cases("cpu", TRITON_INTERPRET="0") == "equal\n"


@pytest.mark.gpu
def test_the_device_agrees() -> None:
    assert run_cases("cuda") == "equal\n"


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_the_benchmark_s_ways_agree(dtype: str) -> None:
    pytest.importorskip("triton")
    shape = ("--tokens", "64", "--heads", "2", "--group", "2", "--head-dim", "16", "--size", "8")
    command = [sys.executable, "benchmarks/triton_cache.py", "--check", "--dtype", dtype, *shape]
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, "--keep", "0.5"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.stdout == "equal\n", done.stderr[-2000:]


def test_the_references_by_hand() -> None:
    keys = torch.tensor([[[1.0], [5.0], [3.0]]])
    most, least, mean = cache.summaries_reference(keys, 2)
    assert most.flatten().tolist() == [5, 3] and least.flatten().tolist() == [1, 3]
    assert mean.flatten().tolist() == [3, 3]
    values = torch.tensor([[[10.0], [20.0], [70.0]]])
    query = torch.zeros(1, 2, 1)
    chosen = torch.tensor([[[0], [1]]])
    got = cache.cluster_attention_reference(query, keys, values, chosen, 2)
    assert got.flatten().tolist() == [15, 70]
    both = cache.cluster_attention_reference(query, keys, values, torch.tensor([[[1, 0]]]), 2)
    assert both.flatten().tolist() == pytest.approx([100 / 3] * 2)


def test_all_clusters_chosen_is_plain_attention() -> None:
    generator = torch.Generator().manual_seed(1)
    queries = torch.randn(2, 3, 8, generator=generator)
    keys, values = (torch.randn(2, 21, 8, generator=generator) for _ in range(2))
    chosen = torch.arange(6).expand(2, 1, 6)
    want = torch.nn.functional.scaled_dot_product_attention(queries, keys, values)
    got = cache.cluster_attention(queries, keys, values, chosen, 4, 8**-0.5)
    torch.testing.assert_close(got, want, atol=1e-5, rtol=0)


def test_shapes_that_do_not_fit_are_refused() -> None:
    x = torch.zeros(2, 4, 8)
    chosen = torch.zeros(2, 4, 1, dtype=torch.int64)
    for wrong in (
        lambda: cache.summaries(x[0], 2),
        lambda: cache.summaries(x, 0),
        lambda: cache.similarities(x, x[:1]),
        lambda: cache.similarities(x, x[..., :4]),
        lambda: cache.cluster_attention(x, x, x[:, :2], chosen, 2),
        lambda: cache.cluster_attention(x, x, x, chosen[:, :2], 2),
        lambda: cache.cluster_attention(x, x, x, chosen.float(), 2),
        lambda: choose(x, x[:1], 1),
        lambda: choose(x, x, 5),
        lambda: choose(x, x, 2, torch.zeros(2, 4, 2)),
    ):
        with pytest.raises(UsageError, match="do not fit"):
            wrong()
