"""What a party process and its launcher say to each other, on the party's standard streams.

The party writes events to stdout, one JSON object a line: ``{"event": kind, ...}``. A field
``where`` says how far it is, such as ``decode step 3``. The launcher writes one line of JSON with
the party's secrets to stdin (a command line can be read by anyone on the host) and keeps stdin
open: when it reaches its end the launcher is gone.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
from typing import IO, Any

from mpcache.errors import MpcacheError, PeerError, UsageError

MAX_SECRETS = 1 << 26  # characters


class Events:
    """Writes events to `stream`; once the reader has closed it, quietly drops them."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    @staticmethod
    def on_stdout() -> Events:
        """Events on this process's stdout; whatever else is printed goes to stderr from now on."""
        sys.stdout.flush()
        stream = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        return Events(stream)

    def emit(self, kind: str, **fields: Any) -> None:
        """Write one event. `fields` hold what JSON can: no secrets, no tensors."""
        line = json.dumps({"event": kind, **fields}) + "\n"
        with self._lock, contextlib.suppress(OSError, ValueError):
            self._stream.write(line)
            self._stream.flush()

    def error(self, error: BaseException) -> None:
        """Write the event with which a party ends: ``message``, ``exit_code``, ``peer``, ``step``.

        Of an exception that is not mpcache's own only the type is told: it may quote values.
        """
        if isinstance(error, PeerError):
            self.emit("error", message=str(error), exit_code=1, peer=error.peer, step=error.step)
        elif isinstance(error, MpcacheError):
            self.emit("error", message=str(error), exit_code=error.exit_code)
        else:
            self.emit("error", message=f"{type(error).__name__} (see its log)", exit_code=1)


def read_secrets(stdin: IO[str]) -> dict[str, Any]:
    """Read the one line of JSON that holds this party's secrets.

    Raises:
        UsageError: the line is missing or no JSON object; it is not quoted.
    """
    line = stdin.readline(MAX_SECRETS)
    try:
        secrets = json.loads(line)
    except ValueError:
        secrets = None
    if not isinstance(secrets, dict):
        raise UsageError(
            "expected one line with a JSON object of this party's secrets on stdin;"
            f" read {len(line)} characters that are none (an empty object is {{}})"
        )
    return secrets


def watch_parent(stdin: IO[str]) -> threading.Thread:
    """End this process with exit code 1 as soon as `stdin` ends: its launcher is gone."""

    def watch() -> None:
        # The descriptor itself: a thread that waits inside `stdin` would hold its lock at exit.
        with contextlib.suppress(OSError):
            while os.read(descriptor, 4096):
                pass
        with contextlib.suppress(OSError):
            os.write(2, b"mpcache: the launcher is gone; this party ends\n")
        os._exit(1)

    descriptor = stdin.fileno()
    thread = threading.Thread(target=watch, name="launcher", daemon=True)
    thread.start()
    return thread
