"""What this processor can do, as the compiler behind numba sees it."""

from __future__ import annotations

import ctypes
import functools
import platform
import sys

_ARCH_PRCTL = 158  # x86-64 system call number
_ARCH_REQ_XCOMP_PERM = 0x1023
_XFEATURE_XTILEDATA = 18


@functools.cache
def features() -> frozenset[str]:
    """Names of the instruction sets that compiled kernels may use, as LLVM spells them."""
    from llvmlite import binding
    from numba import config

    listed = getattr(config, "CPU_FEATURES", None)
    if listed is None:
        try:
            listed = binding.get_host_cpu_features().flatten()
        except RuntimeError:  # LLVM does not know this processor
            listed = ""
    return frozenset(name[1:] for name in listed.split(",") if name.startswith("+"))


@functools.cache
def has_int8_dot() -> bool:
    """Whether int8 products have their own instructions (VNNI, AMX, or Arm's dot product)."""
    return bool(features() & {"avx512vnni", "avxvnni", "amx-int8", "dotprod", "i8mm"})


@functools.cache
def has_wide_product() -> bool:
    """Whether one instruction multiplies eight int64 (AVX-512DQ)."""
    return {"avx512f", "avx512dq"} <= features()


@functools.cache
def has_aes() -> bool:
    """Whether rounds of AES have their own instructions (AES-NI)."""
    return platform.machine() in ("x86_64", "AMD64") and "aes" in features()


@functools.cache
def has_amx() -> bool:
    """Whether int8 tile products can be used by this process.

    Linux hands out the tile registers on request only (its documentation: arch/x86/xstate); the
    permission holds for all threads of the process.
    """
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    if not {"amx-int8", "amx-tile"} <= features():
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    request = (ctypes.c_long(_ARCH_REQ_XCOMP_PERM), ctypes.c_long(_XFEATURE_XTILEDATA))
    return libc.syscall(ctypes.c_long(_ARCH_PRCTL), *request) == 0
