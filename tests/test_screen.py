"""What the launcher shows while parties work: where they are, layer by layer."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest
from protocols.tiny import FULL, config
from rich.console import Console

from mpcache.screen import Screen
from mpcache.session import _report_progress


class Told:
    """A voice that keeps what it is told."""

    def __init__(self) -> None:
        self.places: list[str] = []

    def where(self, path: str) -> None:
        self.places.append(path)


def test_setup_and_prefill_are_told_layer_by_layer() -> None:
    told = Told()
    for path in (
        *("setup", "setup/layer0", "setup/layer11", "prefill", "prefill/embed", "prefill/layer2"),
        *("prefill/layer2/attention", "decode", "decode/layer0"),
    ):
        _report_progress(told, path)
    assert told.places == [*("setup", "setup/layer0", "setup/layer11", "prefill", "prefill/layer2")]


@pytest.mark.parametrize(
    ("where", "shown"),
    [
        ("setup", "setup"),
        ("setup/layer0", "setup layer 1 of 3"),
        ("prefill/layer2", "prefill layer 3 of 3"),
    ],
)
def test_the_line_on_the_screen(where: str, shown: str) -> None:
    tokenizer = SimpleNamespace(stream=lambda: None)
    source: Any = SimpleNamespace(
        spec=SimpleNamespace(layers=3), kind="pretrained", tokenizer=lambda: tokenizer
    )
    console = Console(file=io.StringIO(), force_terminal=True)
    screen = Screen(console, source, config(2, FULL))
    event = {"event": "progress", "where": where}
    screen.on_event(screen.config.owner, event)
    assert screen.status.status == "starting the parties", "the client's place counts"
    screen.on_event(screen.config.client, event)
    assert screen.status.status == shown
