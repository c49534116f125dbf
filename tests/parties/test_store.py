"""A store's files: what is dealt, what is refused and why, what an interrupted dealer leaves."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from mpcache.errors import MpcacheError, UsageError
from mpcache.parties import store as store_module
from mpcache.parties.store import Session, Store
from mpcache.parties.store_files import digest_of
from mpcache.parties.store_writer import StoreWriter

from .stocked import TERMS, claim, corrections_of, names, seed_of, stock


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A store of three sessions; in the end nobody holds a lock, whatever was refused."""
    folder = stock(tmp_path / "store")
    yield folder
    for lock in folder.glob("party-*/lock"):
        with lock.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def corrections(session: Session) -> bytes:
    assert session.corrections is not None
    with open(session.corrections, "rb") as file:
        return file.read()


# --- what is dealt is what is claimed ------------------------------------------------------------


def test_sessions_come_in_order_each_with_its_own_files(folder: Path) -> None:
    for number in range(3):
        for rank in (0, 1):
            session = claim(folder, rank)
            assert (session.number, session.of, session.seed) == (number, 3, seed_of(rank, number))
            assert session.dealt_bytes == (300 if rank else 0)
            if rank:
                assert corrections(session) == corrections_of(number)
            else:
                assert session.corrections is None
            assert session.seed.hex() not in repr(session) and str(session.seed) not in repr(
                session
            )
    for rank in (0, 1):
        with pytest.raises(UsageError, match="is used up: all of its 3 sessions are gone"):
            Store(folder / f"party-{rank}", rank)
        assert names(folder / f"party-{rank}") == {"store.json", "index", "lock"}


def test_files_are_for_their_owner_alone(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} == {"party-0", "party-1"}
    for path in folder.rglob("*"):
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600)
    assert not any("corrections" in name for name in names(folder / "party-0"))
    whole = b"".join(path.read_bytes() for path in (folder / "party-0").iterdir())
    assert seed_of(1, 0) not in whole


def test_sessions_that_are_passed_over_are_deleted(folder: Path) -> None:
    assert claim(folder, 0, 1).number == 1
    assert names(folder / "party-0") == {"store.json", "index", "lock", "session-2.seed"}
    with pytest.raises(MpcacheError, match=r"session 1 of .* cannot be claimed any more"):
        claim(folder, 0, 1)
    assert claim(folder, 0).number == 2


def test_a_session_that_was_taken_away_is_passed_over(folder: Path) -> None:
    (folder / "party-1" / "session-0.seed").unlink()
    session = claim(folder, 1)
    assert session.number == 1
    session.close()


def test_a_store_is_locked_until_its_session_is_claimed(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_module, "_PATIENCE", 0.05)
    first = Store(folder / "party-0", 0)
    with pytest.raises(UsageError, match="is in use by another process"):
        Store(folder / "party-0", 0)
    first.claim(0)
    second = Store(folder / "party-0", 0)
    with pytest.raises(MpcacheError, match="cannot be claimed"):
        first.claim(1)
    assert second.claim(1).number == 1


# --- refusals ------------------------------------------------------------------------------------


def _edit(name: str, change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """Change a file's JSON, with a checksum that fits."""

    def apply(party: Path) -> None:
        values = json.loads((party / name).read_text())
        del values["check"]
        change(values)
        (party / name).write_text(json.dumps({**values, "check": digest_of(values)}))

    return apply


def _rewrite(name: str, data: bytes) -> Callable[[Path], object]:
    return lambda party: (party / name).write_bytes(data)


def _link(party: Path) -> None:
    os.link(party / "session-0.corrections", party.parent / "second-name")


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, "does not exist; give the folder party-R"),
    "no header": (lambda p: (p / "store.json").unlink(), "has no store.json: it is no store"),
    "no index": (lambda p: (p / "index").unlink(), "has no index"),
    "no lock": (lambda p: (p / "lock").unlink(), "has no lock"),
    "a header that is no JSON": (_rewrite("store.json", b"{"), "has a store.json that is damaged"),
    "a header that is no text": (_rewrite("store.json", b"\xff"), "store.json that cannot be read"),
    "a list as header": (_rewrite("store.json", b"[1]"), "has a store.json that is damaged"),
    "an edited header": (
        lambda p: (p / "store.json").write_text(
            (p / "store.json").read_text().replace('"new_tokens": 16', '"new_tokens": 17')
        ),
        "its checksum differs",
    ),
    "another format": (
        _edit("store.json", lambda v: v.update(format=1)),
        "it has format 1, and this version reads 2",
    ),
    "a broken index": (_rewrite("index", b"{"), "damaged index: which sessions are used is not"),
    "an empty index": (_rewrite("index", b""), "damaged index"),
    "an edited index": (
        lambda p: (p / "index").write_text((p / "index").read_text().replace("0", "1", 1)),
        "damaged index",
    ),
    "a negative number": (_edit("index", lambda v: v.update(next=-1)), "damaged index"),
    "another store's index": (
        _edit("index", lambda v: v.update(store="0" * 32)),
        "has the index of another store",
    ),
    "a truncated file": (
        lambda p: os.truncate(p / "session-0.corrections", 200),
        "damaged session-0.corrections: 200 bytes long instead of 300; delete that file",
    ),
    "a longer file": (_rewrite("session-0.seed", b"x" * 17), "17 bytes long instead of 16"),
    "a symbolic link": (
        lambda p: (
            (p / "session-0.seed").rename(p.parent / "elsewhere"),
            (p / "session-0.seed").symlink_to(p.parent / "elsewhere"),
        ),
        "session-0.seed",
    ),
    "a hard link": (_link, "shares its session-0.corrections with another folder (hard links)"),
    "an open folder": (lambda p: p.chmod(0o750), "others may open party-1 (mode 750); run chmod"),
    "an open header": (lambda p: (p / "store.json").chmod(0o604), "others may open store.json"),
    "an open file": (
        lambda p: (p / "session-0.corrections").chmod(0o640),
        "others may open session-0.corrections (mode 640); run chmod -R go= ",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_cannot_be_used_is_refused_and_left_as_it_is(folder: Path, damage: str) -> None:
    spoil, message = DAMAGE[damage]
    party = folder / "party-1"
    spoil(party)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(UsageError, match=re.escape(message)) as refusal:
        Store(party, 1)
    assert refusal.value.exit_code == 2
    assert seed_of(1, 0).hex() not in str(refusal.value)
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_another_partys_store(folder: Path) -> None:
    with pytest.raises(UsageError, match="was dealt for party 1, and this is party 0; give the"):
        Store(folder / "party-1", 0)
    with pytest.raises(UsageError, match=r"holds the stores of both parties; .* party-0"):
        Store(folder, 0)


@pytest.mark.parametrize("name", ["session-0.seed", "session-0.corrections"])
def test_a_flipped_bit(folder: Path, name: str) -> None:
    path = folder / "party-1" / name
    data = bytearray(path.read_bytes())
    data[7] ^= 4
    path.write_bytes(data)
    with contextlib.closing(Store(folder / "party-1", 1)) as store:
        with pytest.raises(UsageError, match=rf"damaged {name}: its checksum differs; delete"):
            store.verify(0)
        store.verify(1)
    with pytest.raises(UsageError, match="its checksum differs"):
        claim(folder, 1)
    session = claim(folder, 1)  # the damaged session was marked as used before it was read
    assert (session.number, corrections(session)) == (1, corrections_of(1))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({}, None),
        ({"prompt_tokens": 81}, None),
        (
            {"prompt_tokens": 90, "new_tokens": 16},
            "was dealt for 81 prompt tokens and 16 new tokens, and this run has 90 prompt tokens"
            " and 16 new tokens",
        ),
        ({"new_tokens": 8}, "was dealt for 16 new tokens, and this run has 8 new tokens"),
        (
            {"cache": {"policy": "mpcache"}, "model": "tiny"},
            "was dealt for another run: it has cache {'policy': 'full'}, this run has {'policy':"
            " 'mpcache'}",
        ),
        ({"ring": 16}, "it has ring None, this run has 16"),
    ],
)
def test_terms(folder: Path, asked: dict[str, Any], message: str | None) -> None:
    with contextlib.closing(Store(folder / "party-0", 0)) as store:
        if message is None:
            store.check_terms(asked)
        else:
            with pytest.raises(UsageError, match=re.escape(message)):
                store.check_terms(asked)


def test_a_copy_is_refused_once_the_store_was_used(folder: Path, tmp_path: Path) -> None:
    claim(folder, 0)
    shutil.copytree(folder / "party-0", tmp_path / "copy")
    with pytest.raises(UsageError, match="was copied, restored or changed since its first use"):
        Store(tmp_path / "copy", 0)
    (folder / "party-0").rename(tmp_path / "moved")  # the same files, on the same disk
    assert claim_at(tmp_path / "moved").number == 1


def claim_at(party: Path) -> Session:
    store = Store(party, 0)
    return store.claim(store.next)


def test_a_copy_by_hard_links_is_refused_before_the_first_use(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "party-0", tmp_path / "copy", copy_function=os.link)
    for party in (folder / "party-0", tmp_path / "copy"):
        with pytest.raises(UsageError, match="hard links"):
            Store(party, 0)


def test_a_restored_index_brings_nothing_back(folder: Path) -> None:
    party = folder / "party-1"
    early = (party / "index").read_bytes()
    claim(folder, 1).close()
    (party / "index").write_bytes(early)
    session = claim(folder, 1)
    assert session.number == 1
    session.close()


def test_a_restored_file_is_refused(folder: Path, tmp_path: Path) -> None:
    """Files and index of a used session are put back, next to the lock that is still there."""
    party = folder / "party-0"
    claim(folder, 0)
    shutil.copytree(party, tmp_path / "backup")
    claim(folder, 0)
    for path in (tmp_path / "backup").iterdir():
        if path.name != "lock":
            shutil.copy2(path, party)
    with pytest.raises(UsageError, match=r"restored .* \(session-1.seed is another file than then"):
        Store(party, 0)


# --- the writer ----------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", ["first session", "later", "before the end"])
def test_an_interrupted_dealer_leaves_nothing(tmp_path: Path, stage: str) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        StoreWriter(tmp_path / "store", TERMS) as writer,
    ):
        for number in range(2):
            with writer.session((seed_of(0, number), seed_of(1, number))) as write:
                write(memoryview(b"abc"))
                if stage == "first session" or (stage == "later" and number):
                    raise KeyboardInterrupt
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_a_killed_dealer_leaves_nothing_that_can_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is left when nobody can clean up has no header, and another name."""
    monkeypatch.setattr(StoreWriter, "_remove", lambda self: None)
    with pytest.raises(KeyboardInterrupt), StoreWriter(tmp_path / "store", TERMS) as writer:
        with writer.session((seed_of(0, 0), seed_of(1, 0))) as write:
            write(memoryview(b"abc"))
        raise KeyboardInterrupt
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".store.partial-")
    with pytest.raises(UsageError, match=r"has no store.json"):
        Store(left / "party-0", 0)


def test_a_full_disk_is_one_clear_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(MpcacheError, match=r"store cannot be written: No space left .* nothing"):
        stock(tmp_path / "store")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_in_it_is_never_written_to(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not empty: a store is never added to"):
        stock(folder)
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="is not a folder"):
        stock(tmp_path / "file")
    with pytest.raises(UsageError, match="is not a writable folder"):
        stock(tmp_path / "none" / "store")
    (tmp_path / "empty").mkdir()
    stock(tmp_path / "empty")
    assert claim(tmp_path / "empty", 0).number == 0
