"""Whether freed memory goes back to the system, or stays for what comes next."""

from __future__ import annotations

import ctypes
import platform

# malloc.h of glibc
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -2, -3, -4
NEVER = -1  # trim
AT_ONCE = 1 << 28  # bytes by which the heap grows
APART = 1 << 20  # bytes from which a block is a mapping of its own


def free_at_once() -> bool:
    """Have glibc map large blocks one by one, so that none keeps others from being given back.

    By itself it puts blocks of up to 32 MiB on one heap once such have been freed: attention
    weights of a layer and the caches behind them come to lie in turns, and what is freed between
    is lost. An evaluation of all policies grew to 10 GB that way.

    Returns:
        Whether it does; elsewhere than on glibc nothing is changed.
    """
    return _set({M_MMAP_THRESHOLD: APART})


def keep_pages() -> bool:
    """Have glibc keep what is freed on its heap.

    In suite crypten tensors as big as the weights come and go at every product: mapping them anew
    takes a third of the time. At a dealer, whose masks come and go, it takes a fourth of OPT-1.3B's
    and less of smaller models'.

    Returns:
        Whether it does; elsewhere than on glibc nothing is changed.
    """
    return _set({M_MMAP_MAX: 0, M_TRIM_THRESHOLD: NEVER, M_TOP_PAD: AT_ONCE})


def _set(values: dict[int, int]) -> bool:
    if platform.libc_ver()[0] != "glibc":
        return False
    library = ctypes.CDLL(None)
    return all(library.mallopt(name, value) for name, value in values.items())
