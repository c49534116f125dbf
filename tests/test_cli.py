"""Bad input ends with exit code 2 and one clear message; nothing is started for it."""

from __future__ import annotations

import os
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import mpcache
from mpcache.cli import app
from mpcache.config import BUILT_IN_PROMPT, RunConfig
from mpcache.errors import MpcacheError, PeerError


class _Started:
    """Stands in for the modules that start work, and notes what they were given."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.result: int | BaseException = 0

    def __call__(self, name: str, *given: Any) -> int:
        self.calls.append((name, given))
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> _Started:
    record = _Started()
    launching = types.ModuleType("mpcache.launching")
    launching.launch = lambda config, console: record("launch", config)  # type: ignore[attr-defined]
    launching.generate_plain = lambda config, console: record("generate", config)  # type: ignore[attr-defined]
    session = types.ModuleType("mpcache.session")
    session.party_main = (  # type: ignore[attr-defined]
        lambda config, rank, *, events, prompt: record("party", config, rank, events, prompt)
    )

    def predict(config: RunConfig, prompt_tokens: int) -> dict[str, Any]:
        record("cost", config, prompt_tokens)
        return {"prefill": {"rounds": 7, "sent_bytes": [10, 20], "dealt_bytes": [0, 0]}}

    launching.predict = predict  # type: ignore[attr-defined]
    for name, module in (("launching", launching), ("session", session)):
        monkeypatch.setitem(sys.modules, f"mpcache.{name}", module)
        monkeypatch.setattr(mpcache, name, module, raising=False)
    return record


def _run(*arguments: str, stdin: str | None = None) -> Any:
    return CliRunner().invoke(app, arguments, input=stdin)


def test_launch_without_arguments_runs_the_built_in_prompt(started: _Started) -> None:
    assert _run("launch", "--parties", "2").exit_code == 0
    ((name, (config,)),) = started.calls
    assert name == "launch"
    assert config.prompt == BUILT_IN_PROMPT
    assert (config.parties, config.model) == (2, "smollm2")


def test_named_options_over_set_over_file(started: _Started, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("parties: 3\nmax_new_tokens: 5\ncache: {alpha: 0.5}\nprompt: from yaml\n")
    result = _run(
        *("launch", "--config", str(file), "--set", "max_new_tokens=6", "--set", "cache.sink=1"),
        *("--max-new-tokens", "7", "--cache", "full", "--network", "20,100", "--no-chat"),
        *("--prompt", "from the command line", "--verify"),
    )
    assert result.exit_code == 0, result.output
    config = started.calls[0][1][0]
    assert (config.parties, config.max_new_tokens, config.chat) == (3, 7, False)
    assert (config.cache.policy, config.cache.alpha, config.cache.sink) == ("full", 0.5, 1)
    assert (config.network.rtt_ms, config.network.mbps) == (20.0, 100.0)
    assert (config.prompt, config.verify) == ("from the command line", True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["launch", "--parties", "1"], "parties: 1 is not allowed; expected 2 or 3"),
        (["launch", "--parties", "4"], "parties: 4 is not allowed; expected 2 or 3"),
        (["launch", "--parties", "two"], "--parties"),
        (["launch", "--prompt", ""], "the prompt is empty"),
        (["launch", "--prompt", "  "], "the prompt is empty"),
        (["launch", "--prompt", "\udcff"], "not UTF-8"),
        (["launch", "--prompt-file", "BAD"], "is not UTF-8"),
        (["launch", "--prompt-file", "EMPTY"], "is empty"),
        (["launch", "--prompt-file", "MISSING"], "does not exist"),
        (["launch", "--prompt", "a", "--prompt-file", "b"], "keep one of them"),
        (["launch", "--config", "MISSING"], "there is no configuration"),
        (["launch", "--config", "BAD"], "is not UTF-8"),
        (["launch", "--config", "YAML"], "did you mean cache.dynamic_keep?"),
        (["launch", "--set", "cache.dynamic_keep=1.5"], "at most 1"),
        (["launch", "--set", "cache.alhpa=1"], "did you mean cache.alpha?"),
        (["launch", "--network", "5"], "network.name"),
        (["launch", "--protocol", "replicated"], "not available in this version"),
        (["launch", "--nonsense"], "No such option"),
        (
            ["launch", "--temperature", "-0.1"],
            "temperature: -0.1 is not allowed; expected",
        ),
        (["launch", "--temperature", "nan"], "temperature: nan is not allowed"),
        (["launch", "--temperature", "inf"], "temperature: inf is not allowed"),
        (["launch", "--temperature", "10.5"], "from 0 (the likeliest token) to 10"),
        (["launch", "--temperature", "warm"], "--temperature"),
        (["launch", "--parties", "3", "--temperature", "1"], "set protocol: dealer (2 parties)"),
        (["launch", "--protocol", "crypten", "--temperature", "1"], "does not draw tokens"),
        (["party", "--rank", "0", "--temperature", "-1"], "temperature: -1.0 is not allowed"),
        (["generate", "--temperature", "-inf"], "temperature: -inf is not allowed"),
        (["deal", "--temperature", "nan"], "temperature: nan is not allowed"),
        (["generate", "--prompt", ""], "the prompt is empty"),
        (["cost", "--prompt-tokens", "0"], "--prompt-tokens"),
        (["cost"], "--prompt-tokens"),
        (["party", "--rank", "2"], "--rank 2 is no party of 2"),
        (["party", "--rank", "-1"], "--rank -1 is no party"),
        (["party", "--rank", "0", "--prompt", "hi"], "party 0 must not learn the prompt"),
        (["keys", "MISSING", "--parties", "4"], "expected 2 or 3"),
        (["deal", "--sessions", "2"], "--prompt-tokens and --store missing: to deal ahead give"),
        (["deal", "--store", "MISSING"], "--sessions and --prompt-tokens missing"),
        (
            ["deal", "--sessions", "0", "--prompt-tokens", "3", "--store", "MISSING"],
            "--sessions",
        ),
        (["launch", "--protocol", "crypten", "--store", "MISSING"], "takes nothing from a store"),
        (["report", "MISSING"], "does not exist"),
        (["nonsense"], "No such command"),
        ([], "Usage"),
    ],
)
def test_bad_input_is_exit_2_before_anything_starts(
    started: _Started, tmp_path: Path, arguments: list[str], message: str
) -> None:
    files = {
        "BAD": b"caf\xe9: 1",
        "EMPTY": b"\n",
        "YAML": b"dynamic_keep: 1.5\n",
    }
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    paths = {name: str(tmp_path / name) for name in (*files, "MISSING")}
    result = _run(*(paths.get(part, part) for part in arguments))
    assert result.exit_code == 2, result.output
    shown = result.output + result.stderr
    assert message in " ".join(shown.replace("│", " ").split())
    assert "Traceback" not in shown
    assert started.calls == []


def test_a_temperature_reaches_every_party(started: _Started) -> None:
    for command in (["launch"], ["generate"], ["party", "--rank", "0"]):
        assert _run(*command, "--temperature", "0.7").exit_code == 0
    assert [given[0].temperature for _, given in started.calls] == [0.7] * 3


@pytest.mark.parametrize(
    ("failure", "exit_code", "message"),
    [
        (PeerError("party 1", "decode/layer3", "it stopped answering"), 1, "error: party 1: it"),
        (MpcacheError("first\nsecond"), 1, "error: first\nerror: second"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (3, 3, ""),
    ],
)
def test_failures_become_exit_codes(
    started: _Started, failure: Any, exit_code: int, message: str
) -> None:
    started.result = failure
    result = _run("launch")
    assert result.exit_code == exit_code
    assert message in result.stderr


def test_the_prompt_reaches_the_client_alone(started: _Started, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("prompt: secret text\n")
    for rank in ("0", "1"):
        assert _run("party", "--rank", rank, "--config", str(file)).exit_code == 0
    (_, (owner, _, _, nothing)), (_, (client, rank, events, text)) = started.calls
    assert nothing is None
    assert (rank, events, text) == (1, False, "secret text")
    assert owner.prompt is client.prompt is None


def test_under_launch_the_prompt_comes_with_the_secrets(started: _Started) -> None:
    assert _run("party", "--rank", "1", "--events").exit_code == 0
    assert started.calls[0][1][2:] == (True, None)


def test_a_prompt_from_standard_input(started: _Started) -> None:
    assert _run("party", "--rank", "1", "--prompt-file", "-", stdin="piped in\n").exit_code == 0
    assert started.calls[0][1][3] == "piped in"


def test_cost_prints_a_table_and_json(started: _Started) -> None:
    result = _run("cost", "--prompt-tokens", "64", "--network", "wan")
    assert "140 ms" in result.output
    result = _run("cost", "--prompt-tokens", "64", "--json")
    assert '"rounds": 7' in result.output


def test_models_lists_the_default() -> None:
    result = _run("models")
    assert result.exit_code == 0, result.output
    assert "smollm2" in result.output
    assert "opt-125m" in result.output


def test_policies_lists_all_of_them_with_their_price() -> None:
    from mpcache.eviction.names import POLICY_NAMES

    result = _run("policies", "--model", "opt-125m", "--prompt-tokens", "40")
    assert result.exit_code == 0, result.output
    cells = [line.strip("│ ").split("│") for line in result.output.splitlines() if "│" in line]
    named = [row for row in cells if row[0].strip() in POLICY_NAMES]
    assert tuple(row[0].strip() for row in named) == POLICY_NAMES
    assert [row[-1].strip() == "-" for row in named] == [name == "oracle" for name in POLICY_NAMES]
    assert _run("policies", "--budget", "0").exit_code == 2


def test_keys_writes_one_identity_a_party(tmp_path: Path) -> None:
    folder = tmp_path / "keys"
    assert _run("keys", str(folder), "--parties", "3").exit_code == 0
    assert len(list(folder.glob("*.key"))) == 3
    assert _run("keys", str(folder), "--parties", "3").exit_code == 2


def test_the_module_runs_as_a_command() -> None:
    root = Path(mpcache.__file__).parent.parent
    arguments = [sys.executable, "-m", "mpcache", "launch", "--prompt", os.fsdecode(b"caf\xe9")]
    done = subprocess.run(arguments, cwd=root, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: prompt: the text is not allowed (it is not UTF-8)")
    assert done.stdout == ""
