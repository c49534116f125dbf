"""Sleeping until a point in time, to some microseconds: emulated networks are as short as 150."""

from __future__ import annotations

import ctypes
import sys
import threading
import time

_SLACK = 29  # PR_SET_TIMERSLACK
_SPIN = 20e-6  # seconds before the end that are not slept
_tuned = threading.local()


def _tune() -> None:
    """Ask the kernel to wake this thread on time; Linux wakes 50 microseconds late otherwise."""
    if getattr(_tuned, "done", False):
        return
    _tuned.done = True
    if sys.platform == "linux":
        try:
            ctypes.CDLL(None).prctl(_SLACK, 1, 0, 0, 0)
        except (OSError, AttributeError):
            return


def wait_until(moment: float) -> None:
    """Return at `moment`, in seconds of `time.monotonic`; at once if it is past."""
    left = moment - time.monotonic()
    if left <= 0:
        return
    _tune()
    if left > _SPIN:
        time.sleep(left - _SPIN)
    while time.monotonic() < moment:
        pass
