"""Processes: events, secrets, and that nothing is left behind however a run ends."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from mpcache.errors import MpcacheError, PeerError, UsageError
from mpcache.parties.events import Events, read_secrets
from mpcache.parties.supervise import PartyCommand, PartyExit, failure, supervise

ROOT = Path(__file__).resolve().parents[2]
ENV = {**os.environ, "PYTHONPATH": str(ROOT)}

# Of the package the children import what is light: importing torch takes a second.
PRELUDE = """
import json, os, signal, sys, time
from mpcache.parties import events
secrets = events.read_secrets(sys.stdin)
events.watch_parent(sys.stdin)
out = events.Events.on_stdout()
"""


def command(rank: int, body: str, **secrets: Any) -> PartyCommand:
    return PartyCommand(rank, f"party {rank}", [sys.executable, "-c", PRELUDE + body], secrets)


def run(*bodies: str, **options: Any) -> tuple[list[PartyExit], list[tuple[int, dict[str, Any]]]]:
    seen: list[tuple[int, dict[str, Any]]] = []
    commands = [command(rank, body) for rank, body in enumerate(bodies)]
    exits = supervise(commands, lambda rank, event: seen.append((rank, event)), **options)
    return exits, seen


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def gone(pids: list[int], seconds: float = 3.0) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if not any(alive(pid) for pid in pids):
            return True
        time.sleep(0.02)
    return False


HANG = "out.emit('pid', pid=os.getpid())\ntime.sleep(60)\n"


def test_parties_that_end_well() -> None:
    threads: set[int] = set()
    commands = [
        command(
            rank,
            "out.emit('said', length=len(secrets['prompt']), number=secrets['number'])\n"
            "print('stray'); out.emit('done', text='\\u00e9\\n', where='decode step 2')",
            prompt="p" * 200_000,
            number=rank,
        )
        for rank in range(2)
    ]
    seen: list[tuple[int, dict[str, Any]]] = []

    def on_event(rank: int, event: dict[str, Any]) -> None:
        threads.add(threading.get_ident())
        seen.append((rank, event))

    exits = supervise(commands, on_event)
    assert [(end.rank, end.code, end.signal, end.ended, end.failed) for end in exits] == [
        (0, 0, None, False, False),
        (1, 0, None, False, False),
    ]
    for rank in range(2):
        assert [event for who, event in seen if who == rank] == [
            {"event": "said", "length": 200_000, "number": rank},
            {"event": "done", "text": "é\n", "where": "decode step 2"},
        ]
        assert exits[rank].stderr == ("stray",)
        assert exits[rank].where == "decode step 2"
    assert failure(exits) == ""
    assert threads == {threading.get_ident()}
    assert "ppp" not in repr(commands[0])


def test_one_that_fails_names_itself_and_ends_the_others() -> None:
    exits, seen = run(
        HANG,
        "from mpcache.errors import MpcacheError\n"
        "out.emit('progress', where='prefill layer 3')\n"
        "print('line', file=sys.stderr)\n"
        "out.error(MpcacheError('out of correlations')); sys.exit(1)",
        grace_s=0.3,
    )
    pids = [event["pid"] for _, event in seen if event["event"] == "pid"]
    assert gone(pids, 0.1)
    assert (exits[1].code, exits[1].ended) == (1, False)
    assert (exits[0].signal, exits[0].ended) == (signal.SIGTERM, True)
    assert failure(exits) == (
        "party 1 exited with code 1 during prefill layer 3: out of correlations;"
        " party 0 had to be stopped"
    )


def test_one_that_is_killed_is_named_though_the_other_reports_first() -> None:
    exits, _ = run(
        "out.emit('at', where='decode step 3'); os.kill(os.getpid(), 9)",
        "from mpcache.errors import PeerError\n"
        "out.error(PeerError('party 0', 'decode/layer1', 'the connection ended')); sys.exit(1)",
        grace_s=3,
    )
    assert (exits[0].code, exits[0].signal) == (None, signal.SIGKILL)
    assert exits[1].error is not None and exits[1].error["peer"] == "party 0"
    assert failure(exits) == (
        "party 0 was killed by SIGKILL during decode step 3;"
        " party 1 reports: party 0: the connection ended (at decode/layer1)"
    )


def test_one_that_fails_without_an_event_shows_the_end_of_its_stderr() -> None:
    exits, _ = run("print('a\\x1b[2J', file=sys.stderr)\nraise RuntimeError('broken')")
    assert failure(exits) == "party 0 exited with code 1: RuntimeError: broken"
    assert len(exits[0].stderr) <= 50


def test_stderr_is_kept_to_fifty_lines() -> None:
    exits, _ = run("for i in range(300): print('x' * 900, i, file=sys.stderr)\nprint('last')")
    assert len(exits[0].stderr) == 50
    assert all(len(line) <= 500 for line in exits[0].stderr)
    assert exits[0].stderr[-1] == "last"


def test_all_that_hang_are_ended_at_the_timeout() -> None:
    ignoring = "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n" + HANG
    began = time.monotonic()
    exits, seen = run(HANG, ignoring, timeout_s=1.0)
    assert 0.9 < time.monotonic() - began < 5
    assert [end.signal for end in exits] == [signal.SIGTERM, signal.SIGKILL]
    assert gone([event["pid"] for _, event in seen], 0.1)
    assert failure(exits) == "party 0, party 1 did not end in time and had to be stopped"


def test_what_a_party_started_ends_with_it() -> None:
    body = (
        "import subprocess\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "out.emit('pid', pid=child.pid)"
    )
    exits, seen = run(body)
    assert exits[0].code == 0
    assert gone([seen[0][1]["pid"]])


def test_a_line_that_is_no_event_is_an_error_and_is_not_shown() -> None:
    body = "os.write(out._stream.fileno(), b'the secret prompt\\n[1]\\n{\"a\": 1}\\n\\xff\\n')"
    exits, seen = run(body)
    assert [event["event"] for _, event in seen] == ["error"] * 4
    assert seen[0][1]["message"] == "party 0 wrote a line of 18 bytes that is no event"
    assert "secret" not in json.dumps(seen)
    assert not exits[0].failed


def test_an_exception_in_the_launcher_ends_all() -> None:
    pids: list[int] = []

    def on_event(rank: int, event: dict[str, Any]) -> None:
        pids.append(event["pid"])
        if len(pids) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        supervise([command(rank, HANG) for rank in range(2)], on_event)
    assert gone(pids, 0.1)


def test_a_command_that_does_not_exist() -> None:
    pids: list[int] = []
    bad = PartyCommand(1, "party 1", ["/nonexistent/program"])
    with pytest.raises(MpcacheError, match="cannot start party 1"):
        supervise([command(0, HANG), bad], lambda rank, event: pids.append(event["pid"]))
    assert gone(pids)


LAUNCHER = """
import sys, json
sys.path.insert(0, sys.argv[1])
from mpcache.parties.supervise import PartyCommand, supervise
commands = [PartyCommand(r, f"party {r}", [sys.executable, "-c", sys.argv[2]]) for r in range(2)]
supervise(commands, lambda rank, event: print(event["pid"], flush=True))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_launcher_that_is_killed_leaves_nobody(number: signal.Signals) -> None:
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(ROOT), PRELUDE + HANG],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=ENV,
    )
    assert launcher.stdout is not None
    pids = [int(launcher.stdout.readline()) for _ in range(2)]
    assert all(map(alive, pids))
    launcher.send_signal(number)
    code = launcher.wait(10)
    assert code == {signal.SIGKILL: -9, signal.SIGTERM: 128 + 15, signal.SIGINT: -2}[number]
    assert gone(pids)
    launcher.stdout.close()


# --- events and secrets ---------------------------------------------------------------------------


def test_events_are_one_line_each() -> None:
    stream = io.StringIO()
    Events(stream).emit("token", text="a\nb", id=3)
    assert stream.getvalue() == '{"event": "token", "text": "a\\nb", "id": 3}\n'


def test_events_outlive_their_reader() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    stream = os.fdopen(writer, "w")
    Events(stream).emit("token")
    Events(stream).emit("token")
    with pytest.raises(BrokenPipeError):
        stream.close()
    Events(stream).emit("token")


def test_an_error_event_does_not_quote_values() -> None:
    stream = io.StringIO()
    events = Events(stream)
    events.error(ValueError("the prompt"))
    events.error(UsageError("no file x"))
    events.error(PeerError("party 1", "decode", "gone"))
    first, second, third = map(json.loads, stream.getvalue().splitlines())
    assert first == {"event": "error", "message": "ValueError (see its log)", "exit_code": 1}
    assert second == {"event": "error", "message": "no file x", "exit_code": 2}
    assert (third["peer"], third["step"]) == ("party 1", "decode")


def test_secrets_are_one_object_and_never_quoted() -> None:
    stdin = io.StringIO('{"prompt": "a\\nb"}\nrest\n')
    assert read_secrets(stdin) == {"prompt": "a\nb"}
    assert stdin.read() == "rest\n"
    for line in ("", "hunter2\n", '["hunter2"]\n', '{"hunter2": \n'):
        with pytest.raises(UsageError, match="secrets on stdin") as caught:
            read_secrets(io.StringIO(line))
        assert "hunter2" not in str(caught.value)
        assert caught.value.__context__ is None or "hunter2" not in str(caught.value.__context__)
