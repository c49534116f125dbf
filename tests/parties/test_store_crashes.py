"""Crashes at every step of a claim, and random histories: no session of a store is read twice."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mpcache.errors import MpcacheError, UsageError
from mpcache.parties.store import Store

from .stocked import claim, copy_over, names, stock


class _Crash(BaseException):
    """The process ends here."""


class _Power:
    """Ends the process before or after the n-th call that touches the disk, and notes reads."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.left = -1
        self.after = False
        self.read: list[bytes] = []
        for name in ("open", "fsync", "replace", "unlink", "pread", "write"):
            monkeypatch.setattr(os, name, self._cut(name, getattr(os, name)))

    def _cut(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            self.left -= 1
            if self.left == 0 and not self.after:
                raise _Crash
            result = real(*arguments, **options)
            if name == "pread":
                self.read.append(result)
            if self.left == 0:
                if name == "open":
                    os.close(result)
                raise _Crash
            return result

        return call


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_crash_at_any_step_uses_no_session_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: int, after: bool
) -> None:
    folder = stock(tmp_path / "store", 60)
    power = _Power(monkeypatch)
    power.after = after
    claimed: list[int] = []
    crashes = 0
    for step in range(1, 60):
        power.left = step
        try:
            session = claim(folder, rank)
        except _Crash:
            crashes += 1
            continue
        session.close()
        claimed.append(session.number)
        if power.left > 0:
            break
    assert crashes >= 8 and claimed, "the steps were not all seen"
    power.left = -1
    for _ in range(3):
        session = claim(folder, rank)
        session.close()
        claimed.append(session.number)
    assert claimed == sorted(set(claimed))
    assert len(power.read) == len(set(power.read)) >= len(claimed)
    used = range(claimed[-1] + 1)
    left = {name for name in names(folder / f"party-{rank}") if name.startswith("session")}
    assert not any(f"session-{number}.seed" in left for number in used)


@pytest.mark.parametrize("seed", range(6))
def test_no_history_yields_a_number_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Claims, crashes, skips, restored backups and copies, in a random order at both parties.

    A party reads its seeds only after both have claimed; of two folders at most one is restored
    to what it was before its first use, as the peer's index then still counts.
    """
    chance = random.Random(seed)
    folder = stock(tmp_path / "store", 60)
    fresh, used = tmp_path / "fresh", [tmp_path / "backup-0", tmp_path / "backup-1"]
    restored = chance.randrange(2)
    shutil.copytree(folder / f"party-{restored}", fresh)
    power = _Power(monkeypatch)
    together: list[int] = []
    for _ in range(60):
        act = chance.choice(["claim", "claim", "claim", "backup", "restore", "fresh"])
        rank = chance.randrange(2)
        party = folder / f"party-{rank}"
        if act == "claim":
            steps = chance.choice([-1, -1, chance.randrange(1, 60)])
            together += _claim_both(folder, power, steps)
        elif act == "backup" and together:
            copy_over(party, used[rank])
        elif act == "restore" and used[rank].is_dir():
            _with_original_kept(party, used[rank], tmp_path)
        elif act == "fresh" and not together:
            copy_over(fresh, folder / f"party-{restored}")
    assert len(together) >= 3
    assert together == sorted(set(together))


def _claim_both(folder: Path, power: _Power, steps: int) -> list[int]:
    """One claim by both parties as they agree on it; the number if both came to its end."""
    with contextlib.ExitStack() as stack:
        try:
            stores = [
                stack.enter_context(contextlib.closing(Store(folder / f"party-{rank}", rank)))
                for rank in (0, 1)
            ]
            number = max(store.next for store in stores)
            power.left = steps
            sessions = [store.claim(number) for store in stores]
        except (_Crash, MpcacheError):
            return []
        finally:
            power.left = -1
        for session in sessions:
            session.close()
        return [number]


def _with_original_kept(party: Path, backup: Path, scratch: Path) -> None:
    """A used folder's backup cannot be opened where it is put back."""
    aside = scratch / "aside"
    party.rename(aside)
    shutil.copytree(backup, party)
    with pytest.raises(UsageError, match="copied, restored"):
        Store(party, int(party.name[-1]))
    shutil.rmtree(party)
    aside.rename(party)


def test_a_folder_that_cannot_be_written_uses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = stock(tmp_path / "store")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", full)
        with pytest.raises(MpcacheError, match=r"cannot be written .No space left on device."):
            claim(folder, 0)
    assert claim(folder, 0).number == 0
