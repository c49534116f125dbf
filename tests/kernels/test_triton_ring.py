"""The Triton ring product, bit for bit: in the interpreter, and on a device where there is one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from mpcache.errors import UsageError
from mpcache.kernels import triton_ring

ROOT = Path(__file__).parents[2]


def run_cases(device: str, **environment: str) -> str:
    command = [sys.executable, "-m", "tests.kernels.triton_cases", device]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_interpreter_gives_the_same_bits() -> None:
    pytest.importorskip("triton")
    assert run_cases("cpu", TRITON_INTERPRET="1") == "exact\n"


@pytest.mark.gpu
def test_the_device_gives_the_same_bits() -> None:
    assert run_cases("cuda") == "exact\n"


def test_without_triton_the_message_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_ring, "triton", None)
    x = torch.zeros((2, 3), dtype=torch.int64)
    with pytest.raises(UsageError, match=r"mpcache\[cuda\]"):
        triton_ring.triton_product(x, x.T)


def test_operands_that_do_not_fit_are_refused() -> None:
    pytest.importorskip("triton")
    x = torch.zeros((2, 3), dtype=torch.int64)
    for left, right, out in (
        (x.float(), x.T, None),
        (x, x.T.to(torch.int8), None),
        (x, x, None),
        (x.expand(2, 2, 3), x.T.expand(3, 3, 2), None),
        (x, x.T, torch.zeros((2, 3), dtype=torch.int64)),
    ):
        with pytest.raises(UsageError):
            triton_ring.triton_product(left, right, out)
