"""A twin's decode steps through the kernels: interpreted, and on a device where there is one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run_cases(device: str, **environment: str) -> str:
    command = [sys.executable, "-m", "tests.eviction.pages_cases", device]
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_interpreter_gives_the_text_s_context() -> None:
    pytest.importorskip("triton")
    assert run_cases("cpu", TRITON_INTERPRET="1") == "equal\n"


@pytest.mark.gpu
def test_the_device_gives_the_text_s_context() -> None:
    assert run_cases("cuda") == "equal\n"
