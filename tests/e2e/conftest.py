"""A tiny checkpoint, and real processes that are gone after each test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .processes import PROC, Running
from .tiny import save_tiny

CANARY = "zyzzogeton"
PROMPT = f"The {CANARY} is a leafhopper of the tropics."
LONG_PROMPT = f"{PROMPT} " * 5

Start = Callable[..., Running]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not PROC.is_dir():
        for item in items:
            if item.path.is_relative_to(Path(__file__).parent):
                item.add_marker(pytest.mark.skip(reason="finds processes in /proc"))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tiny model."""
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    """Where the processes of a test put their temporary files."""
    folder = tmp_path / "scratch"
    folder.mkdir()
    return folder


@pytest.fixture
def start(tmp_path: Path, scratch: Path) -> Iterator[Start]:
    """Start `mpcache` with the given arguments, in the test's own folder or in `cwd`."""
    running: list[Running] = []

    def begin(*arguments: str | Path, cwd: Path = tmp_path) -> Running:
        running.append(Running(tuple(map(str, arguments)), cwd, scratch))
        return running[-1]

    yield begin
    for process in running:
        process.kill()


@pytest.fixture
def prompt_file(tmp_path: Path) -> Path:
    path = tmp_path / "prompt.txt"
    path.write_text(PROMPT)
    return path
