"""Ctrl-C waits until a write has ended: so a party knows what went out, and can say why it stops.

Python raises KeyboardInterrupt inside a write to a TLS socket after its bytes are out, and how many
they were is lost; whatever were sent next would end up in the middle of a frame.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_main = threading.main_thread().ident
_writing = _came = False


@contextmanager
def between_writes() -> Iterator[None]:
    """In here an interrupt is raised between writes; where somebody else handles it, nothing
    changes."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield
        return
    signal.signal(signal.SIGINT, _interrupted)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _interrupted(number: int, frame: Any) -> None:
    global _came
    if _writing:
        _came = True
    else:
        raise KeyboardInterrupt


def begin_write() -> None:
    """Before a write; interrupts are the main thread's, and others' writes hold none up."""
    global _writing
    _writing = _writing or threading.get_ident() == _main


def end_write() -> None:
    """After it.

    Raises:
        KeyboardInterrupt: it came meanwhile.
    """
    global _writing, _came
    if threading.get_ident() == _main:
        _writing = False
        if _came:
            _came = False
            raise KeyboardInterrupt
