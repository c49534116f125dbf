"""Real text, cut into windows of tokens."""

from __future__ import annotations

import ast
import hashlib
import platform
import random
import sysconfig
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

from mpcache.config_layers import read_text
from mpcache.errors import UsageError
from mpcache.evaluation.prose import prose
from mpcache.models.tokenizer import Codec

DEFAULT = "pydoc_data.topics"


@dataclass(frozen=True)
class Text:
    """What is read, and where it comes from; `sha256` says which text it is, whatever its name.

    `notice` says where a built-in text is another than the one that was recorded.
    """

    origin: str
    content: str
    notice: str = ""

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content.encode()).hexdigest()

    @property
    def digest(self) -> str:
        """The first 16 hexadecimal digits, which name it in results."""
        return self.sha256[:16]


@dataclass(frozen=True)
class BuiltIn:
    """A text that comes with Python or with what mpcache needs.

    Attributes:
        about: what it is.
        read: the text, and the version of what it comes with.
        version, sha256: of the text that was recorded; other versions have other texts.
    """

    about: str
    read: Callable[[], tuple[str, str]]
    version: str
    sha256: str


def _topics() -> tuple[str, str]:
    from pydoc_data.topics import topics

    content = "\n\n".join(topics[name] for name in sorted(topics))
    return content, f"Python {platform.python_version()}"


def _networkx() -> tuple[str, str]:
    found = util.find_spec("networkx")
    if found is None or found.origin is None:
        raise UsageError("--text networkx: that package, which torch needs, is not installed here")
    return prose(Path(found.origin).parent), f"networkx {metadata.version('networkx')}"


BUILT_IN = {
    DEFAULT: BuiltIn(
        "Python's language reference",
        _topics,
        "Python 3.11.7",
        "71f2ff5d99bdc1f9c48c5c2353ad138201c5ca1c377e0226857ef8fa89b8bcee",
    ),
    "networkx": BuiltIn(
        "what networkx, which torch brings, says about graphs: the sentences of its docstrings",
        _networkx,
        "networkx 3.6.1",
        "fa731b25ed8665f7617fa6be72fb5e141d0b384cb237d5f1d99f15252e3a3bdf",
    ),
}


def load_text(names: Sequence[str]) -> Text:
    """Built-in texts and files one after the other; Python's language reference if none is named.

    Args:
        names: of `BUILT_IN`, or paths (a file of such a name is ``./NAME``).

    Raises:
        UsageError: a file is missing, not UTF-8 or empty.
    """
    texts = [_one(name) for name in names or (DEFAULT,)]
    origin = ", ".join(text.origin for text in texts)
    notices = " ".join(text.notice for text in texts if text.notice)
    return Text(origin, "\n\n".join(text.content for text in texts), notices)


def _one(name: str) -> Text:
    known = BUILT_IN.get(name)
    if known is None:
        try:
            content = read_text(name, "the text file").strip()
        except UsageError as error:
            raise UsageError(
                f"{error}; or a text that is built in: {', '.join(BUILT_IN)}"
            ) from None
        if not content:
            raise UsageError(f"the text file {name} is empty; expected UTF-8 text")
        return Text(Path(name).name, content)
    content, version = known.read()
    text = Text(f"{name} ({version})", content)
    if text.sha256 == known.sha256:
        return text
    notice = (
        f"the text {name} is that of {version}; recorded figures are on that of {known.version}"
        f" (SHA-256 {known.sha256[:16]}...)"
    )
    return Text(text.origin, content, notice)


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
