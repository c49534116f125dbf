"""Standard errors by hand, and tables that say what the rows say."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from mpcache.evaluation import runner, tables
from mpcache.evaluation.store import Cell, Subject
from mpcache.evaluation.summary import mean_and_error, summarise
from mpcache.eviction.registry import policy_names

from .tiny import call, source

SUBJECT = Subject("tiny", "drawn", "00ff", 64, 8, 0, "float")


def results(task: str, rows: dict[tuple[str, float], list[dict[str, Any]]]) -> dict[Cell, Any]:
    return {
        Cell(task, SUBJECT, name, budget, window): {"stored": 8, "attended": 4.0, **result}
        for (name, budget), many in rows.items()
        for window, result in enumerate(many)
    }


def test_mean_and_standard_error_by_hand() -> None:
    assert mean_and_error([2.0]) == (2.0, None)
    mean, error = mean_and_error([1.0, 2.0, 6.0])
    assert mean == 3.0
    assert error == pytest.approx(math.sqrt((4 + 1 + 9) / 2 / 3))


def test_a_ratio_s_error_is_that_of_the_paired_difference() -> None:
    given = {
        ("x", 50.0): [{"nll": 1.1}, {"nll": 5.3}],
        ("full", 100.0): [{"nll": 1.0}, {"nll": 5.0}],
        ("x", 10.0): [{"nll": 1.4}, {"nll": 5.4}],
    }
    rows = summarise(results("perplexity", given), "perplexity", SUBJECT)
    assert [(row["policy"], row["budget"]) for row in rows] == [
        ("full", 100.0), ("x", 10.0), ("x", 50.0),
    ]  # fmt: skip
    full, low, high = rows
    assert full["ratio"] == 1 and full["ratio_error"] == 0
    assert full["perplexity"] == pytest.approx(math.exp(3))
    assert full["perplexity_error"] == pytest.approx(math.exp(3) * 2)
    assert low["ratio"] == pytest.approx(math.exp(0.4))
    assert low["ratio_error"] == pytest.approx(0, abs=1e-12)
    # differences 0.1 and 0.3: mean 0.2, standard deviation 0.1414, its error 0.1
    assert high["ratio"] == pytest.approx(math.exp(0.2))
    assert high["ratio_error"] == pytest.approx(0.1 * math.exp(0.2))


def test_shares_and_counts() -> None:
    given = {("full", 100.0): [{"exact": True, "digits": 1.0}, {"exact": False, "digits": 0.2}]}
    (row,) = summarise(results("passkey", given), "passkey", SUBJECT)
    assert (row["exact"], row["exact_error"]) == (0.5, 0.5)
    assert row["digits"] == pytest.approx(0.6)
    given = {("full", 100.0): [{"equal": 6, "tokens": 8, "prefix": 2},
                               {"equal": 8, "tokens": 8, "prefix": 8}]}  # fmt: skip
    (row,) = summarise(results("agreement", given), "agreement", SUBJECT)
    assert (row["agreement"], row["prefix"]) == (0.875, 5.0)
    assert row["agreement_error"] == pytest.approx(0.125)


def test_another_subject_s_results_stay_out() -> None:
    mine = results("perplexity", {("full", 100.0): [{"nll": 1.0}]})
    other = {Cell("perplexity", Subject("other", "drawn", "00ff", 64, 8, 0, "float"), "full",
                  100.0, 1): {"nll": 9.0}}  # fmt: skip
    (row,) = summarise({**mine, **other}, "perplexity", SUBJECT)
    assert row["windows"] == 1 and row["perplexity"] == pytest.approx(math.e)


def test_a_table_is_padded_and_escapes_bars() -> None:
    table = tables.markdown(["name", "v"], [["a|b", "1"], ["longer one", "2.5"]])
    lines = table.splitlines()
    assert len({len(line) for line in lines}) == 1
    assert lines[1] == "| ---------- | --- |"
    assert lines[2] == "| a\\|b       | 1   |"


def test_numbers_with_errors() -> None:
    assert tables.with_error(1.23456, 0.0123) == "1.235 ± 0.012"
    assert tables.with_error(25.256, None) == "25.26"
    assert tables.with_error(None, 1.0) == "-"


@pytest.mark.parametrize("task", ["perplexity", "passkey", "agreement", "recall"])
def test_every_task_writes_its_table_and_chart(
    task: str, tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "find", source)
    count = "--keys" if task == "passkey" else "--windows"
    options = [task, "--policies", "mpcache", "--budgets", "40", "--context", 250, count, 2]
    if task != "passkey":
        options += ["--decode", 3]
    done = call(*options, "--text", text, "--out", tmp_path)
    assert done.exit_code == 0, done.output
    page = (tmp_path / f"{task}.md").read_text()
    assert "| full " in page and "| mpcache | 40 " in page and "text.txt" in page
    assert (tmp_path / f"{task}.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / f"{task}.svg").stat().st_size > 2000


def test_where_nobody_named_them_policies_that_cannot_run_are_left_out(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "find", source)
    options = ("--budgets", 40, "--context", 120, "--windows", 1, "--decode", 2)
    done = call("perplexity", *options, "--text", text, "--out", tmp_path)
    assert done.exit_code == 0, done.output
    result = json.loads((tmp_path / "perplexity.json").read_text())
    able = [name for name in policy_names() if name != "attention-gate"]
    assert [row["policy"] for row in result["rows"]] == able
    (warning,) = result["warnings"]
    assert warning.startswith("left out: cache policy attention-gate has no gates for tiny; train")
    named = call("perplexity", *options, "--policies", "attention-gate", "--out", tmp_path)
    assert named.exit_code == 2 and "has no gates for tiny" in named.output


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("perplexity --policies full,fuII", "'fuII' is unknown"),
        ("perplexity --budgets 10,zero", "'zero' is not allowed"),
        ("perplexity --budgets 0", "over 0 and at most 100"),
        ("perplexity --budgets 101", "over 0 and at most 100"),
        ("perplexity --context 64 --decode 64", "leaves no prompt"),
        ("perplexity --windows 0", "--windows 0: expected 1 or more"),
        ("perplexity --context 401 --decode 4", "tiny has 400"),
        ("perplexity --arithmetic exact", "expected float or fixed"),
        ("perplexity --weights some", "expected auto, required or synthetic"),
        ("perplexity --device tpu", "expected cpu or cuda"),
        ("perplexity --text nowhere.txt", "nowhere.txt"),
        ("perplexity --windows 9999 --context 100 --decode 5", "fewer --windows"),
        ("passkey --context 100", "the passkey's own text has"),
        ("passkey --context 395", "tiny has 400"),
        ("recall --lanes 3", "No such option"),
    ],
)
def test_a_mistake_ends_with_code_2_before_any_work(
    arguments: str, says: str, tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "find", source)
    monkeypatch.setattr(runner, "engine_of", lambda *given: pytest.fail("work began"))
    words = arguments.split()
    if "--text" not in words:
        words += ["--text", str(text)]
    done = call(*words, "--out", tmp_path / "out")
    assert done.exit_code == 2, done.output
    assert says in done.output
    assert not (tmp_path / "out").exists()
