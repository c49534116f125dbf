"""The dealer's side of a store: both parties' folders, written aside and moved into place whole."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType

from mpcache.errors import MpcacheError, UsageError
from mpcache.parties.store_files import (
    CORRECTIONS,
    HEADER,
    LOCK,
    SEED,
    Header,
    Part,
    Terms,
    session_file,
    sync_folder,
    write_file,
    write_index,
)

PARTIES = 2


class StoreWriter:
    """Writes a store; as a context manager it leaves nothing behind unless `finish` was called.

    The folder that is written has another, hidden name until all of it is durable, and headers
    come last: what an interrupted dealer leaves can be used by nobody.

    Args:
        folder: where ``party-0`` and ``party-1`` shall be; missing or empty.
        terms: what runs must agree with, as plain values.

    Raises:
        UsageError: `folder` exists and is not empty, or cannot be made.
        MpcacheError: the disk is full or cannot be written (from every method).
    """

    def __init__(self, folder: Path, terms: Terms) -> None:
        self.folder, self.terms = folder, terms
        self._aside = folder.parent / f".{folder.name}.partial-{secrets.token_hex(4)}"
        self._sessions: list[list[Mapping[str, Part]]] = [[] for _ in range(PARTIES)]
        check_target(folder)

    def __enter__(self) -> StoreWriter:
        try:
            for path in (self._aside, *map(self._party, range(PARTIES))):
                path.mkdir(mode=0o700)
                path.chmod(0o700)
        except OSError as error:
            self._remove()
            raise UsageError(
                f"the store {self.folder} cannot be made: {error.strerror}; choose another folder"
                " with --store"
            ) from None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._remove()

    def _remove(self) -> None:
        shutil.rmtree(self._aside, ignore_errors=True)

    def _party(self, rank: int) -> Path:
        return self._aside / f"party-{rank}"

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise MpcacheError(
                f"the store {self.folder} cannot be written: {error.strerror}; nothing of it was"
                " kept"
            ) from None

    @contextlib.contextmanager
    def session(self, seeds: tuple[bytes, bytes]) -> Iterator[Callable[[memoryview], None]]:
        """Add a session; inside, the function that is given appends party 1's corrections."""
        number = len(self._sessions[0])
        path = self._party(1) / session_file(number, CORRECTIONS)
        hashed, size = hashlib.sha256(), 0
        with self._writing(), _create(path) as descriptor:

            def write(data: memoryview) -> None:
                nonlocal size
                hashed.update(data)
                size += len(data)
                with self._writing():
                    while data:
                        data = data[os.write(descriptor, data) :]

            yield write
            os.fsync(descriptor)
        for rank, seed in enumerate(seeds):
            with self._writing():
                write_file(self._party(rank) / session_file(number, SEED), seed)
            parts = {SEED: Part(len(seed), hashlib.sha256(seed).hexdigest())}
            if rank == 1:
                parts[CORRECTIONS] = Part(size, hashed.hexdigest())
            self._sessions[rank].append(parts)

    def finish(self) -> list[int]:
        """Write headers, make all durable, and move the store into place.

        Returns:
            The bytes of each party's sessions.
        """
        store = secrets.token_hex(16)
        with self._writing():
            for rank, sessions in enumerate(self._sessions):
                folder = self._party(rank)
                write_file(folder / LOCK, b"")
                write_index(folder, store, 0, None)
                header = Header(store, rank, self.terms, tuple(sessions))
                write_file(folder / HEADER, header.to_json().encode())
                sync_folder(folder)
            sync_folder(self._aside)
            os.rename(self._aside, self.folder)
            sync_folder(self.folder.parent)
        return [
            sum(part.nbytes for parts in sessions for part in parts.values())
            for sessions in self._sessions
        ]


def check_target(folder: Path) -> None:
    """Refuse a folder that holds something, or cannot be made where it is asked for.

    Raises:
        UsageError: says which.
    """
    try:
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            raise UsageError(f"{folder} is not a folder; choose another with --store")
        if folder.is_dir() and any(folder.iterdir()):
            raise UsageError(
                f"{folder} is not empty: a store is never added to; choose another with --store"
            )
    except OSError as error:
        raise UsageError(f"{folder} cannot be read: {error.strerror}") from None
    if not folder.parent.is_dir() or not os.access(folder.parent, os.W_OK | os.X_OK):
        raise UsageError(
            f"{folder.parent} is not a writable folder, so that the store {folder} cannot be made;"
            " choose another with --store"
        )


@contextlib.contextmanager
def _create(path: Path) -> Iterator[int]:
    """A new file that its owner alone may read, open for writing."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.fchmod(descriptor, 0o600)
        yield descriptor
    finally:
        os.close(descriptor)
