"""A mistake in the input ends `mpcache launch` with exit code 2 before a party is started."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from mpcache.cli import app
from mpcache.parties import supervise

from .conftest import CANARY, PROMPT, Start
from .processes import LIMIT
from .tiny import CONTEXT

Prepare = Callable[[Path, Path], list[str]]


def _model(change: Callable[[Path], object]) -> Prepare:
    """A damaged copy of the tiny model."""

    def prepare(tiny: Path, folder: Path) -> list[str]:
        shutil.copytree(tiny, folder / "model")
        change(folder / "model")
        return ["--model", str(folder / "model"), "--prompt", PROMPT]

    return prepare


def _prompt(content: bytes | None) -> Prepare:
    """A prompt file with this content, or none."""

    def prepare(tiny: Path, folder: Path) -> list[str]:
        if content is not None:
            (folder / "prompt.txt").write_bytes(content)
        return ["--model", str(tiny), "--prompt-file", str(folder / "prompt.txt")]

    return prepare


def _options(*options: str) -> Prepare:
    def prepare(tiny: Path, folder: Path) -> list[str]:
        (folder / "run.yaml").write_text("cache: {alhpa: 0.5}\n")
        (folder / "file").write_text("")
        given = [option.replace("FOLDER", str(folder)) for option in options]
        return ["--prompt", PROMPT, *([] if "--model" in given else ["--model", str(tiny)]), *given]

    return prepare


def _truncate(model: Path) -> None:
    weights = model / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


MISTAKES: dict[str, tuple[Prepare, str]] = {
    "unknown model": (_options("--model", "opt-125n"), "Did you mean opt-125m?"),
    "no such folder": (_options("--model", "FOLDER/none"), "no such folder"),
    "no weights": (_model(lambda m: (m / "model.safetensors").unlink()), "has no weights"),
    "truncated weights": (_model(_truncate), "is truncated"),
    "no tokenizer": (_model(lambda m: (m / "tokenizer.json").unlink()), "has no tokenizer"),
    "weights not to be had": (
        _options("--model", "opt-125m", "--weights", "required"),
        "facebook/opt-125m: is not in the local Hugging Face cache",
    ),
    "empty prompt": (_options("--prompt", ""), "the prompt is empty"),
    "prompt too long": (
        _prompt(f"{CANARY} ".encode() * CONTEXT),
        f"exceed the context of tiny, {CONTEXT} tokens; shorten the prompt",
    ),
    "prompt not UTF-8": (_prompt(CANARY.encode() + b" caf\xe9"), "is not UTF-8 (byte 14)"),
    "no prompt file": (_prompt(None), "does not exist"),
    "1 party": (_options("--parties", "1"), "parties: 1 is not allowed; expected 2 or 3"),
    "4 parties": (_options("--parties", "4"), "parties: 4 is not allowed; expected 2 or 3"),
    "unknown key": (_options("--config", "FOLDER/run.yaml"), "did you mean cache.alpha?"),
    "dynamic_keep": (_options("--set", "cache.dynamic_keep=1.5"), "cache.dynamic_keep: 1.5 is"),
    "unknown policy": (_options("--cache", "mpcash"), "cache.policy: 'mpcash' is not allowed"),
    "report is a file": (_options("--report", "FOLDER/file"), "file cannot be made: File exists"),
    "no GPU": (_options("--device", "cuda"), "torch sees no GPU here; use --device cpu"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_exit_2_and_one_clear_message(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mistake: str
) -> None:
    if mistake == "no GPU" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")

    def nothing(*_: object, **__: object) -> None:
        raise AssertionError("a process was started")

    monkeypatch.setattr(supervise.subprocess, "Popen", nothing)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    prepare, message = MISTAKES[mistake]
    arguments = prepare(tiny, tmp_path)
    done = CliRunner().invoke(app, ["launch", *arguments])
    assert done.exit_code == 2, done.output
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert CANARY not in done.output + done.stderr
    assert done.stdout == ""
    assert not (tmp_path / "runs").exists()


def test_a_mistake_in_a_real_process(start: Start, tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text(CANARY * CONTEXT)
    running = start("launch", "--model", tiny, "--prompt-file", "long.txt")
    assert running.end(running.began, 3 * LIMIT) == 2
    assert running.err.startswith("error: the prompt has ")
    assert running.err.count("\n") == 1
    assert running.out == ""
    assert CANARY not in running.err
    assert not (tmp_path / "runs").exists()
