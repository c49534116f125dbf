"""A party's folder of correlations that were dealt ahead, each session of which is used once.

    store.json              the header: what was dealt, and length and SHA-256 of every file below
    session-N.seed          16 bytes, at both parties
    session-N.corrections   at party 1
    index                   the number of the next session; replaced as a whole
    lock                    held by the process that claims a session; never written

A session is claimed in this order, so that no crash, restart or copy can use it twice:

1. Hold the lock, agree on a number with the peer (`store_claim`).
2. Write the index with the number after it to a new file, make it durable, move it into place.
3. Open the session's files, check them, and delete them; make that durable.
4. Only now read them, from the open descriptors.

At the first claim the index notes device, inode and time of change (which no program can set) of
the lock and of every file that is left. A copy, a restored backup or a second name of a file
differs in one of them, and is refused.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import stat
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

from mpcache.errors import MpcacheError, UsageError
from mpcache.parties.store_files import (
    CORRECTIONS,
    HEADER,
    INDEX,
    LOCK,
    SEED,
    Header,
    Mark,
    Terms,
    digest_of,
    party_folder,
    session_file,
    sync_folder,
    too_open,
    write_index,
)

_PATIENCE = 3.0  # seconds for a process that was killed to let go of the lock
_MAX_TEXT = 1 << 26  # bytes of a header or an index
_AGAIN = "deal a new store with `mpcache deal --sessions`"


@dataclass(frozen=True)
class Session:
    """A claimed session. `corrections` is an open descriptor at party 1, None at party 0."""

    number: int
    of: int
    seed: bytes = field(repr=False)
    corrections: int | None
    dealt_bytes: int

    def close(self) -> None:
        if self.corrections is not None:
            with contextlib.suppress(OSError):
                os.close(self.corrections)


class Store:
    """One party's store, locked until a session is claimed or `close` is called.

    Args:
        trusted: checksums were compared by another process just now, and are not again.

    Raises:
        UsageError: it is no store, another party's, in use, damaged, copied, used up, or others
            may read it. Nothing was changed.
    """

    def __init__(self, folder: Path, rank: int, trusted: bool = False) -> None:
        self.folder, self.trusted = folder, trusted
        self._verified: set[int] = set()
        self._lock = -1
        self._check_mode(folder)
        self.header = self._read_header(rank)
        try:
            self._lock = self._take_lock()
            self._read_index()
            self.next = self._first_left()
        except BaseException:
            self.close()
            raise

    # --- reading -------------------------------------------------------------------------------

    def _refuse(self, why: str) -> NoReturn:
        raise UsageError(f"the store {self.folder} {why}")

    def _check_mode(self, path: Path) -> None:
        """Refuse what others may read or write, or what is not there."""
        try:
            found = path.lstat()
        except FileNotFoundError:
            if path == self.folder:
                self._refuse("does not exist; give the folder party-R that `mpcache deal` wrote")
            self._refuse(f"has no {path.name}: it is no store of a party, or damaged; {_AGAIN}")
        except OSError as error:
            self._refuse(f"cannot be read: {error.strerror}")
        if path == self.folder and not stat.S_ISDIR(found.st_mode):
            self._refuse("is no folder; give the folder party-R that `mpcache deal` wrote")
        if why := too_open(self.folder, path, found):
            self._refuse(why)

    def _read(self, name: str) -> str:
        path = self.folder / name
        self._check_mode(path)
        try:
            with path.open(encoding="utf-8") as file:
                return file.read(_MAX_TEXT)
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is no text"
            self._refuse(f"has a {name} that cannot be read: {why}; {_AGAIN}")

    def _read_header(self, rank: int) -> Header:
        if not (self.folder / HEADER).exists() and party_folder(self.folder, rank).is_dir():
            self._refuse(f"holds the stores of both parties; this one's is its party-{rank}")
        try:
            header = Header.from_json(self._read(HEADER))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            why = f": {error}" if type(error) is ValueError else ""
            self._refuse(f"has a {HEADER} that is damaged or of another version{why}; {_AGAIN}")
        if header.rank != rank:
            self._refuse(
                f"was dealt for party {header.rank}, and this is party {rank}; give the folder"
                f" party-{rank}"
            )
        return header

    def _take_lock(self) -> int:
        self._check_mode(self.folder / LOCK)
        end = time.monotonic() + _PATIENCE
        try:
            lock = os.open(self.folder / LOCK, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            self._refuse(f"has a {LOCK} that cannot be opened: {error.strerror}; {_AGAIN}")
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return lock
            except OSError as error:
                if error.errno != errno.EWOULDBLOCK or time.monotonic() > end:
                    os.close(lock)
                    self._refuse(
                        "is in use by another process; start again when that has its session"
                    )
            time.sleep(0.02)

    def _read_index(self) -> None:
        """The next number, and what the files were at first use; refuses a copy."""
        try:
            values = json.loads(self._read(INDEX))
            number, bound = values["next"], values["bound"]
            sound = values.pop("check") == digest_of(values) and type(number) is int and number >= 0
        except (ValueError, KeyError, TypeError, AttributeError):
            sound = False
        if not sound:
            self._refuse(f"has a damaged {INDEX}: which sessions are used is not known; {_AGAIN}")
        if values["store"] != self.header.store:
            self._refuse(f"has the {INDEX} of another store; {_AGAIN}")
        self._index: int = number
        self._bound: dict[str, Mark] | None = bound
        self._check_mark(LOCK, os.fstat(self._lock))

    def _check_mark(self, name: str, found: os.stat_result) -> None:
        """Refuse a file that is not the one that was here at first use."""
        if found.st_nlink != 1:
            self._refuse(
                f"shares its {name} with another folder (hard links): one of them may have been"
                f" used; {_AGAIN}"
            )
        if self._bound is not None and self._bound.get(name) != _mark(found):
            self._refuse(
                f"was copied, restored or changed since its first use ({name} is another"
                " file than then, by device, inode or time of change): a session could be used"
                f" twice; use it where it was first used, or {_AGAIN}"
            )

    def _present(self, number: int) -> bool:
        return all(
            os.path.lexists(self.folder / session_file(number, kind))
            for kind in self.header.sessions[number]
        )

    def _first_left(self) -> int:
        """The first session that is neither used nor taken away, its files' lengths checked."""
        total = len(self.header.sessions)
        number = self._index
        while number < total and not self._present(number):
            number += 1
        if number >= total:
            self._refuse(f"is used up: all of its {total} sessions are gone; {_AGAIN}")
        for descriptor in self._open(number).values():
            os.close(descriptor)
        return number

    # --- checking ------------------------------------------------------------------------------

    def check_terms(self, asked: Terms) -> None:
        """Refuse a run that is not the one that was dealt for; `asked` may leave terms out.

        Raises:
            UsageError: says which terms differ.
        """
        dealt = self.header.terms
        wrong = [name for name, value in asked.items() if dealt.get(name) != value]
        if not wrong:
            return
        lengths = {"prompt_tokens", "new_tokens"} & asked.keys()
        if set(wrong) <= lengths:
            words = {"prompt_tokens": "{} prompt tokens", "new_tokens": "{} new tokens"}
            shown = [
                " and ".join(words[name].format(terms[name]) for name in words if name in lengths)
                for terms in (dealt, asked)
            ]
            self._refuse(
                f"was dealt for {shown[0]}, and this run has {shown[1]}: lengths must be exactly"
                f" those; change the prompt or --max-new-tokens, or {_AGAIN}"
            )
        shown = [f"{name} {dealt.get(name)!r}, this run has {asked[name]!r}" for name in wrong]
        self._refuse(f"was dealt for another run: it has {'; '.join(shown)}; {_AGAIN}")

    def verify(self, number: int) -> None:
        """Read all of a session's files and compare their checksums; once.

        Raises:
            UsageError: a file is damaged.
        """
        if self.trusted or number in self._verified:
            return
        files = self._open(number)
        try:
            self._verify(number, files)
        finally:
            for descriptor in files.values():
                os.close(descriptor)

    def _verify(self, number: int, files: Mapping[str, int]) -> None:
        for kind, descriptor in files.items():
            if _sha256(descriptor) != self.header.sessions[number][kind].sha256:
                self._damaged(number, kind, "its checksum differs")
        self._verified.add(number)

    def _damaged(self, number: int, kind: str, why: str) -> NoReturn:
        name = session_file(number, kind)
        self._refuse(
            f"has a damaged {name}: {why}; delete that file at this party to go on with the next"
            f" session, or {_AGAIN}"
        )

    def _open(self, number: int) -> dict[str, int]:
        """Descriptors of a session's files, each the one that it was, and as long as it was."""
        files: dict[str, int] = {}
        try:
            for kind, part in self.header.sessions[number].items():
                name = session_file(number, kind)
                self._check_mode(self.folder / name)
                try:
                    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
                    files[kind] = os.open(self.folder / name, flags)
                except OSError as error:
                    self._damaged(number, kind, f"it cannot be opened ({error.strerror})")
                found = os.fstat(files[kind])
                self._check_mark(name, found)
                if not stat.S_ISREG(found.st_mode) or found.st_size != part.nbytes:
                    why = f"{found.st_size:,} bytes long instead of {part.nbytes:,}"
                    self._damaged(number, kind, why)
        except BaseException:
            for descriptor in files.values():
                os.close(descriptor)
            raise
        return files

    # --- claiming ------------------------------------------------------------------------------

    def claim(self, number: int) -> Session:
        """Take session `number`, `next` or a later one; those before it are given up.

        The store is closed afterwards, whatever happens.

        Raises:
            UsageError: the session's files are damaged, or not those of the first use.
            MpcacheError: the number is used, or the folder cannot be written.
        """
        with contextlib.closing(self):
            if self._lock < 0 or not self._index <= number < len(self.header.sessions):
                raise MpcacheError(f"session {number} of {self.folder} cannot be claimed any more")
            with self._writing():
                bound = self._bound if self._bound is not None else self._bind(number)
                write_index(self.folder, self.header.store, number + 1, bound)
            self._index = number + 1
            files = self._open(number)
            try:
                if not self.trusted and number not in self._verified:
                    self._verify(number, files)
                with self._writing():
                    self._delete(number)
                seed = os.pread(files[SEED], self.header.sessions[number][SEED].nbytes, 0)
            except BaseException:
                for descriptor in files.values():
                    os.close(descriptor)
                raise
            os.close(files[SEED])
            part = self.header.sessions[number].get(CORRECTIONS)
            return Session(
                number,
                len(self.header.sessions),
                seed,
                files.get(CORRECTIONS),
                part.nbytes if part else 0,
            )

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise MpcacheError(
                f"the store {self.folder} cannot be written ({error.strerror}), so that no session"
                " can be marked as used; none was used"
            ) from None

    def _bind(self, number: int) -> dict[str, Mark]:
        """What the lock and the files of all sessions from `number` on are, here and now."""
        marks = {LOCK: _mark(os.fstat(self._lock))}
        for later in range(number, len(self.header.sessions)):
            for kind in self.header.sessions[later]:
                name = session_file(later, kind)
                with contextlib.suppress(FileNotFoundError):
                    found = (self.folder / name).lstat()
                    self._check_mark(name, found)
                    marks[name] = _mark(found)
        return marks

    def _delete(self, number: int) -> None:
        """Delete the files of session `number` and of those before it."""
        there = set(os.listdir(self.folder))
        for used in range(number + 1):
            for kind in self.header.sessions[used]:
                if session_file(used, kind) in there:
                    os.unlink(self.folder / session_file(used, kind))
        sync_folder(self.folder)

    def close(self) -> None:
        """Let go of the lock. Claiming is over."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _mark(found: os.stat_result) -> Mark:
    return [found.st_dev, found.st_ino, found.st_ctime_ns]


def _sha256(descriptor: int) -> str:
    with open(os.dup(descriptor), "rb") as file:
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        file.seek(0)  # a duplicate shares its place with the original
        return digest
