"""The machine that a number was measured on, without anything that names it."""

from __future__ import annotations

import os
import platform
import resource
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any


def describe_machine() -> dict[str, Any]:
    """CPU model, cores, memory in bytes, and versions; no host or user name."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else _cores(),
        "memory_bytes": _memory(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": _version("torch"),
        "crypten": _version("crypten"),
    }


def peak_memory_bytes() -> int:
    """The most memory that this process has had resident, in bytes, shared pages included.

    On Linux from the kernel's account of this program alone: `ru_maxrss` there begins with what the
    process that started it held.
    """
    try:
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def memory_in_use(pids: Sequence[int]) -> int | None:
    """Bytes resident in all these processes at this moment; None where the system does not say.

    What each has to itself, and once the pages of files and shared memory of the one that has most
    of them: they may be the same pages in all.
    """
    if not Path("/proc/self/statm").exists():
        return None
    page, own, shared = os.sysconf("SC_PAGE_SIZE"), 0, 0
    for pid in pids:
        try:
            fields = Path(f"/proc/{pid}/statm").read_text().split()
        except OSError:
            continue  # it has ended
        resident, common = int(fields[1]) * page, int(fields[2]) * page
        own, shared = own + resident - common, max(shared, common)
    return own + shared


class Together:
    """The most memory that processes have had at one time, as far as it was looked at."""

    def __init__(self) -> None:
        self.most: int | None = None

    def look(self, pids: Sequence[int]) -> None:
        """Look at this process and those of `pids` now."""
        found = memory_in_use([os.getpid(), *pids])
        if found is not None:
            self.most = max(self.most or 0, found)


def _cores() -> int:
    return os.cpu_count() or 1


def _cpu_model() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
