"""Private files of a party: names, a store's header, and how they are checked and written."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FORMAT = 2
HEADER, INDEX, LOCK = "store.json", "index", "lock"
SEED, CORRECTIONS = "seed", "corrections"

Terms = Mapping[str, Any]
Mark = list[int]  # device, inode, time of change in nanoseconds


def digest_of(values: Any) -> str:
    """SHA-256 over plain values, as 64 hexadecimal digits."""
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def party_folder(folder: str | Path, rank: int) -> Path:
    """Where what was made for both parties puts that of party `rank`."""
    return Path(folder) / f"party-{rank}"


def too_open(folder: Path, path: Path, found: os.stat_result) -> str:
    """Why `path`, in `folder` or that itself, must not be used; empty where its owner alone may."""
    if not found.st_mode & 0o077:
        return ""
    return (
        f"holds secrets, and others may open {path.name} (mode {stat.S_IMODE(found.st_mode):o});"
        f" run chmod -R go= {folder}"
    )


def session_file(number: int, kind: str) -> str:
    """The name of a session's file."""
    return f"session-{number}.{kind}"


@dataclass(frozen=True)
class Part:
    """Length and SHA-256 of a file, by which damage shows."""

    nbytes: int
    sha256: str


@dataclass(frozen=True)
class Header:
    """What a store holds.

    Attributes:
        store: a random name, the same at all parties.
        terms: what a run must agree with, in the clear; `digest` is over them.
        sessions: by number, kind of a file -> its `Part`.
    """

    store: str
    rank: int
    terms: Terms
    sessions: tuple[Mapping[str, Part], ...]

    @property
    def digest(self) -> str:
        return digest_of(self.terms)

    def to_json(self) -> str:
        sessions = [
            {kind: [part.nbytes, part.sha256] for kind, part in parts.items()}
            for parts in self.sessions
        ]
        values = {
            "format": FORMAT,
            "store": self.store,
            "rank": self.rank,
            "terms": dict(self.terms),
            "digest": self.digest,
            "sessions": sessions,
        }
        return json.dumps({**values, "check": digest_of(values)}, indent=1) + "\n"

    @staticmethod
    def from_json(text: str) -> Header:
        """Raises ValueError, KeyError, TypeError or AttributeError on anything else."""
        values = json.loads(text)
        if values["format"] != FORMAT:
            raise ValueError(f"it has format {values['format']}, and this version reads {FORMAT}")
        if values.pop("check") != digest_of(values):
            raise ValueError("its checksum differs")
        sessions = tuple(
            {kind: Part(int(nbytes), str(sha256)) for kind, (nbytes, sha256) in parts.items()}
            for parts in values["sessions"]
        )
        return Header(str(values["store"]), int(values["rank"]), dict(values["terms"]), sessions)


def write_index(folder: Path, store: str, number: int, bound: Mapping[str, Mark] | None) -> None:
    """Replace the index of `folder`, durably: a reader sees the old one or the new one."""
    values = {"store": store, "next": number, "bound": bound}
    temporary = folder / f".{INDEX}.new"
    text = json.dumps({**values, "check": digest_of(values)}) + "\n"
    write_file(temporary, text.encode())
    os.replace(temporary, folder / INDEX)
    sync_folder(folder)


def write_file(path: Path, data: bytes) -> None:
    """Write a file that its owner alone may read, durably."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW
    with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def sync_folder(folder: Path) -> None:
    """Make durable which names a folder has."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
