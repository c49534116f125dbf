"""Results survive a stop, and no other setting's come along."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from mpcache.errors import UsageError
from mpcache.evaluation import runner, tasks
from mpcache.evaluation.store import RESULTS, Cell, Store, Subject, read_results
from mpcache.eviction.full import Full

from .tiny import call, source

SUBJECT = Subject("tiny", "drawn", "00ff", 64, 8, 0, "float")
CELL = Cell("perplexity", SUBJECT, "full", 100.0, 0)
OPTIONS = ("--policies", "mpcache", "--budgets", "30,60", "--context", 64, "--decode", 5)


def test_results_come_back(tmp_path: Path) -> None:
    other = replace(CELL, window=1)
    with Store(tmp_path) as store:
        store.add({CELL: {"nll": 1.5}})
        store.add({other: {"nll": 2.5}})
    with Store(tmp_path) as store:
        assert store.results == {CELL: {"nll": 1.5}, other: {"nll": 2.5}}
        assert replace(CELL, budget=50.0) not in store
        assert replace(CELL, subject=replace(SUBJECT, seed=1)) not in store


def test_a_torn_line_goes_and_the_rest_stays(tmp_path: Path) -> None:
    with Store(tmp_path) as store:
        store.add({CELL: {"nll": 1.5}})
    with (tmp_path / RESULTS).open("a") as file:
        file.write('{"task": "perplex')
    with Store(tmp_path) as store:
        assert list(store.results) == [CELL]
        store.add({replace(CELL, window=1): {"nll": 2.0}})
    found, whole = read_results(tmp_path / RESULTS)
    assert len(found) == 2 and whole == (tmp_path / RESULTS).stat().st_size


def test_a_line_that_is_no_result_is_named(tmp_path: Path) -> None:
    (tmp_path / RESULTS).write_text("{}\n")
    with pytest.raises(UsageError, match="line 1 is no result"):
        Store(tmp_path)


def test_one_run_at_a_time(tmp_path: Path) -> None:
    with Store(tmp_path), pytest.raises(UsageError, match="another evaluation"):
        Store(tmp_path)
    with Store(tmp_path):
        pass


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be made"):
        Store(tmp_path / "file" / "out")


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """What was measured: the first token of a window, and how many policies."""
    seen: list[tuple[int, int]] = []
    real = tasks.perplexity

    def noted(engine: Any, ids: Any, decode: int, policies: Any, *rest: Any) -> Any:
        for batch in real(engine, ids, decode, policies, *rest):
            seen.append((hash(tuple(ids)), len(batch)))
            yield batch

    monkeypatch.setattr(tasks, "perplexity", noted)
    monkeypatch.setattr(runner, "find", source)
    return seen


def _perplexity(out: Path, text: Path, *more: object) -> Any:
    done = call("perplexity", *OPTIONS, "--text", text, "--out", out, "--windows", 3, *more)
    assert done.exit_code == 0, done.output
    return json.loads((out / "perplexity.json").read_text())


def test_a_run_that_was_stopped_goes_on(
    tmp_path: Path, text: Path, measured: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _perplexity(tmp_path / "whole", text)
    assert [count for _, count in measured] == [3, 3, 3]
    first = list(measured)
    measured.clear()
    add = Store.add

    def dies(self: Store, results: Any) -> None:
        if len(self.results) >= 3:
            raise KeyboardInterrupt
        add(self, results)

    out = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        patch.setattr(Store, "add", dies)
        stopped = call("perplexity", *OPTIONS, "--text", text, "--out", out, "--windows", 3)
        assert stopped.exit_code == 130, stopped.output
    assert not (out / "perplexity.json").exists()
    measured.clear()
    resumed = _perplexity(out, text)
    assert measured == first[1:]
    assert resumed["rows"] == whole["rows"]
    measured.clear()
    assert _perplexity(out, text)["rows"] == whole["rows"] and measured == []


@pytest.mark.parametrize(
    "changed",
    [("--seed", 1), ("--decode", 6), ("--context", 70), ("--arithmetic", "fixed")],
    ids=lambda change: change[0],
)
def test_a_changed_setting_is_not_mixed_in(
    tmp_path: Path, text: Path, measured: list[Any], changed: tuple[str, object]
) -> None:
    before = _perplexity(tmp_path, text)
    measured.clear()
    after = _perplexity(tmp_path, text, *changed)
    assert [count for _, count in measured] == [3, 3, 3]
    assert after["subject"] != before["subject"]
    assert all(row["windows"] == 3 for row in after["rows"])


def test_a_policy_that_was_changed_is_measured_anew(
    tmp_path: Path, text: Path, measured: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    _perplexity(tmp_path, text)
    measured.clear()

    @dataclass(frozen=True)
    class Other(Full):
        strength: int = 3

    cells = runner.cells
    monkeypatch.setattr(
        runner, "cells", lambda *given: {**cells(*given), ("mpcache", 30.0): Other()}
    )
    rows = _perplexity(tmp_path, text)["rows"]
    assert [count for _, count in measured] == [1, 1, 1]
    ratios = {(row["policy"], row["budget"]): row["ratio"] for row in rows}
    assert ratios["mpcache", 30.0] == pytest.approx(1) != ratios["mpcache", 60.0]


def test_more_windows_and_budgets_add_to_what_is_there(
    tmp_path: Path, text: Path, measured: list[Any]
) -> None:
    _perplexity(tmp_path, text)
    measured.clear()
    rows = _perplexity(tmp_path, text, "--windows", 4, "--budgets", "30,60,90")["rows"]
    assert [count for _, count in measured] == [1, 1, 1, 4]
    assert len(rows) == 4 and {row["windows"] for row in rows} == {4}
