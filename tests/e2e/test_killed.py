"""However a process of a run dies, the others end within seconds, say why, and are gone."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import CANARY, LONG_PROMPT, Start
from .processes import DEALER, LIMIT, Running, alive, wait_for

IN_PREFILL, IN_DECODE = "prefill ...", "text: "  # what the launcher prints at that point
Launch = Callable[..., Running]


@pytest.fixture
def launch(start: Start, tiny: Path, prompt_file: Path) -> Launch:
    """Start a run of two parties with these options."""
    return lambda *options: start(
        *("launch", "--parties", "2", "--model", tiny, "--prompt-file", prompt_file),
        *("--protocol", "crypten", "--report", "run", *options),
    )


@pytest.fixture
def prefilling(launch: Launch) -> Running:
    """A run that has begun its prefill; on this network it takes longer than any limit here."""
    running = launch("--max-new-tokens", "1", "--network", "wan-slow")
    assert wait_for(lambda: len(running.parties()) == 2)
    running.until(IN_PREFILL)
    return running


@pytest.fixture
def decoding(launch: Launch) -> Running:
    """A run that has printed its first token, with seconds of decoding left."""
    return in_decode(launch("--max-new-tokens", "16"))


def in_decode(running: Running) -> Running:
    running.until(IN_DECODE)
    assert len(running.parties()) == 2
    return running


def all_gone(running: Running) -> bool:
    return not any(alive(pid) for pid in running.seen.values())


def no_result(running: Running, tmp_path: Path) -> None:
    assert all_gone(running)
    assert "Traceback" not in running.err
    assert CANARY not in running.out + running.err
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"config.yaml"}


def is_named(running: Running, victim: int, victim_in: str, other_in: str) -> None:
    """The message names the victim and its step, and what its peer saw and where."""
    why = rf"error: party {victim} was killed by SIGKILL during ({victim_in})"
    seen = rf"party {1 - victim} reports: party {victim}: the connection ended \(at ({other_in})"
    assert re.search(f"{why}.*; {seen}", running.err), running.err


@pytest.mark.parametrize("victim", [0, 1])
def test_a_party_killed_in_prefill_ends_the_launch(
    prefilling: Running, tmp_path: Path, victim: int
) -> None:
    killed = prefilling.signal(signal.SIGKILL, prefilling.seen[victim])
    assert prefilling.end(killed, LIMIT) == 1
    # The client alone is known to be in prefill: the other party may be a step behind it.
    is_named(prefilling, victim, "setup|prefill", "setup|prefill")
    no_result(prefilling, tmp_path)


@pytest.mark.parametrize("victim", [0, 1])
def test_a_party_killed_in_decode_ends_the_launch(
    decoding: Running, tmp_path: Path, victim: int
) -> None:
    killed = decoding.signal(signal.SIGKILL, decoding.seen[victim])
    assert decoding.end(killed, LIMIT) == 1
    is_named(decoding, victim, "prefill/layer2|decode step", "prefill/next-token|decode/")
    no_result(decoding, tmp_path)


def test_a_killed_dealer_ends_the_launch(launch: Launch, tmp_path: Path) -> None:
    """The dealer is killed while it still deals; a long prompt gives it seconds of work."""
    (tmp_path / "long.txt").write_text(LONG_PROMPT)
    running = launch("--max-new-tokens", "1", "--protocol", "dealer", "--prompt-file", "long.txt")
    assert wait_for(lambda: len(running.parties()) == 3)
    running.until(IN_PREFILL)
    killed = running.signal(signal.SIGKILL, running.seen[DEALER])
    assert running.end(killed, LIMIT) == 1
    assert "error: the dealer was killed by SIGKILL" in running.err
    assert re.search(r"reports: (the dealer|party 2): the connection ended \(at ", running.err)
    no_result(running, tmp_path)


def test_a_stopped_party_ends_the_launch(launch: Launch, tmp_path: Path) -> None:
    decoding = in_decode(launch("--max-new-tokens", "16", "--set", "network.timeout_s=3"))
    stopped = decoding.signal(signal.SIGSTOP, decoding.seen[0])
    # Three seconds of silence, five for the others' last words, two between TERM and KILL.
    assert decoding.end(stopped, 3 + LIMIT) == 1
    assert "party 0: no answer for 3 s (at decode/" in decoding.err
    assert "party 0 had to be stopped" in decoding.err
    no_result(decoding, tmp_path)


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGKILL, -9), (signal.SIGTERM, 128 + 15), (signal.SIGINT, 130)],
)
def test_a_killed_launcher_leaves_no_party(
    prefilling: Running, tmp_path: Path, number: int, code: int
) -> None:
    killed = prefilling.signal(number)
    assert prefilling.end(killed, LIMIT) == code
    assert wait_for(lambda: all_gone(prefilling), LIMIT)
    no_result(prefilling, tmp_path)
