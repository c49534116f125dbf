"""Small stores for tests: many sessions, a few bytes each, dealt by the real writer."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

from mpcache.parties.store import Session, Store
from mpcache.parties.store_writer import StoreWriter

TERMS = {"model": "tiny", "cache": {"policy": "full"}, "prompt_tokens": 81, "new_tokens": 16}


def seed_of(rank: int, number: int) -> bytes:
    """The seed that `stock` gives a party in a session."""
    return hashlib.sha256(f"{rank} {number}".encode()).digest()[:16]


def corrections_of(number: int, size: int = 300) -> bytes:
    return hashlib.shake_128(f"corrections {number}".encode()).digest(size)


def stock(folder: Path, sessions: int = 3) -> Path:
    """Deal a store to `folder`."""
    with StoreWriter(folder, TERMS) as writer:
        for number in range(sessions):
            with writer.session((seed_of(0, number), seed_of(1, number))) as write:
                write(memoryview(corrections_of(number))[:100])
                write(memoryview(corrections_of(number))[100:])
        writer.finish()
    return folder


def copy_over(source: Path, target: Path) -> None:
    """As a backup is restored: the same names, contents, modes and times of modification."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target, symlinks=True)


def claim(folder: Path, rank: int, number: int | None = None) -> Session:
    """Claim session `number`, the next if None, at one party alone."""
    store = Store(folder / f"party-{rank}", rank)
    return store.claim(store.next if number is None else number)


def names(folder: Path) -> set[str]:
    """The files of a folder."""
    return {path.name for path in folder.iterdir()}
