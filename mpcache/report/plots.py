"""Curves as inline SVG on logarithmic axes, where a power of the context is a straight line."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from mpcache.report.markup import Markup, join, tag

WIDTH, HEIGHT = 420, 240
LEFT, RIGHT, TOP, BOTTOM = 64, 22, 10, 40
LABEL = 44  # the width of a number below the axis
STYLES = 6  # classes s0 to s5 in the style sheet
Point = tuple[float, float]


@dataclass(frozen=True)
class Curve:
    """Points (x, y), both over 0, in ascending order of x; a `dashed` one is predicted."""

    label: str
    points: Sequence[Point]
    dashed: bool = False


def plot(
    curves: Sequence[Curve], x_name: str, shown: Callable[[float], str], title: str
) -> Markup | None:
    """A chart of curves with a legend; None where no curve has two points.

    Args:
        x_name: what x counts.
        shown: y as text.
        title: what is shown, for those who cannot see it.
    """
    drawn = [curve for curve in curves if len(curve.points) > 1]
    if not drawn:
        return None
    xs = sorted({x for curve in drawn for x, _ in curve.points})
    ys = [y for curve in drawn for _, y in curve.points]
    across, up = _axis(xs, LEFT, WIDTH - RIGHT), _axis(ys, HEIGHT - BOTTOM, TOP)
    shapes: list[Markup] = []
    for y in ticks(min(ys), max(ys)):
        shapes += _grid_line(up(y), shown(y))
    for x in spaced(xs, across):
        shapes.append(_text(across(x), HEIGHT - BOTTOM + 16, f"{x:,.0f}", "middle"))
    shapes.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, x_name, "middle"))
    for number, curve in enumerate(drawn):
        shapes += _drawn(curve, number, across, up, shown)
    legend = [
        tag(
            "span",
            tag("i", class_=f"swatch s{number % STYLES}"),
            curve.label + (" (predicted)" if curve.dashed else ""),
            class_="key",
        )
        for number, curve in enumerate(drawn)
    ]
    picture = tag(
        "svg",
        tag("title", title),
        join(shapes),
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        class_="plot",
    )
    return tag(
        "figure",
        tag("figcaption", title),
        picture,
        tag("p", *legend, class_="legend"),
        class_="plotted",
    )


def _axis(values: Sequence[float], first: float, last: float) -> Callable[[float], float]:
    """Where a value lies: the least at `first`, the greatest at `last`."""
    low, high = math.log(min(values)), math.log(max(values))
    if high - low < 1e-9:
        low, high = low - 1, high + 1
    return lambda value: first + (math.log(value) - low) / (high - low) * (last - first)


def ticks(low: float, high: float) -> list[float]:
    """Round numbers from `low` to `high`, three to six of them where there are; else the ends."""
    first, last = math.floor(math.log10(low)), math.ceil(math.log10(high))
    for digits in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 7)):
        every = [digit * 10.0**power for power in range(first, last + 1) for digit in digits]
        found = [value for value in every if low <= value <= high]
        if len(found) >= 3:
            return found[:: -(-len(found) // 6)]
    return [low, high]


def spaced(values: Sequence[float], place: Callable[[float], float]) -> list[float]:
    """Those that lie far enough apart for their labels, from the last one back."""
    found: list[float] = []
    for value in reversed(values):
        if not found or abs(place(value) - place(found[-1])) >= LABEL:
            found.append(value)
    return found


def _grid_line(y: float, label: str) -> Iterable[Markup]:
    yield tag("line", x1=LEFT, x2=WIDTH - RIGHT, y1=f"{y:.1f}", y2=f"{y:.1f}", class_="grid")
    yield _text(LEFT - 6, y + 4, label, "end")


def _text(x: float, y: float, text: str, anchor: str) -> Markup:
    return tag("text", text, x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor)


def _drawn(
    curve: Curve,
    number: int,
    across: Callable[[float], float],
    up: Callable[[float], float],
    shown: Callable[[float], str],
) -> Iterable[Markup]:
    style = f"s{number % STYLES}"
    path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in curve.points)
    yield tag("polyline", points=path, class_=f"{style} dashed" if curve.dashed else style)
    for x, y in curve.points:
        said = tag("title", f"{curve.label}, {x:,.0f}: {shown(y)}")
        yield tag("circle", said, cx=f"{across(x):.1f}", cy=f"{up(y):.1f}", r=3.5, class_=style)
