"""The table of peers: every system's own figures, grouped by what was measured."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from mpcache.benchmarking import sweep
from mpcache.benchmarking.operators import OPERATORS

PEERS = Path(__file__).parent.parent / "benchmarks" / "peers"


def _script(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(f"peers_{name}", PEERS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _row(**changes: Any) -> dict[str, Any]:
    row = {
        "kind": "ops", "operator": "relu 8192", "protocol": "dealer", "parties": 2, "profile": "",
        "emulated": None, "version": "9", "rounds": 3, "sent_bytes": [1000, 2000],
        "seconds": {"median": 0.002, "min": 0.001, "max": 0.003, "count": 3},
        "plaintext_seconds": {"median": 5e-6, "min": 4e-6, "max": 6e-6, "count": 3},
        "parts": [], "machine": {"torch": "2.13"}, **changes,
    }  # fmt: skip
    return row


def _layer(**changes: Any) -> dict[str, Any]:
    usual = {"context": 1024, "layers": 1, "cache": "mpcache", "keep": 0.2}
    return _row(kind="decode", **(usual | changes))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    rows = [
        _row(),
        _row(protocol="crypten", rounds=9, seconds={"median": 0.5, "min": 0.4, "max": 0.6}),
        _layer(),
        _layer(context=2048),
        _row(operator="elsewhere", emulated={"rtt_ms": 1.0, "mbps": 0.0}),
        _row(operator="three", parties=3),
    ]
    sweep.write_lines(tmp_path / "ours.jsonl", rows)
    spu = {
        "system": "SPU 0.9.5", "protocol": "ABY3, 3 parties, FM64", "operator": "relu 8192",
        "seconds": {"median": 0.03, "min": 0.02, "max": 0.04}, "sent_bytes": None,
        "send_actions": 11,
    }  # fmt: skip
    (tmp_path / "spu.jsonl.txt").write_text(json.dumps(spu) + "\n")
    return tmp_path


def test_the_table_has_every_system_with_its_version(folder: Path) -> None:
    table = _script("table")
    text = table.markdown(table.ours([folder]), table.theirs(folder / "spu.jsonl.txt"))
    lines = [line for line in text.splitlines() if line.startswith("| relu")]
    assert [line.split(" | ")[1] for line in lines] == [  # the fastest first
        "plaintext, torch 2.13",
        "mpcache 9, dealer",
        "SPU 0.9.5, ABY3, 3 parties, FM64",
        "mpcache 9, crypten (0.4.1)",
    ]
    assert lines[1] == "| relu 8192 | mpcache 9, dealer | 2 ms | 1 ms to 3 ms | 2 kB | 3 |"
    assert lines[2].endswith("| - | 11 |")
    assert "| one decoder layer, T=1024, mpcache 20% | mpcache 9, dealer |" in text
    for absent in ("2048", "elsewhere", "three"):
        assert absent not in text


def test_the_command_fills_a_file_between_its_markers(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = folder / "page.md"
    page.write_text("a\n<!-- bench peers: begin -->\nold\n<!-- bench peers: end -->\nb\n")
    given = ["table.py", "--ours", str(folder), "--peers", str(folder / "spu.jsonl.txt")]
    monkeypatch.setattr(sys, "argv", [*given, "--write", str(page)])
    _script("table").main()
    assert "relu 8192" in page.read_text() and "old" not in page.read_text()
    monkeypatch.setattr(sys, "argv", [*given[:-1], str(folder / "nothing")])
    with pytest.raises(SystemExit, match="make bench-peers"):
        _script("table").main()


def test_operators_of_peers_are_measured_here_too() -> None:
    """The names in the peer's script, read without importing what it needs."""
    text = (PEERS / "spu_peer.py").read_text()
    known = {operator.name for operator in OPERATORS}
    names = {name for name in known if f'"{name}"' in text}
    assert len(names) >= 10
    assert {f"attention, 32 heads, T={tokens}, full" for tokens in (512, 1024)} <= known
