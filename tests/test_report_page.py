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
from mpcache.report.page_outlook import cheaper
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
    assert [sum(widths[:4]), sum(widths[4:8])] == [1000.0, 250.0]


def test_the_waits_of_a_party_are_taken_off_its_own_time() -> None:
    record = make_record()
    scopes = [{path: dict(entry) for path, entry in p.scopes.items()} for p in record.parties]
    scopes[0]["decode/head"] |= {"seconds": 4.0, "wait_seconds": 1.0, "dealer_seconds": 0.0}
    scopes[1]["decode/head"] |= {"seconds": 3.0, "wait_seconds": 2.0, "dealer_seconds": 0.25}
    scopes[1]["decode/head"] |= {"transfer_seconds": 0.5}
    parties = tuple(
        replace(party, scopes=table) for party, table in zip(record.parties, scopes, strict=True)
    )
    text = render_page([build_report(replace(record, parties=parties))])
    assert _parts(text, "A token, on average") == [
        *(("compute", "750.00"), ("wait", "250.00"), ("transfer", "0.00"), ("deal", "0.00")),
        *(("compute", "62.50"), ("wait", "500.00"), ("transfer", "125.00"), ("deal", "62.50")),
    ]
    mean = [(1.625, "compute"), (1.5, "wait"), (0.25, "transfer"), (0.125, "deal")]
    assert _parts(text, "decode by component") == [
        (style, f"{1000 * size / 3.5:.2f}") for size, style in mean
    ]


def _parts(text: str, title: str) -> list[tuple[str, str]]:
    """Style and width of the parts of the chart below a title."""
    chart = text.partition(title)[2].partition("</figure>")[0]
    return re.findall(r'class="(\w+)" x="[\d.]+" y="0" width="([\d.]+)"', chart)


def test_the_dealer_has_a_bar_a_phase() -> None:
    phases = {
        "setup": {"seconds": 1.0, "dealt_bytes": 0},
        "prefill": {"seconds": 2.0, "dealt_bytes": 5_000},
        "decode": {"seconds": 3.0, "dealt_bytes": 7_000},
    }
    text = render_page([_report(dealer=DealerRecord(12_000, 6.0, 9.0, phases=phases))])
    page = _Page(text).text
    assert "dealer, at the same time: 1.500 s" in page  # of two steps
    assert "dealer, at the same time: 2.000 s" in page
    assert "setup 1.000 s and 0 B, prefill 2.000 s and 5 kB, decode 3.000 s and 7 kB" in page
    stored = _Page(render_page([_report(dealer=DealerRecord.ahead(9))])).text
    assert "no dealer ran" in stored and "at the same time" not in stored


def test_a_processor_that_others_had_is_told() -> None:
    record = make_record()
    for busy, told in ((0.01, True), (9.0, False)):
        parties = tuple(
            replace(
                party,
                scopes={path: {**e, "busy_seconds": busy} for path, e in party.scopes.items()},
            )
            for party in record.parties
        )
        text = render_page([build_report(replace(record, parties=parties))])
        assert ("The processor was shared" in text) is told
    assert "The processor was shared" not in render_page([_report()])  # not known


# --- what was not measured -----------------------------------------------------------------------


def _outlook(seconds: bool) -> list[dict[str, Any]]:
    rows = []
    for context, size in ((16, 100), (1024, 400)):
        for cache, times in (("mpcache", 1), ("full", 3 if context > 99 else 0.5)):
            networks = {"local": 0.1 * times, "wan": 2.0 * times} if seconds else None
            sent = [int(size * times), 50]
            rows.append(
                {
                    "context": context,
                    "cache": cache,
                    "rounds": 40,
                    "sent_bytes": sent,
                    "dealt_bytes": [0, 9],
                    "seconds": networks,
                }
            )
    return rows


def test_what_is_predicted_is_marked_and_compared() -> None:
    page = _Page(render_page([_report(outlook=_outlook(True))]))
    assert "A token at other lengths and on other networks (predicted)" in page.text
    assert ["1,024", "full", "40", "1.2 kB, 50 B", "9 B", "300 ms", "6.000 s"] in page.rows
    assert "bytes sent: mpcache takes less than the full cache from 1,024 tokens on" in page.text
    assert "seconds, wan: mpcache takes less" in page.text
    assert "full (predicted)" in page.text
    assert (
        "0.5xbytes sent a token with the full cache, relative to this one (predicted)" in page.text
    )
    lines = [facts for name, facts in page.seen if name == "polyline"]
    assert len(lines) == 6 and sum("dashed" in (facts["class"] or "") for facts in lines) == 4


def test_without_a_calibration_only_counts_are_predicted() -> None:
    page = _Page(render_page([_report(outlook=_outlook(False))]))
    assert "this machine is not calibrated" in page.text
    assert ["1,024", "full", "40", "1.2 kB, 50 B", "9 B"] in page.rows
    assert len([name for name, _ in page.seen if name == "polyline"]) == 2
    assert "other networks (predicted)" not in render_page([_report()])


def test_a_full_cache_that_is_cheaper_everywhere_is_named() -> None:
    rows = _outlook(False)
    for row in rows:
        row["sent_bytes"] = [10 if row["cache"] == "full" else 20, 0]
    assert "at none of these lengths: here the full cache is the cheaper one" in cheaper(rows)[0]
    assert "at 16 tokens" in cheaper(
        [{**row, "sent_bytes": [1 + (row["context"] == 16) * (row["cache"] == "full")]}
         for row in rows]
    )[0]  # fmt: skip
    assert cheaper([row for row in rows if row["cache"] == "full"]) == []


def test_runs_of_several_lengths_are_curves() -> None:
    runs = [_policy("full", 8.0, "a"), _policy("full", 9.0, "b"), _policy("mpcache", 2.0, "c")]
    runs[1]["prompt_tokens"] = 64
    page = _Page(render_page(runs))
    assert "Seconds a token over the prompt's length" in page.text
    assert len([name for name, _ in page.seen if name == "polyline"]) == 2


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
    assert "time a token with the full cache (run full), relative to this one" in text
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
    assert "the slowest party, waiting included" in page.text
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
    """A page with long words, many scopes, curves and wide tables."""
    report = _report(text="word" * 200, weights="synthetic", outlook=_outlook(True))
    scopes = report["secure"]["decode"]["by_scope"]
    scopes["a-name/" * 12] = scopes["head"]
    report["config"]["model"] = "m" * 300
    network = load(None, {"network": "wan"}).network
    report["network"] = {"emulated": network.emulated, "rtt_ms": 40.0, "mbps": 400.0}
    longer = _policy("full", 9.0, "longer")
    longer["prompt_tokens"] = 4096
    return render_page([report, _policy("full", 8.0, "full"), longer])


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 820, 1280])
def test_the_page_fits_the_window(width: int, tmp_path: Path) -> None:
    browser.find()
    page = _long()
    found = browser.measure(page, width, tmp_path)
    assert width - 20 <= found["client"] <= width  # a scroll bar may take some
    assert found["scroll"] <= found["client"]
    assert found["loaded"] == 0
    light, dark = (browser.screenshot(page, width, 900, tmp_path, dark) for dark in (False, True))
    for rows in (light, dark):
        assert len(rows) == 900
        assert sum(len(set(row)) > 8 for row in rows) > 200  # lines with writing on them
    assert _brightness(light, width) > 200 > 90 > _brightness(dark, width)


def _brightness(rows: list[bytes], width: int) -> float:
    """The mean of all bytes of the page's columns, from 0 to 255, but for what is transparent."""
    step = len(rows[0]) // max(width, 600)
    shown = b"".join(row[: width * step] for row in rows)
    return sum(shown[0::step]) / len(shown[0::step])


@pytest.mark.slow
def test_the_page_can_be_printed(tmp_path: Path) -> None:
    browser.find()
    pdf = browser.printed(_long(), tmp_path)
    assert pdf.startswith(b"%PDF")
    assert 2 <= pdf.count(b"/Type /Page\n") + pdf.count(b"/Type /Page ") <= 30


@pytest.mark.slow
def test_a_page_that_is_too_wide_is_seen(tmp_path: Path) -> None:
    browser.find()
    found = browser.measure("<div style='width:700px'>wide</div>", 390, tmp_path)
    assert found["scroll"] > found["client"]
