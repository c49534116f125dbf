"""Built-in texts are long, of words, and recorded; prose is told from code."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from mpcache.errors import UsageError
from mpcache.evaluation import texts
from mpcache.evaluation.prose import prose
from mpcache.evaluation.texts import BUILT_IN, BuiltIn, load_text

MODULE = '''"""A module's first sentence, which is long enough to be taken as a paragraph of text.

    An indented block is an example, however long it is and however it ends. It is left out.

Look at :func:`~package.module.name` and at :class:`Other <package.Other>`, which do the
same with ``two lines`` that become one [1]_.

Too short.

A sentence with code = in it, which no reader would take for English prose at all, really.

* A list is no paragraph of prose, though its sentences are as long as those of a paragraph.

Numbers 1234567890 1234567890 1234567890 1234567890 are not what a sentence is made of here.
"""


class First:
    """A class says something of its own, in one sentence that is as long as it has to be."""

    def inner(self):
        """A module's first sentence, which is long enough to be taken as a paragraph of text."""


def outer():
    x = "no docstring, however long the text in this string may be, since it is assigned."
'''


def test_prose_of_a_package_by_hand(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "tests").mkdir()
    (tmp_path / "b.py").write_text(MODULE)
    (tmp_path / "a" / "z.py").write_text(
        '"""The folder a comes before the file b, in the order of their names."""'
    )
    (tmp_path / "tests" / "c.py").write_text(
        '"""What tests say is left out, even where it is a whole long sentence."""'
    )
    assert prose(tmp_path) == (
        "The folder a comes before the file b, in the order of their names.\n\n\n"
        "A module's first sentence, which is long enough to be taken as a paragraph of text.\n\n"
        "Look at package.module.name and at Other, which do the same with two lines that become"
        " one.\n\n\n"
        "A class says something of its own, in one sentence that is as long as it has to be."
    )  # fmt: skip


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_built_in_text_is_long_and_recorded(name: str) -> None:
    text = load_text([name])
    assert len(text.content) > 200_000
    letters = sum(letter.isalpha() or letter.isspace() for letter in text.content)
    assert letters > 0.8 * len(text.content)
    known = BUILT_IN[name]
    assert text.sha256 == hashlib.sha256(text.content.encode()).hexdigest()
    assert text.origin.startswith(f"{name} (") and text.digest == text.sha256[:16]
    if known.version in text.origin:
        assert text.sha256 == known.sha256 and not text.notice
    else:
        assert known.version in text.notice


def test_another_version_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    other = BuiltIn("about", lambda: ("Words.", "thing 2"), "thing 1", "ab" * 32)
    monkeypatch.setitem(texts.BUILT_IN, "thing", other)
    text = load_text(["thing"])
    assert text.origin == "thing (thing 2)"
    assert "that of thing 2; recorded figures are on that of thing 1" in text.notice


def test_names_and_files_follow_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "networkx").write_text("a file of that name\n")
    monkeypatch.chdir(tmp_path)
    assert load_text(["./networkx"]).content == "a file of that name"
    both = load_text(["./networkx", "pydoc_data.topics"])
    assert both.content == "a file of that name\n\n" + load_text([]).content
    assert both.origin.startswith("networkx, pydoc_data.topics (Python ")
    with pytest.raises(UsageError, match=r"nowhere does not exist.*built in: pydoc_data.topics, n"):
        load_text(["nowhere"])
