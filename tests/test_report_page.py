"""The HTML page: alone, escaped, equal to report.json, and it fits in a phone."""

from __future__ import annotations

import copy
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import browser
import pytest
from records import make_record
from rich.console import Console
from typer.testing import CliRunner

from mpcache.cli import app
from mpcache.config import load
from mpcache.report import compare, publish, tables
from mpcache.report.build import build_report
from mpcache.report.page import render_page
from mpcache.report.record import DealerRecord

VOID = {"meta"}
FETCHING = {"script", "link", "img", "iframe", "object", "embed", "base", "form", "video", "audio"}
ATTACK = "<script>alert('x')</script>\"&<img src=x onerror=y>"


class _Page(HTMLParser):
    """Collects elements and text, and checks that what is opened is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[tuple[str, dict[str, str | None]]] = []
        self.rows: list[list[str]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, name: str, attributes: list[tuple[str, str | None]]) -> None:
        self.seen.append((name, dict(attributes)))
        if name not in VOID:
            self.open.append(name)
        if name == "tr":
            self.rows.append([])
        if name in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, name: str) -> None:
        assert self.open.pop() == name

    def handle_data(self, data: str) -> None:
        if "style" in self.open:
            return
        self.text += data
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data


def _report(**changes: Any) -> dict[str, Any]:
    return build_report(make_record(**changes))


def _policy(name: str, seconds: float, run_id: str) -> dict[str, Any]:
    """A run of that cache whose decode steps took `seconds` in all."""
    record = make_record(run_id=run_id)
    parties = tuple(
        replace(party, phase_seconds={**party.phase_seconds, "decode": seconds})
        for party in record.parties
    )
    report = build_report(replace(record, parties=parties))
    report["cache"]["policy"] = report["config"]["cache"]["policy"] = name
    return report


def test_the_page_is_whole_and_fetches_nothing() -> None:
    text = render_page([_report(), _report(run_id="other")])
    page = _Page(text)
    assert not {name for name, _ in page.seen} & FETCHING
    assert "http:" not in text
    assert "https:" not in text
    assert "url(" not in text
    assert "@import" not in text
    for _, attributes in page.seen:
        assert not {key for key in attributes if key.startswith("on") or key == "src"}
        assert (attributes.get("href") or "#").startswith("#")


def test_figures_are_those_of_the_report() -> None:
    report = _report(dealer=DealerRecord(0, 1.5, 2.5))
    page = _Page(render_page([report]))
    decode = report["secure"]["decode"]
    assert tables.in_seconds(decode["per_token"]["seconds"]) in page.text
    assert f"{compare.times_plaintext(report):.3g}x" in page.text
    for row in tables.headline(report):
        assert list(row) in page.rows
    for phase in ("prefill", "decode"):
        for name in ("rounds", "sent_bytes", "dealt_bytes"):
            measured, predicted = report["secure"][phase][name], report["predicted"][phase][name]
            row = [f"{phase}, {name}", tables.exact(measured), tables.exact(predicted)]
            assert row in page.rows
    for opened in report["openings"]:
        assert [opened["why"], opened["to"], f"{opened['values']:,}"] in page.rows
    for path, entry in report["secure"]["prefill"]["by_scope"].items():
        scopes = [row for row in page.rows if row[0] == path]
        assert scopes
        assert scopes[0][1:3] == [f"{entry['rounds']:,}", tables.exact(entry["sent_bytes"])]
    for name in report["checks"]:
        assert f"{name}: passed" in page.text
    for part in ("2 of 3 tokens", "1.500 s", tables.machine(report), tables.network(report)):
        assert part in page.text


def test_a_bar_is_as_long_as_its_figure() -> None:
    page = _Page(render_page([_policy("full", 8.0, "a"), _policy("mpcache", 2.0, "b")]))
    widths = [float(facts["width"] or 0) for name, facts in page.seen if name == "rect"]
    assert widths[:2] == [1000.0, 250.0]


def test_the_waits_of_a_party_are_taken_off_its_own_time() -> None:
    record = make_record()
    scopes = [{path: dict(entry) for path, entry in p.scopes.items()} for p in record.parties]
    scopes[0]["decode/head"] |= {"seconds": 4.0, "wait_seconds": 1.0, "dealer_seconds": 0.0}
    scopes[1]["decode/head"] |= {"seconds": 3.0, "wait_seconds": 2.5, "dealer_seconds": 0.25}
    parties = tuple(
        replace(party, scopes=table) for party, table in zip(record.parties, scopes, strict=True)
    )
    text = render_page([build_report(replace(record, parties=parties))])
    chart = text.partition("decode, all steps")[2].partition("</figure>")[0]
    widths = re.findall(r'class="(\w+)" x="[\d.]+" y="0" width="([\d.]+)"', chart)
    assert widths == [
        *(("compute", "750.00"), ("wait", "250.00"), ("deal", "0.00")),
        *(("compute", "62.50"), ("wait", "625.00"), ("deal", "62.50")),
    ]


def test_text_is_never_markup() -> None:
    report = _report(text=ATTACK, run_id=ATTACK)
    report["config"]["model"] = report["model"]["name"] = report["warnings"][0] = ATTACK
    report["openings"][0]["why"] = report["machine"]["cpu"] = ATTACK
    report["secure"]["decode"]["by_scope"][ATTACK] = report["secure"]["decode"]["by_scope"]["head"]
    text = render_page([report, _report()])
    assert not {name for name, _ in _Page(text).seen} & FETCHING
    assert _Page(text).text.count(ATTACK) >= 7


def test_synthetic_weights_are_loud() -> None:
    text = render_page([_report(weights="synthetic")])
    assert 'class="banner loud"' in text
    assert "SYNTHETIC WEIGHTS" in text
    assert "Answer (meaningless: synthetic weights)" in text
    assert 'class="banner loud"' not in render_page([_report()])


def test_a_reduction_needs_the_same_run_but_for_the_cache() -> None:
    small, full = _policy("mpcache", 2.0, "small"), _policy("full", 8.0, "full")
    saved = compare.reduction(small, [full, small])
    assert saved is not None
    assert (saved.against, saved.seconds, saved.sent_bytes) == ("full", 4.0, 1.0)
    assert compare.reduction(full, [full, small]) is None
    text = _Page(render_page([full, small])).text
    assert "4x" in text
    assert "time a token of full-cache run full" in text
    for change in (("prompt_tokens", 17), ("protocol", "dealer"), ("version", "9")):
        other = copy.deepcopy(full)
        other[change[0]] = change[1]
        assert compare.reduction(small, [other, small]) is None
        assert f"these differ: {change[0]}" in _Page(render_page([other, small])).text
    other = copy.deepcopy(full)
    other["config"]["threads"] = 7
    other["machine"]["peak_memory_bytes"] = [1, 2]
    assert compare.differences(other, small) == ["config threads"]


def test_a_report_without_times_by_party_shows_the_slowest() -> None:
    report = _report()
    for phase in ("setup", "prefill", "decode"):
        for entry in report["secure"][phase]["by_scope"].values():
            del entry["by_party"]
    page = _Page(render_page([report]))
    assert "of the slowest party, waiting included" in page.text
    assert "waiting for a peer" not in page.text


def test_a_run_of_one_token_has_a_page() -> None:
    _Page(render_page([_report(decode_steps=0), _report()]))


# --- the command ---------------------------------------------------------------------------------


def _published(folder: Path, **changes: Any) -> Path:
    folder.mkdir()
    publish(make_record(**changes), folder, Console(file=io.StringIO()))
    return folder


def test_the_command_works_from_the_json_alone(tmp_path: Path) -> None:
    one, two = (_published(tmp_path / name, run_id=name) for name in ("one", "two"))
    for name in ("report.md", "report.html", "config.yaml"):
        (one / name).unlink()
    result = CliRunner().invoke(app, ["report", str(one), str(two / "report.json")])
    assert result.exit_code == 0, result.output
    text = (one / "report.html").read_text()
    assert "mpcache: 2 runs" in text
    assert (one / "report.md").exists()
    target = tmp_path / "page.html"
    assert CliRunner().invoke(app, ["report", str(two), "--html", str(target)]).exit_code == 0
    assert "mpcache: run two" in target.read_text()


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda report: report.pop("secure"), "lacks secure"),
        (lambda report: report["secure"].pop("decode"), "damaged"),
        (lambda report: report.update(model=3), "damaged"),
        (lambda report: report["checks"].update(rounds_agree=False), "no result"),
    ],
)
def test_a_report_that_cannot_be_shown_is_refused(tmp_path: Path, damage: Any, says: str) -> None:
    good, bad = (_published(tmp_path / name) for name in ("good", "bad"))
    report = json.loads((bad / "report.json").read_text())
    damage(report)
    (bad / "report.json").write_text(json.dumps(report))
    (good / "report.md").unlink()
    result = CliRunner().invoke(app, ["report", str(good), str(bad)])
    assert result.exit_code == 2
    assert says in result.output
    assert not (good / "report.md").exists()


def test_a_page_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    run = _published(tmp_path / "run")
    for target in (tmp_path / "missing" / "page.html", tmp_path):
        result = CliRunner().invoke(app, ["report", str(run), "--html", str(target)])
        assert result.exit_code == 2
        assert str(target.parent if target != tmp_path else target) in result.output


# --- in a browser --------------------------------------------------------------------------------


def _long() -> str:
    """A page with long words, many scopes and wide tables."""
    report = _report(text="word" * 200, weights="synthetic")
    scopes = report["secure"]["decode"]["by_scope"]
    scopes["a-name/" * 12] = scopes["head"]
    report["config"]["model"] = "m" * 300
    network = load(None, {"network": "wan"}).network
    report["network"] = {"emulated": network.emulated, "rtt_ms": 40.0, "mbps": 400.0}
    return render_page([report, _policy("full", 8.0, "full")])


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 820, 1280])
def test_the_page_fits_the_window(width: int, tmp_path: Path) -> None:
    browser.find()
    page = _long()
    found = browser.measure(page, width, tmp_path)
    assert width - 20 <= found["client"] <= width  # a scroll bar may take some
    assert found["scroll"] <= found["client"]
    assert found["loaded"] == 0
    rows = browser.screenshot(page, width, 900, tmp_path)
    assert len(rows) == 900
    assert sum(len(set(row)) > 8 for row in rows) > 200  # lines with writing on them


@pytest.mark.slow
def test_a_page_that_is_too_wide_is_seen(tmp_path: Path) -> None:
    browser.find()
    found = browser.measure("<div style='width:700px'>wide</div>", 390, tmp_path)
    assert found["scroll"] > found["client"]
