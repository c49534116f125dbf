"""English sentences out of a Python package's docstrings: text that every installation has."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

SHORTEST = 60  # characters of a paragraph
LETTERS = 0.93  # least share of letters and spaces in it
_LIST = (" ", "\t", "-", "*", "..")  # how a line that is no prose begins
_ROLE = re.compile(r":[a-z:]+:`~?([^`<]*?)(?:\s*<[^>]*>)?`")
_CITED = re.compile(r"\s*\[\d+\]_")
_CODE = re.compile(r">>>|::|[{}=<>\\|_*$]")


def prose(folder: Path) -> str:
    """The prose of all docstrings under `folder`, but for tests; files in the order of their names.

    A docstring's paragraphs stay together; a paragraph that comes again is left out.
    """
    seen: set[str] = set()
    parts = []
    files = sorted(folder.rglob("*.py"), key=lambda file: file.relative_to(folder).as_posix())
    for file in files:
        if "tests" in file.relative_to(folder).parts:
            continue
        for docstring in _docstrings(ast.parse(file.read_text(encoding="utf-8"))):
            fresh = [one for one in dict.fromkeys(_paragraphs(docstring)) if one not in seen]
            seen.update(fresh)
            if fresh:
                parts.append("\n\n".join(fresh))
    return "\n\n\n".join(parts)


def _docstrings(tree: ast.AST) -> Iterator[str]:
    """Breadth first, which is `ast.walk`'s order."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found = ast.get_docstring(node)
            if found:
                yield found


def _paragraphs(docstring: str) -> Iterator[str]:
    """Whole sentences without code, formulas, lists and marks of a markup."""
    for block in re.split(r"\n\s*\n", docstring):
        if any(line.startswith(_LIST) for line in block.split("\n")):
            continue
        text = _ROLE.sub(r"\1", " ".join(block.split())).replace("`", "")
        text = _CITED.sub("", text)
        if len(text) < SHORTEST or text[-1] not in ".?!" or _CODE.search(text):
            continue
        plain = sum(letter.isalpha() or letter == " " for letter in text)
        if plain >= LETTERS * len(text):
            yield text
