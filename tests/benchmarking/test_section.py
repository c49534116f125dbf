"""Lines of a sweep on the HTML page: the figures of the lines, and nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from mpcache.benchmarking.section import section
from mpcache.cli import app
from mpcache.errors import UsageError

from .test_scaling import CONTEXTS, _row

MACHINE = {
    "cpu": "a processor", "cores": 2, "memory_bytes": 10**9, "system": "Linux x86_64",
    "python": "3.11", "torch": "2.13",
}  # fmt: skip


def whole_row(cache: str, context: int, seconds: float, **changes: Any) -> dict[str, Any]:
    part = {"compute": 0.5 * seconds, "wait": 0.125 * seconds, "transfer": 0.25 * seconds}
    part |= {"dealer": 0.125 * seconds, "busy": seconds}
    return _row(
        cache,
        context,
        seconds,
        device="cpu",
        rounds=48,
        emulated=None,
        predicted_seconds=seconds * 1.1,
        dealer_seconds=0.05,
        plaintext_seconds={"median": 0.01},
        parts=[part, {name: value / 2 for name, value in part.items()}],
        machine=MACHINE,
        weights="synthetic",
        **({"keep": 0.2} if cache != "full" else {}),
        **changes,
    )


def _lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    for row in rows:
        row["seconds"] |= {"min": 0.9 * row["seconds"]["median"], "max": 9.0, "count": 3}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _scaling() -> list[dict[str, Any]]:
    rows = [whole_row("full", t, t / 1000) for t in CONTEXTS]
    return rows + [whole_row("mpcache", t, t**0.5 / 30) for t in CONTEXTS]


def test_a_file_of_lines_is_a_section(tmp_path: Path) -> None:
    text = str(section(_lines(tmp_path / "scaling.jsonl", _scaling())))
    assert "Measured: one decode step (scaling)" in text
    assert text.count("<polyline") == 3 * 2
    assert "4.096 s" in text and "(+10%)" in text
    assert "How many times as much the full cache takes" in text
    assert "<td>1.92</td>" in text
    assert "a processor" in text
    chart = text.partition("Where the time goes")[2].partition("</figure>")[0]
    assert 'class="transfer" x="625.00" y="0" width="250.00"' in chart


def test_a_page_of_lines_alone(tmp_path: Path) -> None:
    path = _lines(tmp_path / "scaling.jsonl", _scaling())
    result = CliRunner().invoke(app, ["report", str(path)])
    assert result.exit_code == 0, result.output
    text = (tmp_path / "report.html").read_text()
    assert "mpcache: measured" in text and "Words used on this page" in text


@pytest.mark.parametrize("damage", ["", "{}\n", '{"kind": "decode"}\n'])
def test_lines_that_cannot_be_shown_are_refused(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(damage)
    with pytest.raises(UsageError):
        section(path)
    assert CliRunner().invoke(app, ["report", str(path)]).exit_code == 2
    assert not (tmp_path / "report.html").exists()
