"""Measured tables inside a Markdown file, between markers: written by a command, never typed."""

from __future__ import annotations

import re
from pathlib import Path

from mpcache.benchmarking import sweep, tables
from mpcache.errors import UsageError
from mpcache.report.files import write_atomic


def fill(text: str, bodies: dict[str, str], where: str, kind: str = "bench") -> str:
    """`text` with each body between its ``<!-- bench NAME: begin -->`` and ``end`` markers.

    Args:
        kind: what the markers say instead of ``bench``.

    Raises:
        UsageError: a body has no pair of markers.
    """
    for name, body in bodies.items():
        begin, end = (f"<!-- {kind} {name}: {edge} -->" for edge in ("begin", "end"))
        if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
            raise UsageError(
                f"{where} needs {begin} and after it {end}, once each; put them where the table"
                " goes"
            )
        before, _, rest = text.partition(begin)
        after = rest.partition(end)[2]
        text = f"{before}{begin}\n{body}\n{end}{after}"
    return text


def bodies(folder: Path) -> dict[str, str]:
    """The Markdown of every file of lines in `folder`, by the file's name.

    Raises:
        UsageError: there is none, or one is no file of lines.
    """
    files = sorted(folder.glob("*.jsonl"))
    if not files:
        raise UsageError(f"{folder} has no *.jsonl; run `mpcache bench` first")
    found = {}
    for file in files:
        if not re.fullmatch(r"[\w-]+", file.stem):
            raise UsageError(f"{file}: expected a name of letters, digits, - and _")
        rows = sweep.read_lines(file)
        if not rows:
            raise UsageError(f"{file} is empty; run `mpcache bench` again")
        found[file.stem] = tables.markdown(rows)
    return found


def write(folder: Path, readme: Path) -> list[str]:
    """Fill `readme` from the lines in `folder`, and return the names that were filled.

    Raises:
        UsageError: nothing to fill, no such file, or no markers; nothing was written.
    """
    found = bodies(folder)
    fill_file(readme, found)
    return list(found)


def fill_file(readme: Path, found: dict[str, str], kind: str = "bench") -> None:
    """Put each body between its markers in a file; see `fill`.

    Raises:
        UsageError: the file cannot be read, or has no such markers; nothing was written.
    """
    try:
        text = readme.read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(f"{readme} cannot be read: {error.strerror}") from None
    filled = fill(text, found, str(readme), kind)
    mode = readme.stat().st_mode
    write_atomic(readme, filled)
    readme.chmod(mode)
