"""However a process of a run dies, the others end within ten seconds, say why, and are gone."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from .conftest import CANARY, Start
from .processes import LIMIT, Running, alive, wait_for

IN_PREFILL, IN_DECODE = "prefill ...", "text: "


@pytest.fixture
def launched(start: Start, tiny: Path, long_prompt_file: Path) -> Running:
    """A run of two parties that has seconds of prefill and of decoding to do."""
    return start(
        *("launch", "--parties", "2", "--model", tiny, "--prompt-file", long_prompt_file),
        *("--max-new-tokens", "16", "--set", "network.timeout_s=3", "--report", "run"),
    )


def all_gone(running: Running) -> bool:
    return not any(alive(pid) for pid in running.seen.values())


def no_result(running: Running, tmp_path: Path) -> None:
    assert all_gone(running)
    assert "Traceback" not in running.err
    assert CANARY not in running.out + running.err
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"config.yaml"}


@pytest.mark.parametrize("phase", [IN_PREFILL, IN_DECODE])
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_party_ends_the_launch(
    launched: Running, tmp_path: Path, phase: str, victim: int
) -> None:
    launched.until(phase)
    killed = launched.signal(signal.SIGKILL, launched.parties()[victim])
    assert launched.end(killed, LIMIT) == 1
    where = "prefill" if phase == IN_PREFILL else "decode"
    message = launched.err
    assert f"error: party {victim} was killed by SIGKILL during {where}" in message
    other = 1 - victim
    assert f"party {other} reports: party {victim}: the connection ended (at {where}" in message
    no_result(launched, tmp_path)


def test_a_stopped_party_ends_the_launch(launched: Running, tmp_path: Path) -> None:
    launched.until(IN_DECODE)
    stopped = launched.signal(signal.SIGSTOP, launched.parties()[0])
    # Three seconds of silence, five for the others' last words, two between TERM and KILL.
    assert launched.end(stopped, 3 + LIMIT) == 1
    assert "party 0: no answer for 3 s (at decode/" in launched.err
    assert "party 0 had to be stopped" in launched.err
    no_result(launched, tmp_path)


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGKILL, -9), (signal.SIGTERM, 128 + 15), (signal.SIGINT, 130)],
)
def test_a_killed_launcher_leaves_no_party(
    launched: Running, tmp_path: Path, number: int, code: int
) -> None:
    launched.until(IN_PREFILL)
    assert len(launched.parties()) == 2
    killed = launched.signal(number)
    assert launched.end(killed, LIMIT) == code
    assert wait_for(lambda: all_gone(launched), LIMIT)
    no_result(launched, tmp_path)
