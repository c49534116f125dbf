"""Data files are checked line by line, prompts are cut in the middle, answers are scored."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from mpcache.errors import UsageError
from mpcache.evaluation import metrics, runner, tasks
from mpcache.evaluation.longbench_data import read_file, read_folder
from mpcache.evaluation.longbench_prompts import TASKS, encoded
from mpcache.eviction.full import Full
from mpcache.generation import Request, generate
from mpcache.models.tokenizer import ByteTokenizer

from .tiny import SPEC, call, engine, source

CODEC = ByteTokenizer(SPEC.vocab)
QA = {
    "input": "Who wrote {context} it?",
    "context": "A long {question} story. " * 30,
    "answers": ["Ann", "Ann Lee"],
    "all_classes": None,
    "dataset": "hotpotqa",
    "language": "en",
    "length": 90,
    "_id": "q1",
}
TREC = {**QA, "dataset": "trec", "answers": ["Date"], "all_classes": ["Date", "Number"]}


def lines(folder: Path, name: str, *rows: Any) -> Path:
    path = folder / f"{name}.jsonl"
    path.write_text(
        "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)
    )
    return path


def test_records_of_both_forms(tmp_path: Path) -> None:
    lines(tmp_path, "hotpotqa_e", QA, {**QA, "_id": "q2", "dataset": "hotpotqa_e"})
    lines(tmp_path, "news", {"document": "Text.", "summary": "Short.", "id": 7})
    lines(tmp_path, "trec", TREC, {k: v for k, v in TREC.items() if k not in ("dataset", "_id")})
    first, news, trec = read_folder(tmp_path)
    assert (first.label, first.task, len(first.records)) == ("hotpotqa_e", "hotpotqa", 2)
    record = first.records[0]
    assert (record.name, record.answers, record.classes) == ("q1", ("Ann", "Ann Lee"), ())
    assert (news.task, news.records[0].answers, news.records[0].name) == ("xsum", ("Short.",), "7")
    assert trec.records[1].classes == ("Date", "Number") and trec.records[1].name == "2"


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("{oops", "line 2: no valid JSON"),
        ("[1]", "line 2: expected a JSON object"),
        ({**QA, "context": 3}, "line 2: the field 'context' is not"),
        ({**QA, "context": "  "}, "line 2: the field 'context' is not"),
        ({k: v for k, v in QA.items() if k != "input"}, "line 2: the field 'input' is missing"),
        ({**QA, "answers": "Ann"}, "line 2: the field 'answers' is not a list"),
        ({**QA, "answers": []}, "line 2: the field 'answers' is not a list"),
        ({**QA, "all_classes": [1]}, "line 2: the field 'all_classes' is not a list"),
        ({**QA, "dataset": "hotpot"}, "line 2: the data set 'hotpot' is unknown"),
        ({**QA, "dataset": "dureader"}, "line 2: dureader is Chinese"),
        ({**QA, "dataset": ["x"]}, "line 2: the data set ['x'] is unknown"),
        (TREC, "line 2: the data set is 'trec', that of the first record is 'hotpotqa'"),
        ({"document": "Text.", "summary": 1}, "line 2: the data set is 'xsum'"),
    ],
)
def test_a_mistake_is_named_with_file_and_line(tmp_path: Path, row: Any, says: str) -> None:
    path = lines(tmp_path, "hotpotqa", QA, row)
    with pytest.raises(UsageError) as raised:
        read_file(path)
    assert str(raised.value).startswith(f"{path}: {says}")


def test_classes_are_needed_where_they_are_asked_for(tmp_path: Path) -> None:
    path = lines(tmp_path, "trec", {**TREC, "all_classes": None})
    with pytest.raises(UsageError, match="line 1: the field 'all_classes'"):
        read_file(path)


def test_every_task_has_a_prompt_and_a_metric() -> None:
    assert len(TASKS) == 17
    for name, task in TASKS.items():
        filled = task.filled("CON{question}TEXT", "QUE{context}STION")
        assert filled.count("CON{question}TEXT") == 1, name
        asks = name not in ("gov_report", "multi_news", "passage_count", "lcc", "xsum")
        assert filled.count("QUE{context}STION") == asks, name
        assert task.metric in metrics.METRICS and 32 <= task.new_tokens <= 512


@pytest.mark.parametrize("room", [400, 101, 100, 7])
def test_the_middle_is_left_out(room: int) -> None:
    text = "".join(chr(97 + i % 26) for i in range(300))
    ids = encoded(CODEC, text, room, True)
    got = CODEC.decode(ids)
    if room >= 300:
        assert got == text
        return
    assert len(ids) == room
    assert got == text[: room // 2] + text[300 - (room - room // 2) :]


def test_a_chat_s_form_stays_whole() -> None:
    class Chat(ByteTokenizer):
        def chat(self, text: str) -> list[int]:
            return [1, 2, *self.encode(text), 3]

    codec = Chat(SPEC.vocab)
    ids = encoded(codec, "x" * 50 + "y" * 50, 43, True)
    assert len(ids) == 43 and ids[:2] == [1, 2] and ids[-1] == 3
    assert codec.decode(ids[2:-1]) == "x" * 20 + "y" * 20
    assert encoded(codec, "x", 43, False) == codec.encode("x")
    with pytest.raises(UsageError, match="give --context"):
        encoded(codec, "x" * 50, 4, True)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many policies were started for each record that was measured."""
    monkeypatch.setattr(runner, "find", source)
    started: list[int] = []
    real = tasks.started

    def noted(engine: Any, prefill: Any, policies: Any, *rest: Any) -> Any:
        started.append(len(policies))
        return real(engine, prefill, policies, *rest)

    monkeypatch.setattr(tasks, "started", noted)
    return started


def test_a_run_scores_greedy_answers_and_goes_on(tmp_path: Path, tiny: list[int]) -> None:
    data, out = tmp_path / "data", tmp_path / "out"
    data.mkdir()
    lines(data, "hotpotqa", QA, {**QA, "_id": "q2", "context": "Short."})
    lines(data, "trec", TREC)
    options = ("longbench", "--data", data, "--out", out, "--policies", "mpcache", "--budgets",
               "40", "--context", 300, "--max-new-tokens", 6)  # fmt: skip
    done = call(*options, "--records", 1)
    assert done.exit_code == 0, done.output
    assert tiny == [2, 2]
    done = call(*options)
    assert done.exit_code == 0, done.output
    assert tiny == [2, 2, 2]
    result = json.loads((out / "longbench.json").read_text())
    assert result["data"]["hotpotqa"]["records"] == 2 and result["data"]["trec"]["records"] == 1
    full, small = result["rows"]
    assert (full["policy"], small["policy"], small["budget"]) == ("full", "mpcache", 40.0)
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    stored = {(r["task"], r["policy"], r["window"]): r["result"] for r in rows}
    task = TASKS["hotpotqa"]
    prompt = encoded(CODEC, task.filled(QA["context"], QA["input"]), 294, True)
    runner_ = engine()
    want = generate(runner_.machine, runner_.model, Full(), Request(prompt, 294, 6)).ids
    got = stored["longbench-hotpotqa", "full", 0]
    assert got["answer"] == CODEC.decode(want) and got["prompt"] == len(prompt) == 294
    scores = [stored["longbench-hotpotqa", "full", i]["score"] for i in range(2)]
    assert full["scores"]["hotpotqa"]["score"] == pytest.approx(sum(scores) / 2)
    both = [full["scores"][name]["score"] for name in ("hotpotqa", "trec")]
    assert full["score"] == pytest.approx(sum(both) / 2)
    assert "| mpcache | 40 " in (out / "longbench.md").read_text()
    assert (out / "longbench-trec.svg").exists() and (out / "longbench.png").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--data nowhere", "--data nowhere: no such folder"),
        ("--data empty", "has no *.jsonl"),
        ("--data bad", "line 1: no valid JSON"),
        ("--data good --tasks qasper", "has no qasper.jsonl; it has hotpotqa"),
        ("--data good --context 30", "leaves no prompt"),
        ("--data good --records -1", "expected 1 or more, or 0 for all"),
        ("--data good --context 900", "tiny has 400"),
    ],
)
def test_a_mistake_ends_with_code_2_before_any_work(
    arguments: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "find", source)
    monkeypatch.setattr(runner, "engine_of", lambda *given: pytest.fail("work began"))
    monkeypatch.chdir(tmp_path)
    for folder in ("empty", "bad", "good"):
        (tmp_path / folder).mkdir()
    lines(tmp_path / "bad", "qasper", "{")
    lines(tmp_path / "good", "hotpotqa", QA)
    words = arguments.split()
    if "--context" not in words:
        words += ["--context", "300"]
    done = call("longbench", *words, "--out", "out")
    assert done.exit_code == 2, done.output
    assert says in done.output
    assert not (tmp_path / "out").exists()
