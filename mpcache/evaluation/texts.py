"""Real text, cut into windows of tokens."""

from __future__ import annotations

import ast
import hashlib
import platform
import random
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mpcache.config_layers import read_text
from mpcache.errors import UsageError
from mpcache.models.tokenizer import Codec

DEFAULT = "pydoc_data.topics"


@dataclass(frozen=True)
class Text:
    """What is read, and where it comes from; `digest` names it in results."""

    origin: str
    content: str

    @property
    def digest(self) -> str:
        """The first 16 hexadecimal digits of its SHA-256."""
        return hashlib.sha256(self.content.encode()).hexdigest()[:16]


def load_text(files: Sequence[str]) -> Text:
    """The text of `files` one after the other, or Python's language reference if there are none.

    Raises:
        UsageError: a file is missing, not UTF-8 or empty.
    """
    if not files:
        from pydoc_data.topics import topics

        return Text(DEFAULT, "\n\n".join(topics[name] for name in sorted(topics)))
    parts = []
    for file in files:
        content = read_text(file, "the text file").strip()
        if not content:
            raise UsageError(f"the text file {file} is empty; expected UTF-8 text")
        parts.append(content)
    return Text(", ".join(Path(file).name for file in files), "\n\n".join(parts))


def load_docstrings() -> Text:
    """The docstrings of Python's standard library: prose and examples that nothing is tested on."""
    parts = []
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        tree = ast.parse(path.read_bytes())
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                parts.append(ast.get_docstring(node) or "")
    version = platform.python_version()
    return Text(f"docstrings of Python {version}'s library", "\n\n".join(filter(None, parts)))


class Windows:
    """Windows of a text that do not overlap, in an order that the seed shuffles.

    Window i is the same however many are read, so that a longer run goes on from a shorter one.

    Args:
        length: tokens of a window, the model's begin token included where it has one.

    Raises:
        UsageError: the text has fewer than `count` windows.
    """

    def __init__(self, codec: Codec, text: Text, length: int, count: int, seed: int) -> None:
        self.begin = codec.empty
        self.body = codec.encode(text.content)[len(self.begin) :]
        self.size = length - len(self.begin)
        slots = len(self.body) // self.size if self.size > 0 else 0
        if slots < count:
            raise UsageError(
                f"the text ({text.origin}) has {len(self.body):,} tokens: {slots} windows of"
                f" {length}, and {count} were asked for; give a longer --text, or fewer --windows"
            )
        self.order = random.Random(seed).sample(range(slots), slots)

    def __getitem__(self, index: int) -> list[int]:
        first = self.order[index] * self.size
        return [*self.begin, *self.body[first : first + self.size]]
