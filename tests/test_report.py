"""The report's contract, and that each check goes red for a difference of one."""

from __future__ import annotations

import html
import io
import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from records import PATHS, SECRET, counts_of, make_record
from rich.console import Console

from mpcache.config import load
from mpcache.errors import MpcacheError, UsageError
from mpcache.protocols.channel import Spec
from mpcache.protocols.ledger import Prediction
from mpcache.report import checks, files, publish, tables
from mpcache.report.build import build_report
from mpcache.report.console import print_prediction, print_summary
from mpcache.report.machine import Together, peak_memory_bytes
from mpcache.report.markdown import render
from mpcache.report.page import render_page
from mpcache.report.record import (
    COUNTS,
    Agreement,
    DealerRecord,
    Opened,
    PartyRecord,
    PredictedParty,
    RunRecord,
)


def _with_party(record: RunRecord, rank: int, **changes: Any) -> RunRecord:
    parties = list(record.parties)
    parties[rank] = replace(parties[rank], **changes)
    return replace(record, parties=tuple(parties))


def _bumped(record: RunRecord, path: str, name: str) -> RunRecord:
    """One more of `name` in `path`, at party 1 alone."""
    scopes = {key: dict(values) for key, values in record.parties[1].scopes.items()}
    scopes[path][name] += 1
    return _with_party(record, 1, scopes=scopes)


def _console() -> Console:
    return Console(file=io.StringIO(), width=120)


def _failed(record: RunRecord) -> set[str]:
    return {name for name, passed in build_report(record)["checks"].items() if not passed}


def test_the_fields_are_the_contract() -> None:
    report = build_report(make_record())
    assert list(report) == [
        "version",
        "id",
        "config",
        "machine",
        "parties",
        "protocol",
        "network",
        "model",
        "prompt_tokens",
        "new_tokens",
        "text",
        "token_ids",
        "cache",
        "plaintext",
        "agreement",
        "secure",
        "predicted",
        "outlook",
        "ranges",
        "truncation",
        "checks",
        "openings",
        "warnings",
    ]
    assert set(report["network"]) == {"emulated", "rtt_ms", "mbps"}
    assert set(report["model"]) >= {
        *("name", "family", "weights", "layers", "hidden", "heads", "kv_heads", "parameters")
    }
    assert set(report["cache"]) == {"policy", "static_kept", "clusters", "dynamic_kept"}
    assert set(report["plaintext"]) == {
        *("token_ids", "prefill_seconds", "decode_seconds_per_token")
    }
    assert set(report["secure"]) == {"setup", "prefill", "decode"}
    for phase in report["secure"].values():
        assert {"seconds", "rounds", "sent_bytes", "dealt_bytes", "by_scope"} <= set(phase)
    assert set(report["predicted"]) == {"prefill", "decode"}
    assert report["checks"] == dict.fromkeys(
        ("sent_equals_received", "rounds_agree", "measured_equals_predicted", "kept_equals_budget"),
        True,
    )
    assert report["openings"] == [{"why": "answer", "to": "party 1", "values": 3}]


def test_sums_are_those_of_the_ledgers() -> None:
    secure = build_report(make_record())["secure"]
    size = sum(counts_of(path)["sent_bytes"] for path in PATHS if path.startswith("prefill"))
    assert secure["prefill"]["rounds"] == 8
    assert secure["prefill"]["sent_bytes"] == [size, size]
    assert secure["prefill"]["seconds"] == 2.0  # the slower party's
    assert secure["decode"]["per_token"]["rounds"] == 2
    assert secure["decode"]["per_token"]["seconds"] == 2.0
    assert secure["decode"]["per_token"]["median_seconds"] == (3.0 + 0.5) / 2  # slower party's
    assert secure["decode"]["per_token"]["slowest_seconds"] == 3.0
    shown = tables.headline(build_report(make_record()))
    assert ("a token, median and slowest", "-", "1.750 s, 3.000 s") in shown
    assert secure["prefill"]["by_scope"]["layer1/attention"]["rounds"] == 4


def test_a_run_without_decode_steps_has_no_figure_per_token() -> None:
    report = build_report(make_record(decode_steps=0))
    assert report["secure"]["decode"]["per_token"]["seconds"] is None
    assert not any("slowest" in what for what, *_ in tables.headline(report))
    assert "Plaintext against" in render(report)


@pytest.mark.parametrize("name", COUNTS)
def test_one_more_of_anything_is_not_as_predicted(name: str) -> None:
    failed = _failed(_bumped(make_record(), "prefill/layer1/attention", name))
    also = {
        "rounds": {"rounds_agree"},
        "sent_bytes": {"sent_equals_received"},
        "received_bytes": {"sent_equals_received"},
    }
    assert failed == {"measured_equals_predicted"} | also.get(name, set())


def test_each_other_difference_is_caught() -> None:
    record = make_record()
    assert _failed(record) == set()
    other = _with_party(record, 0, transcript="ab0")
    assert _failed(other) == {"measured_equals_predicted"}
    other = _with_party(record, 0, openings=(Opened("answer", "party 1", 4),))
    assert _failed(other) == {"measured_equals_predicted"}
    other = _with_party(record, 1, kept={"static": [12, 13], "dynamic": [8, 9]})
    assert _failed(other) == {"kept_equals_budget"}
    wire = {0: {"sent_bytes": 1, "received_bytes": 1}}
    assert _failed(_with_party(record, 1, peers=wire)) == {"sent_equals_received"}
    assert _failed(replace(record, predicted=record.predicted[:1])) == {"measured_equals_predicted"}
    assert "sent_equals_received" in _failed(_bumped(record, "start", "rounds"))


def test_a_swap_between_wires_is_caught_though_the_sums_agree() -> None:
    record = make_record()
    peers = (
        {1: {"sent_bytes": 10, "received_bytes": 7}},
        {0: {"sent_bytes": 9, "received_bytes": 8}},
    )
    for rank in range(2):
        record = _with_party(record, rank, peers=peers[rank])
    problems = checks.sent_equals_received(record.parties)
    assert len(problems) == 2
    assert "party 0 sent 10 bytes to party 1, which got 8" in problems


def test_a_failing_check_is_no_result(tmp_path: Path) -> None:
    console = _console()
    record = _bumped(make_record(), "decode/head", "rounds")
    (tmp_path / "report.md").write_text("of an earlier run")
    with pytest.raises(MpcacheError, match="check rounds_agree failed: decode/head") as caught:
        publish(record, tmp_path, console)
    assert caught.value.exit_code == 1
    assert json.loads((tmp_path / "report.json").read_text())["checks"]["rounds_agree"] is False
    assert not (tmp_path / "report.md").exists()
    assert console.file.getvalue() == ""  # type: ignore[attr-defined]
    with pytest.raises(UsageError, match="rounds_agree"):
        files.load_report(tmp_path)


def test_a_result_is_saved_printed_and_without_the_prompt(tmp_path: Path) -> None:
    console = _console()
    publish(make_record(), tmp_path, console)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("config.yaml", "report.html", "report.json", "report.md")
    ]
    for text in (shown, *(path.read_text() for path in tmp_path.iterdir())):
        assert SECRET not in text
    for part in ("2 of 3 tokens", "baseline only", "emulated", "checks passed", "secret-shared"):
        assert part in shown
    load(tmp_path / "config.yaml")
    assert files.load_report(tmp_path) == json.loads((tmp_path / "report.json").read_text())


def test_markdown_says_what_matters() -> None:
    page = render(build_report(make_record(weights="synthetic")))
    for part in (
        "meaningless",
        "baseline only",
        "| prefill | 10 ms | 2.000 s |",
        "| attention | 8 |",
        "Token 2 differs: 7 against 8, which the twin holds 0.003 apart",
        "| answer | party 1 | 3 |",
        "12 (x2)",
        "emulated: 3000 Mbps, 0.3 ms round trip",
        "measured_equals_predicted yes",
        "static_keep: 0.7",
    ):
        assert part in page, part


def test_warnings_name_what_is_switched_off() -> None:
    config = load(None, {"network": {"tls": False}, "verify": True})
    found = " ".join(build_report(make_record(config=config))["warnings"])
    assert "tls is off" in found
    assert "testing aid" in found
    assert "emulated" not in found


def test_sampled_tokens_are_not_taken_for_mistakes() -> None:
    config = load(None, {"temperature": 0.7})
    report = build_report(make_record(config=config, agreement=Agreement(1, 3)))
    (line,) = tables.agreement(report)
    assert "sampled at temperature 0.7, so agreement below 100% is expected" in line
    assert "1 of 3 tokens are the plaintext twin's likeliest on the same prefix" in line
    assert line in render(report)
    del report["config"]["temperature"]  # as runs wrote it before there was one
    assert "1 of 3 tokens equal the plaintext twin's" in tables.agreement(report)[0]


def test_numbers_that_are_not_finite_become_null(tmp_path: Path) -> None:
    record = make_record(agreement=Agreement(3, 3, float("nan"), float("inf")))
    publish(record, tmp_path, _console())
    saved = json.loads((tmp_path / "report.json").read_text())
    assert saved["agreement"]["max_logit_error"] is None


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "report.json"
    files.write_atomic(target, "old")
    with pytest.raises(TypeError):
        files.write_atomic(target, 3)  # type: ignore[arg-type]
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_a_prediction_is_priced_on_the_network() -> None:
    console = _console()
    config = load(None, {"network": "wan"})
    cost = {"rounds": 100, "sent_bytes": [50_000_000, 10], "dealt_bytes": [0, 0]}
    print_prediction(console, config, 64, {"decode": cost})
    assert "3.000 s" in console.file.getvalue()  # type: ignore[attr-defined]


def test_a_party_record_survives_json() -> None:
    party = make_record().parties[1]
    told = json.loads(json.dumps({**asdict(party), "token_ids": [1]}))
    assert PartyRecord.read(told) == party
    del told["kept"]
    with pytest.raises(MpcacheError, match="not complete"):
        PartyRecord.read(told)


def test_a_prediction_is_read_off_a_counting_ledger() -> None:
    prediction = Prediction(2)
    with prediction.scope("prefill"), prediction.scope("open"):
        prediction.step("open", {(0, 1): [Spec((3,))]})
        prediction.opened("answer", "client", 3)
    parties = [PredictedParty.of(ledger) for ledger in prediction.ranks]
    counts = parties[0].scopes["prefill/open"], parties[1].scopes["prefill/open"]
    assert counts[0]["sent_bytes"] == counts[1]["received_bytes"] > 24
    assert parties[0].openings == (Opened("answer", "client", 3),)


def test_the_page_says_where_time_goes_and_what_would_be_elsewhere() -> None:
    phases = {"prefill": {"seconds": 2.0, "dealt_bytes": 5}}
    row = {
        "context": 512,
        "cache": "full",
        "rounds": 40,
        "sent_bytes": [7, 7],
        "dealt_bytes": [0, 9],
        "seconds": {"lan": 0.25},
    }
    record = make_record(dealer=DealerRecord(0, 2.0, 3.0, phases=phases), outlook=[row])
    text = render(build_report(record))
    assert "| prefill, party 0 | 500 ms | 500 ms | 0 us | 0 us |" in text
    assert "| prefill, dealer | 2.000 s | - | - | - |" in text
    assert "| 512 | full | 40 | 7 B each | 9 B | 250 ms |" in text
    assert "(predicted)" in text and "not calibrated" not in text
    plain = render(build_report(make_record(outlook=[{**row, "seconds": None}])))
    assert "| 512 | full | 40 | 7 B each | 9 B |" in plain and "not calibrated" in plain
    assert "(predicted)" not in render(build_report(make_record()))


def test_predicted_seconds_stand_beside_measured_ones() -> None:
    foreseen = {"prefill": 3.0, "token": 1.0}
    report = build_report(make_record(predicted_seconds=foreseen))
    assert report["predicted"]["prefill"]["seconds_error"] == pytest.approx(0.5)
    assert report["predicted"]["decode"]["seconds_error"] == pytest.approx(-0.5)
    said = "predicted seconds, and how far off: prefill 3.000 s (+50%), a token 1.000 s (-50%)"
    assert tables.foreseen(report) == said
    shown = io.StringIO()
    print_summary(Console(file=shown, width=200), report)
    assert said in shown.getvalue()
    assert "| a token, seconds | 2.000 s | 1.000 s (-50%) |" in render(report)
    assert "1.000 s (-50%)" in render_page([report])
    bare = build_report(make_record())
    assert "not calibrated" in tables.foreseen(bare)
    one = build_report(make_record(predicted_seconds={"prefill": 3.0}, decode_steps=0))
    assert one["predicted"]["decode"]["seconds_error"] is None


def test_the_dealer_must_have_dealt_what_was_used() -> None:
    record = replace(make_record(), dealer=DealerRecord(0, 1.0, 2.0))
    report = build_report(record)
    assert report["checks"]["measured_equals_predicted"]
    assert report["secure"]["dealer"] == {
        "dealt_bytes": 0,
        "seconds": 1.0,
        "elapsed_seconds": 2.0,
        "source": "live",
        "phases": {},
        "peak_memory_bytes": None,
    }
    record = replace(record, dealer=DealerRecord(8, 1.0, 2.0))
    assert not build_report(record)["checks"]["measured_equals_predicted"]


def test_counts_of_layers_that_differ_are_told_shortly() -> None:
    assert tables.runs([]) == "none"
    assert tables.runs([12, 12, 9]) == "12 (x2), 9"
    assert tables.runs([[5, 9, 7], [5, 9, 7], [6, 10, 8]]) == "5 to 9 (x2), 6 to 10"


# --- memory --------------------------------------------------------------------------------------

BOUND = "is the sum of each process' peak, an upper bound of what was in use together"


def test_memory_of_every_process_is_named_and_added_up() -> None:
    record = make_record(dealer=DealerRecord(8, 1.0, 2.0, peak_memory_bytes=5 * 10**8))
    report = build_report(record)
    assert report["machine"]["peak_memory"] == {
        "by_process": {
            "party 0": 10**6,
            "party 1": 10**6,
            "the dealer": 5 * 10**8,
            "the launcher with its twin": 3 * 10**9,
        },
        "sum": 3_502_000_000,
    }
    said = f"the dealer 500 MB, the launcher with its twin 3 GB; 3.502 GB {BOUND}."
    assert said in render(report)
    assert said in html.unescape(render_page([report]))


def test_memory_of_all_at_one_time_stands_for_the_sum_where_it_was_looked_at() -> None:
    report = build_report(make_record(together_peak_bytes=3_100_000_000))
    assert report["machine"]["peak_memory"]["together"] == 3_100_000_000
    said = "together 3.1 GB at one time, looked at twice a second"
    assert said in render(report) and BOUND not in render(report)
    least = build_report(make_record(together_peak_bytes=5))  # it was not looked at in time
    assert least["machine"]["peak_memory"]["together"] == 3 * 10**9


def test_memory_that_two_processes_have_together() -> None:
    """A child's own pages count, files that both have mapped count once, one that is gone not."""
    program = "import sys; held = bytearray(b'1') * (300 << 20); print(1, flush=True); input()"
    together = Together()
    together.look([])
    alone = together.most
    child = subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None
    child.stdout.readline()
    together.look([child.pid])
    child.communicate("\n")
    most = together.most
    together.look([child.pid])
    assert alone is not None and most is not None
    assert 300 << 20 < most - alone < 340 << 20
    assert together.most == most, "the most stays when a process has ended"


def test_a_dealer_that_did_not_run_has_no_memory() -> None:
    report = build_report(make_record(dealer=DealerRecord.ahead(8)))
    assert "the dealer" not in report["machine"]["peak_memory"]["by_process"]
    del report["machine"]["peak_memory"]  # as reports had it before
    assert "of the parties 1 MB each; of other processes it was not measured" in render(report)


def test_the_peak_is_the_process_own_and_not_its_parents() -> None:
    """`ru_maxrss` of a child begins with its parent's peak."""
    held = bytearray(400 << 20)
    held[::4096] = bytes(1) * len(held[::4096])
    before = peak_memory_bytes()
    assert before >= 400 << 20
    program = "from mpcache.report.machine import peak_memory_bytes; print(peak_memory_bytes())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 5 << 20 < int(done.stdout) < 300 << 20


def test_what_is_known_of_the_arithmetic_is_said_on_every_page() -> None:
    bare = build_report(make_record())
    assert "Arithmetic" not in render(bare) + render_page([bare])
    told = {"ranges": {"says": "not calibrated"}, "truncation": {"says": "local odds"}}
    report = build_report(make_record(**told))
    assert (report["ranges"], report["truncation"]) == tuple(told.values())
    for page in (render(report), render_page([report])):
        assert "Not calibrated." in page and "Local odds." in page
