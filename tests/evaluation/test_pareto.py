"""Prices equal the whole count, fronts equal brute force, and the README shows both."""

from __future__ import annotations

import itertools
import json
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from made_up_speeds import SPEEDS

from mpcache.config import load
from mpcache.costing import quick
from mpcache.evaluation import pareto, pricing, runner, tasks
from mpcache.evaluation.pricing import AXES, Clock, decode_price, front
from mpcache.evaluation.readme import table
from mpcache.eviction.full import Full
from mpcache.eviction.registry import policy_at, policy_names
from mpcache.program import predict
from mpcache.speeds import Wire

from .tiny import SPEC, call, source

BARE = Clock(None, "the network alone")
DEEP = replace(SPEC, layers=11)
PROMPT = 60


@dataclass(frozen=True)
class Plain(Full):
    oblivious: ClassVar[bool] = False


@pytest.mark.parametrize("name", policy_names())
def test_a_price_is_that_of_walking_every_layer(name: str) -> None:
    policy = policy_at(name, 24, PROMPT)
    got = decode_price(DEEP, policy, PROMPT, BARE)
    if not policy.oblivious:
        assert got is None
        return
    config = load(None, {"parties": 2, "protocol": "dealer", "max_new_tokens": 2})
    whole = [
        ledger.total("decode")
        for ledger in predict(config, DEEP, PROMPT, policy=policy).ranks
    ]  # fmt: skip
    assert got is not None and got["rounds"] == whole[0].rounds == whole[1].rounds
    assert got["sent_bytes"] == [entry.sent_bytes for entry in whole]
    assert got["online_bytes"] == sum(entry.sent_bytes for entry in whole)
    assert got["dealt_bytes"] == sum(entry.dealt_bytes for entry in whole) > 0


def test_seconds_of_the_network_alone_by_hand() -> None:
    got = decode_price(SPEC, Full(), PROMPT, BARE)
    assert got is not None
    slowest = max(got["sent_bytes"]) * 8
    assert got["lan_seconds"] == pytest.approx(got["rounds"] * 0.00015 + slowest / 3e9)
    assert got["wan_seconds"] == pytest.approx(got["rounds"] * 0.02 + slowest / 4e8)


def test_a_calibrated_machine_adds_its_work(monkeypatch: pytest.MonkeyPatch) -> None:
    still = Wire(*[0.0] * 6)
    speeds = replace(SPEEDS, party={"scope uses": 1e-3}, dealer={}, tls=still)
    monkeypatch.setattr(pricing.calibration, "load", lambda suite: (speeds, ""))
    clock = Clock.here()
    assert "calibration" in clock.note and "12% in the middle" in clock.note
    with_work, without = (decode_price(SPEC, Full(), PROMPT, one) for one in (clock, BARE))
    assert with_work is not None and without is not None
    more = with_work["wan_seconds"] - without["wan_seconds"]
    token = quick(load(None, {"max_new_tokens": 2}), SPEC, PROMPT, Full()).loads(1)["token"]
    assert more == pytest.approx(speeds.own(token)) and more > 0.01
    monkeypatch.setattr(pricing.calibration, "load", lambda suite: (None, "no seconds: not so"))
    assert Clock.here() == Clock(
        None, "Predicted seconds: the network alone, without any arithmetic (not so)."
    )


def test_a_plaintext_policy_has_no_price() -> None:
    assert decode_price(SPEC, Plain(), PROMPT, BARE) is None


def test_a_front_by_hand() -> None:
    points = [(1.0, 9.0), (2.0, 5.0), (2.0, 5.0), (2.0, 7.0), (3.0, 5.0), (4.0, 1.0)]
    assert front(points) == [True, True, True, False, False, True]
    assert front([]) == []


def test_a_front_is_what_nobody_beats() -> None:
    draw = random.Random(4)
    for _ in range(50):
        points = [(float(draw.randrange(8)), float(draw.randrange(8))) for _ in range(12)]
        beaten = [
            any(b != a and b[0] <= a[0] and b[1] <= a[1] for b in points) for a in points
        ]  # fmt: skip
        assert front(points) == [not is_beaten for is_beaten in beaten]


def row(policy: str, price: float, ratio: float, exact: float, oblivious: bool = True) -> Any:
    given = {"policy": policy, "budget": 10.0, "attended": 6.0, "ratio": ratio, "exact": exact}
    given |= {"ratio_error": 0.01, "exact_error": None, "oblivious": oblivious}
    return given | (dict.fromkeys(AXES, price) if oblivious else {})


def test_marks_are_for_low_ratios_and_many_passkeys() -> None:
    rows = [row("a", 3, 1.0, 0.5), row("b", 2, 1.2, 0.5), row("c", 1, 1.3, 0.1),
            row("oracle", 0, 0.9, 1.0, False), row("d", 3, 1.1, 0.9)]  # fmt: skip
    pareto.mark(rows)
    every = list(AXES)
    assert [r["front"]["ratio"] for r in rows] == [every, every, every, [], []]
    assert [r["front"]["exact"] for r in rows] == [[], every, every, [], every]
    header, body = pareto.table(rows)
    assert body[0][header.index("rounds")] == "3 *"
    assert body[1][header.index("wan s")] == "2.00 *†"
    assert body[3][-5:] == ["-"] * 5
    assert body[4][header.index("rounds")] == "3 †"


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The tasks that measured a window."""
    seen: list[str] = []
    for name in ("perplexity", "passkey"):
        real = getattr(tasks, name)

        def noted(*given: Any, name: str = name, real: Any = real) -> Any:
            seen.append(name)
            return real(*given)

        monkeypatch.setattr(tasks, name, noted)
    monkeypatch.setattr(runner, "find", source)
    return seen


OPTIONS = ("--policies", "mpcache", "--budgets", "20,50", "--context", 250, "--windows", 2)


def test_it_reuses_results_and_fills_the_readme(
    tmp_path: Path, text: Path, measured: list[str]
) -> None:
    out = tmp_path / "out"
    shared = (*OPTIONS, "--text", text, "--out", out, "--decode", 4)
    assert call("perplexity", *shared).exit_code == 0
    assert measured == ["perplexity"] * 2
    done = call("pareto", *shared, "--keys", 3)
    assert done.exit_code == 0, done.output
    assert measured == ["perplexity"] * 2 + ["passkey"] * 3
    result = json.loads((out / "pareto.json").read_text())
    assert [(r["policy"], r["budget"]) for r in result["rows"]] == [
        ("full", 100.0), ("mpcache", 20.0), ("mpcache", 50.0),
    ]  # fmt: skip
    assert result["prices"]["predicted"] is True and result["prices"]["prompt_tokens"] == 246
    assert "redicted" in done.output
    first = result["rows"][0]
    expected = decode_price(SPEC, Full(), 246, Clock.here())
    assert expected is not None and expected.items() <= first.items()
    assert (out / "pareto.png").read_bytes().startswith(b"\x89PNG")
    before = (out / "pareto.svg").read_bytes()
    assert call("pareto", *shared, "--keys", 3).exit_code == 0
    assert len(measured) == 5 and (out / "pareto.svg").read_bytes() == before

    readme = tmp_path / "README.md"
    readme.write_text("a\n<!-- eval pareto: begin -->\nold\n<!-- eval pareto: end -->\nz\n")
    done = call("readme", "--from", out, "--file", readme)
    assert done.exit_code == 0, done.output
    filled = readme.read_text()
    assert filled.startswith("a\n") and filled.endswith("\nz\n") and "old" not in filled
    assert "(docs/pareto.svg)" in filled and "| mpcache | 50 " in filled
    assert result["command"] in filled and "--keys 3" in result["command"]
    assert (tmp_path / "docs" / "pareto.svg").read_bytes() == before
    assert str(tmp_path) not in filled


def test_the_readme_has_the_markers_and_the_chart_that_it_shows() -> None:
    root = Path(__file__).parents[2]
    text = (root / "README.md").read_text()
    assert text.count("<!-- eval pareto: begin -->") == 1 == text.count("<!-- eval pareto: end -->")
    shown = "(docs/pareto.svg)" in text
    assert (root / "docs" / "pareto.svg").is_file() is shown


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("pareto --keys 0", "--keys 0: expected 1 or more"),
        ("pareto --context 100 --decode 4", "the passkey's own text has"),
        ("pareto --budgets 5,none", "'none' is not allowed"),
        ("readme --from nowhere", "run `mpcache eval pareto"),
    ],
)
def test_a_mistake_ends_with_code_2(
    arguments: str, says: str, tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "find", source)
    monkeypatch.setattr(runner, "engine_of", lambda *given: pytest.fail("work began"))
    monkeypatch.chdir(tmp_path)
    words = arguments.split()
    if words[0] == "pareto":
        words += ["--text", str(text), "--out", str(tmp_path / "out")]
    done = call(*words)
    assert done.exit_code == 2, done.output
    assert says in done.output
    assert not (tmp_path / "out").exists()


def test_a_readme_without_markers_is_left_alone(tmp_path: Path, text: Path) -> None:
    rows = [row("a", 3, 1.0, 0.5)]
    pareto.mark(rows)
    subject = {"model": "m", "weights": "w", "text": "00", "context": 9, "decode": 1, "seed": 0,
               "arithmetic": "float"}  # fmt: skip
    prices = {"protocol": "dealer", "prompt_tokens": 8, "seconds": "x"}
    result = {"rows": rows, "subject": subject, "text": "t", "warnings": [], "command": "c",
              "prices": prices, "settings": {"keys": 2}}  # fmt: skip
    (tmp_path / "pareto.json").write_text(json.dumps(result))
    (tmp_path / "pareto.svg").write_text("<svg/>")
    readme = tmp_path / "README.md"
    readme.write_text("nothing")
    done = call("readme", "--from", tmp_path, "--file", readme)
    assert done.exit_code == 2 and "needs <!-- eval pareto: begin -->" in done.output
    assert readme.read_text() == "nothing" and not (tmp_path / "docs").exists()
    readme.write_text("<!-- eval pareto: begin --><!-- eval pareto: end -->")
    (tmp_path / "pareto.svg").write_text("<svg>" + " " * 200_001)
    done = call("readme", "--from", tmp_path, "--file", readme)
    assert done.exit_code == 2 and "200,000 bytes" in done.output
    (tmp_path / "pareto.json").write_text("{}")
    (tmp_path / "pareto.svg").write_text("<svg/>")
    done = call("readme", "--from", tmp_path, "--file", readme)
    assert done.exit_code == 2 and "no result of mpcache eval pareto" in done.output


def result_of(text: str, rows: list[Any], **changes: Any) -> dict[str, Any]:
    pareto.mark(rows)
    subject = {"model": "m", "weights": "w", "text": text[:2], "context": 9, "decode": 1, "seed": 0,
               "arithmetic": "float", **changes}  # fmt: skip
    prices = {"protocol": "dealer", "prompt_tokens": 8, "seconds": "x"}
    return {"rows": rows, "subject": subject, "text": text, "warnings": [], "prices": prices,
            "command": f"run --text {text}", "settings": {"keys": 2}}  # fmt: skip


def test_two_texts_share_a_table_and_a_mark_stands_on_both(tmp_path: Path) -> None:
    one = result_of("first (v1)", [row("a", 3, 1.0, 0.5), row("b", 2, 1.2, 0.5)])
    two = result_of("second", [row("a", 3, 1.4, 0.9), row("b", 2, 1.3, 0.9)])
    header, body = table([one, two])
    assert header[3:7] == ["perplexity ratio, first", "perplexity ratio, second", "passkey, first",
                           "passkey, second"]  # fmt: skip
    assert body[0][3:7] == ["1.000 ± 0.010", "1.400 ± 0.010", "0.500", "0.900"]
    assert body[0][7] == "3" and body[1][7] == "2 *†"  # `a` leads on the first text alone
    for name, result in (("one", one), ("two", two)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "pareto.json").write_text(json.dumps(result))
        (tmp_path / name / "pareto.svg").write_text(f"<svg>{name}</svg>")
    readme = tmp_path / "README.md"
    readme.write_text("<!-- eval pareto: begin --><!-- eval pareto: end -->")
    folders = ("--from", tmp_path / "one", "--from", tmp_path / "two")
    assert call("readme", *folders, "--file", readme).exit_code == 0
    filled = readme.read_text()
    assert "(docs/pareto.svg)" in filled and "(docs/pareto-2.svg)" in filled
    assert (tmp_path / "docs" / "pareto-2.svg").read_text() == "<svg>two</svg>"
    assert "run --text first" in filled and "run --text second" in filled
    assert "lower price on every text" in filled and "--from DIR --from DIR" in filled
    before = filled
    dearer = result_of("second", [row("a", 3, 1.4, 0.9), row("b", 9, 1.3, 0.9)])
    others = result_of("second", [row("a", 3, 1.4, 0.9), row("c", 2, 1.3, 0.9)])
    longer = result_of("second", two["rows"], context=10)
    for other in (dearer, others, longer):
        (tmp_path / "two" / "pareto.json").write_text(json.dumps(other))
        done = call("readme", *folders, "--file", readme)
        assert done.exit_code == 2 and "differ in more than their text" in done.output
    assert readme.read_text() == before


def test_a_crowded_chart_stays_small_enough_for_the_readme(tmp_path: Path) -> None:
    from mpcache.evaluation import pareto_chart

    rows = []
    for i, budget in itertools.product(range(20), (5.0, 10.0, 20.0, 50.0)):
        price = 1.0 + i / 50 + budget / 90
        rows.append(row(f"p{i}", price, 2 - budget / 60 + i / 90, budget / 60 - i / 99))
        rows[-1]["budget"] = budget
    pareto.mark(rows)
    result = {"rows": rows, "subject": {"model": "m", "context": 9}, "text": "t"}
    png, svg = pareto_chart.draw(result, tmp_path / "chart")
    assert png.stat().st_size > 50_000 and svg.stat().st_size < 200_000
