"""The errors that end a run, each with the exit code that it ends with.

This module imports nothing from the package, so that every room may raise these.
"""

from __future__ import annotations


class MpcacheError(Exception):
    """A run failed: a peer, the wire or a check. Exit code 1."""

    exit_code = 1


class UsageError(MpcacheError):
    """The caller's input is wrong; found before any party starts. Exit code 2.

    The message says what was wrong, what was expected and what to do.
    """

    exit_code = 2


class PeerError(MpcacheError):
    """A peer died, stopped answering, or does not run the same program.

    Args:
        peer: the peer's name, such as ``party 1``.
        step: where this party was, such as ``decode/layer3/attention``.
        reason: what happened, in one sentence without secrets.
    """

    def __init__(self, peer: str, step: str, reason: str) -> None:
        super().__init__(f"{peer}: {reason} (at {step})")
        self.peer, self.step, self.reason = peer, step, reason
