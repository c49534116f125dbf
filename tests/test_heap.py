"""What is freed goes back to the system, or stays."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import torch
from mpcache.heap import free_at_once

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

STAYING = """
import resource
import torch
from mpcache.heap import keep_pages

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def use():
    for _ in range(10):
        torch.ones(16 << 20)  # 64 MiB: by themselves mapped anew each time

if {keep}:
    assert keep_pages()
use()
before = faults()
use()
print(faults() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_blocks_between_others_are_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 25  # 5 MiB are kept


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_pages_that_are_kept_are_not_mapped_anew() -> None:
    kept, fresh = (
        int(subprocess.check_output([sys.executable, "-c", STAYING.format(keep=keep)]))
        for keep in (True, False)
    )
    assert fresh > 10 * (kept + 1)
