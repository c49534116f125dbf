"""Bars as inline SVG. Labels are HTML beside them, so that they stay readable when narrow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from mpcache.report.markup import Markup, join, tag

WIDTH, HEIGHT = 1000, 12


@dataclass(frozen=True)
class Bar:
    """One row: parts from left to right, each with a style class, in the unit of the chart."""

    label: str
    shown: str
    parts: Sequence[tuple[str, float]]

    @property
    def length(self) -> float:
        return sum(size for _, size in self.parts)


def bars(rows: Sequence[Bar], legend: Sequence[tuple[str, str]] = ()) -> Markup:
    """A chart of horizontal bars on one scale that begins at 0.

    Args:
        legend: (style class, meaning) of the parts.
    """
    longest = max((row.length for row in rows), default=0.0)
    key = [
        tag("span", tag("i", class_=f"swatch {name}"), meaning, class_="key")
        for name, meaning in legend
    ]
    lines = [_line(row, longest) for row in rows]
    return tag("figure", tag("p", *key, class_="legend") if key else None, *lines)


def _line(row: Bar, longest: float) -> Markup:
    left, shapes = 0.0, []
    for name, size in row.parts:
        width = WIDTH * size / longest if longest else 0.0
        shapes.append(
            tag("rect", class_=name, x=f"{left:.2f}", y=0, width=f"{width:.2f}", height=HEIGHT)
        )
        left += width
    drawing = tag(
        "svg",
        tag("title", f"{row.label}: {row.shown}"),
        join(shapes),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        preserveAspectRatio="none",
        role="img",
    )
    return tag(
        "div",
        tag("span", row.label, class_="label"),
        drawing,
        tag("span", row.shown, class_="value"),
        class_="bar",
    )
