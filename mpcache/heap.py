"""Memory of a long evaluation: what is freed goes back to the system."""

from __future__ import annotations

import ctypes
import platform

M_MMAP_THRESHOLD = -3  # malloc.h of glibc
APART = 1 << 20  # bytes from which a block is a mapping of its own


def free_at_once() -> bool:
    """Have glibc map large blocks one by one, so that none keeps others from being given back.

    By itself it puts blocks of up to 32 MiB on one heap once such have been freed: attention
    weights of a layer and the caches behind them come to lie in turns, and what is freed between
    is lost. An evaluation of all policies grew to 10 GB that way.

    Returns:
        Whether it does; elsewhere than on glibc nothing is changed.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    return bool(ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, APART))
