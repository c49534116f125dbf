"""HTML that is safe by construction: text is escaped unless it came out of `tag`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

VOID = {"meta"}


class Markup(str):
    """Text that is HTML already."""


Child = Any  # Markup stays as it is; everything else is escaped


def tag(name: str, /, *children: Child, **attributes: Any) -> Markup:
    """One element. A trailing underscore of an attribute's name is dropped, others are hyphens.

    An attribute that is True stands alone, one that is False or None is left out.
    """
    head = name
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        head += f" {key.rstrip('_').replace('_', '-')}"
        head += "" if value is True else f'="{escape(str(value))}"'
    return Markup(f"<{head}>" if name in VOID else f"<{head}>{join(children)}</{name}>")


def join(children: Iterable[Child], between: str = "") -> Markup:
    """Children one after the other; None is nothing."""
    return Markup(between.join(_text(child) for child in children if child is not None))


def _text(child: Child) -> str:
    return child if isinstance(child, Markup) else escape(str(child))


def table(head: Sequence[Child], rows: Iterable[Sequence[Child]], caption: Child = None) -> Markup:
    """A table that scrolls by itself where it is too wide; the first column names the rows."""
    body = [
        tag("tr", tag("th", row[0], scope="row"), *(tag("td", cell) for cell in row[1:]))
        for row in rows
    ]
    return tag(
        "div",
        tag(
            "table",
            None if caption is None else tag("caption", caption),
            tag("thead", tag("tr", *(tag("th", cell, scope="col") for cell in head))),
            tag("tbody", *body),
        ),
        class_="scroll",
        tabindex="0",
        role="region",
        aria_label=str(caption) if caption is not None else "table",
    )
