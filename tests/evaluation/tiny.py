"""A tiny model under a name of its own, for evaluations that run in a moment."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from click.testing import Result
from protocols.tiny import LLAMA, weights
from typer.testing import CliRunner

from mpcache.cli import app
from mpcache.evaluation.lanes import Engine
from mpcache.models.decoder import load_weights
from mpcache.models.registry import Source
from mpcache.models.tokenizer import ByteTokenizer
from mpcache.protocols.operation import PlainMachine
from mpcache.protocols.setting import Setting

SPEC = replace(LLAMA, name="tiny", vocab=262, context=400)
TEXT = "".join(f"Sentence {i} says that {i * i} is the square of {i}. " for i in range(400))


class Backend:
    """Random weights and a token a byte."""

    def __init__(self) -> None:
        self.tensors = weights(SPEC)

    def check(self) -> None:
        pass

    def tensor(self, name: str) -> torch.Tensor:
        return self.tensors[name]

    def tokenizer(self) -> ByteTokenizer:
        return ByteTokenizer(SPEC.vocab)


def source(model: str = "tiny", *_: Any) -> Source:
    return Source(SPEC, "pretrained", "drawn", None, Backend())


def engine() -> Engine:
    machine = PlainMachine(Setting())
    return Engine(machine, load_weights(machine, SPEC, weights(SPEC)))


def call(*arguments: object) -> Result:
    """`mpcache eval` with arguments."""
    return CliRunner().invoke(app, ["eval", *map(str, arguments)])
