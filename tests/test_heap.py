"""What an evaluation frees goes back to the system."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import torch
from mpcache.evaluation.memory import free_at_once

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * 4096 >> 20

assert free_at_once()
torch.ones(8 << 20)  # 32 MiB: from now on such blocks lie on the heap
before, kept = resident(), []
for _ in range(20):
    large = torch.ones(7 << 20)  # 28 MiB
    kept.append(torch.ones(1 << 16))  # 256 kiB, behind it
    del large
print(resident() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_blocks_between_others_are_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 25  # 5 MiB are kept
