"""How parties are called in messages, and how a peer's text is shown."""

from __future__ import annotations

from collections.abc import Iterable

MAX_TEXT = 200  # characters


def peer_name(rank: int) -> str:
    """The name of party `rank`, such as ``party 1``."""
    return f"party {rank}"


def any_of(ranks: Iterable[int]) -> str:
    """``party 1 or party 2``: a peer of which the rank is not known yet."""
    return " or ".join(peer_name(rank) for rank in ranks)


def printable(text: str, limit: int = MAX_TEXT) -> str:
    """`text` from a peer, made safe for a terminal: one line of printable characters."""
    return "".join(c if c.isprintable() else "?" for c in text[:limit])
