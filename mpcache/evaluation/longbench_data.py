"""Records of long-context data sets: the published JSON lines, checked line by line."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mpcache.config_layers import read_text
from mpcache.errors import UsageError
from mpcache.evaluation.longbench_prompts import TASKS

XSUM = "xsum"
CHINESE = ("multifieldqa_zh", "dureader", "vcsum", "lsht", "passage_retrieval_zh")


@dataclass(frozen=True)
class Record:
    """A question about a text, and the answers that are right; `classes` where it asks for one."""

    name: str
    context: str
    question: str
    answers: tuple[str, ...]
    classes: tuple[str, ...]


@dataclass(frozen=True)
class DataSet:
    """The records of a file. `label` is the file's name, `task` the data set it belongs to."""

    label: str
    task: str
    records: tuple[Record, ...]


def read_folder(folder: Path) -> list[DataSet]:
    """Every ``*.jsonl`` of a folder, in the order of their names.

    Raises:
        UsageError: no folder, no file, or a file with a mistake, named with its line.
    """
    if not folder.is_dir():
        raise UsageError(f"--data {folder}: no such folder; expected one with LongBench's *.jsonl")
    files = sorted(folder.glob("*.jsonl"))
    if not files:
        raise UsageError(
            f"--data {folder} has no *.jsonl; expected LongBench's files, such as qasper.jsonl"
        )
    return [read_file(file) for file in files]


def read_file(path: Path) -> DataSet:
    """The records of one file; all belong to one data set."""
    if not re.fullmatch(r"[\w-]+", path.stem):
        raise UsageError(f"{path}: expected a file name of letters, digits, - and _")
    records: list[Record] = []
    tasks: list[str] = []
    # Not splitlines: a text may hold other line ends than this one.
    for number, line in enumerate(read_text(str(path), "the data file").split("\n"), 1):
        if not line.strip():
            continue
        row = _Row(path, number, line)
        task = row.task()
        if tasks and task != tasks[0]:
            raise row.wrong(f"the data set is {task!r}, that of the first record is {tasks[0]!r}")
        tasks.append(task)
        records.append(row.record(task, f"{number}"))
    if not records:
        raise UsageError(f"{path} is empty; expected one JSON object a line")
    return DataSet(path.stem, tasks[0], tuple(records))


class _Row:
    """One line, read field by field."""

    def __init__(self, path: Path, number: int, line: str) -> None:
        self.path, self.number = path, number
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            raise self.wrong("no valid JSON; expected one object a line") from None
        if not isinstance(values, dict):
            raise self.wrong("expected a JSON object")
        self.values: dict[str, Any] = values

    def wrong(self, what: str) -> UsageError:
        return UsageError(f"{self.path}: line {self.number}: {what}")

    def text(self, name: str, empty: bool = False) -> str:
        if name not in self.values:
            raise self.wrong(f"the field {name!r} is missing; {EXPECTED}")
        value = self.values[name]
        if not isinstance(value, str) or not (empty or value.strip()):
            raise self.wrong(
                f"the field {name!r} is not a {'text' if empty else 'text with words'}"
            )
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        value = self.values.get(name)
        if not isinstance(value, list) or not value or not all(isinstance(v, str) for v in value):
            raise self.wrong(f"the field {name!r} is not a list of texts, one at least")
        return tuple(value)

    def task(self) -> str:
        if "document" in self.values and "summary" in self.values:
            return XSUM
        name = self.values.get("dataset", self.path.stem)
        task = name.removesuffix("_e") if isinstance(name, str) else ""
        if task in CHINESE:
            raise self.wrong(
                f"{task} is Chinese, whose words are not told apart here; leave it out"
            )
        if task not in TASKS or task == XSUM:
            known = ", ".join(sorted(set(TASKS) - {XSUM}))
            raise self.wrong(f"the data set {name!r} is unknown; expected one of {known}")
        return task

    def record(self, task: str, number: str) -> Record:
        if task == XSUM:
            name = str(self.values.get("id", number))
            return Record(name, self.text("document"), "", (self.text("summary"),), ())
        classes: tuple[str, ...] = ()
        if TASKS[task].metric == "classification" or self.values.get("all_classes") is not None:
            classes = self.texts("all_classes")
        name = str(self.values.get("_id", number))
        question = self.text("input", empty=True)
        return Record(name, self.text("context"), question, self.texts("answers"), classes)


EXPECTED = "expected LongBench's input, context and answers, or XSUM's document and summary"
