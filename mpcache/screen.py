"""What `mpcache launch` shows and keeps of the parties' events."""

from __future__ import annotations

import base64
from typing import Any

import torch
from rich.console import Console

from mpcache.config import RunConfig
from mpcache.models.registry import Source
from mpcache.report.record import PHASES, DealerRecord


def write(console: Console, text: str) -> None:
    """Text of the answer, as it is: neither wrapped nor read as markup."""
    console.file.write(text)
    console.file.flush()


class Screen:
    """What the launcher shows and keeps of the parties' events."""

    def __init__(self, console: Console, source: Source, config: RunConfig) -> None:
        self.console, self.config = console, config
        self.layers = source.spec.layers
        self.synthetic = source.kind == "synthetic"
        self.decoder = source.tokenizer().stream()
        self.status = console.status("starting the parties")
        self.ids: list[int] = []
        self.logits: list[torch.Tensor] = []
        self.choices: list[torch.Tensor] = []
        self.results: dict[int, dict[str, Any]] = {}
        self.dealer: DealerRecord | None = None

    def __enter__(self) -> Screen:
        self.status.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.status.stop()
        if self.ids:
            write(self.console, self.decoder.flush() + "\n")

    def on_event(self, rank: int, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "progress" and rank == self.config.client:
            self._progress(str(event.get("where", "")))
        elif kind == "token" and rank == self.config.client:
            self._token(int(event["id"]))
        elif kind == "logits" and rank == self.config.client:
            raw = bytearray(base64.b64decode(event["float32"]))
            self.logits.append(torch.frombuffer(raw, dtype=torch.float32))
        elif kind == "choices" and rank == self.config.client:
            raw = bytearray(base64.b64decode(event["int16"]))
            self.choices.append(torch.frombuffer(raw, dtype=torch.int16))
        elif kind == "dealt":
            self.dealer = DealerRecord.read(event)
        elif kind == "result":
            self.results[rank] = event

    def _progress(self, where: str) -> None:
        phase, _, layer = where.partition("/layer")
        text = f"{phase} layer {int(layer) + 1} of {self.layers}" if layer else where
        self.status.update(text)
        if not self.console.is_terminal and where in PHASES:
            self.console.print(f"[dim]{where} ...[/]")

    def _token(self, token: int) -> None:
        if not self.ids:
            self.status.stop()
            label = "text (MEANINGLESS: synthetic weights)" if self.synthetic else "text"
            write(self.console, f"{label}: ")
        self.ids.append(token)
        write(self.console, self.decoder.push(token))
