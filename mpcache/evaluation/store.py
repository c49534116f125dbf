"""Results, one JSON line each, so that a run that was stopped goes on where it was."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from mpcache.errors import UsageError

RESULTS, LOCK = "results.jsonl", ".lock"
Result = dict[str, Any]


@dataclass(frozen=True)
class Subject:
    """What is measured: one model on one text.

    Attributes:
        weights: where they come from.
        text: its digest.
        context, decode: tokens of a window, and how many of them are decoded.
        arithmetic: float or fixed.
    """

    model: str
    weights: str
    text: str
    context: int
    decode: int
    seed: int
    arithmetic: str


@dataclass(frozen=True)
class Cell:
    """One measurement: a task on one window under one policy at a budget in percent."""

    task: str
    subject: Subject
    policy: str
    budget: float
    window: int


class Store:
    """The results in a folder, for one run at a time: a context to be left at the end.

    Raises:
        UsageError: the folder cannot be made or written, holds something else, or is in use.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / RESULTS
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(
                f"the folder {folder} cannot be made: {error.strerror}; choose another with --out"
            ) from None
        if not os.access(folder, os.W_OK | os.X_OK) or (
            self.path.exists() and not os.access(self.path, os.W_OK)
        ):
            raise UsageError(f"the folder {folder} is not writable; choose another with --out")
        self._lock = (folder / LOCK).open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UsageError(
                f"another evaluation writes to {folder}; wait for it or choose another with --out"
            ) from None
        self.results, self._whole = read_results(self.path)

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.close()

    def __contains__(self, cell: Cell) -> bool:
        return cell in self.results

    def add(self, results: Mapping[Cell, Result]) -> None:
        """Append, and see that it is on the disk."""
        lines = []
        for cell, result in results.items():
            lines.append(json.dumps({**_flat(cell), "result": result}, allow_nan=False))
        with self.path.open("r+b" if self.path.exists() else "wb") as file:
            file.truncate(self._whole)  # a torn last line goes
            file.seek(self._whole)
            file.write("".join(f"{line}\n" for line in lines).encode())
            file.flush()
            os.fsync(file.fileno())
            self._whole = file.tell()
        self.results.update(results)


def _flat(cell: Cell) -> dict[str, Any]:
    values = asdict(cell)
    return {"task": values.pop("task"), **values.pop("subject"), **values}


def _cell(row: dict[str, Any]) -> Cell:
    subject = Subject(**{item.name: row[item.name] for item in fields(Subject)})
    return Cell(row["task"], subject, row["policy"], float(row["budget"]), int(row["window"]))


def read_results(path: Path) -> tuple[dict[Cell, Result], int]:
    """All whole lines, and how many bytes they are; what follows the last line's end is torn.

    Raises:
        UsageError: it cannot be read, or a whole line is no result.
    """
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return {}, 0
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    whole = content.rfind(b"\n") + 1
    results: dict[Cell, Result] = {}
    for number, line in enumerate(content[:whole].splitlines(), 1):
        try:
            row = json.loads(line)
            results[_cell(row)] = dict(row["result"])
        except (ValueError, KeyError, TypeError):
            raise UsageError(
                f"{path}: line {number} is no result of mpcache eval; repair it or choose another"
                " folder with --out"
            ) from None
    return results, whole
