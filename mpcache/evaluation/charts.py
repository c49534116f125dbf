"""Charts as PNG and SVG."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mpcache.errors import UsageError

Row = Mapping[str, Any]
MARKERS = "osD^vP*X<>hdp"
# Told apart by readers who do not tell red from green (Okabe and Ito 2008), yellow left out.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def require() -> None:
    """Raises UsageError where matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        raise UsageError("charts need matplotlib; run: pip install 'mpcache[eval]'")


def _axes(title: str, x: str, y: str) -> tuple[Any, Any]:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7.5, 4.8), layout="constrained")
    axes.set(title=title, xlabel=x, ylabel=y)
    axes.grid(alpha=0.3)
    return figure, axes


@contextmanager
def drawing() -> Iterator[None]:
    """Without a screen, and so that equal figures are equal files."""
    import matplotlib

    matplotlib.use("Agg")
    with matplotlib.rc_context({"svg.hashsalt": "mpcache", "svg.fonttype": "none"}):
        yield


def save(figure: Any, path: Path) -> list[Path]:
    """`path` as PNG and SVG; the figure is closed."""
    from matplotlib import pyplot

    paths = [path.with_name(f"{path.name}.{kind}") for kind in ("png", "svg")]
    for one in paths:
        figure.savefig(one, dpi=150, metadata={"Date": None} if one.suffix == ".svg" else None)
    pyplot.close(figure)
    svg = paths[1].read_text(encoding="utf-8")
    paths[1].write_text(_small(svg), encoding="utf-8")
    return paths


def _small(svg: str) -> str:
    """The same picture in about half the bytes."""
    for pattern, shorter in _WASTE.items():
        svg = re.sub(pattern, shorter, svg)
    return _PLACES.sub(_shorter, svg)


_WASTE = {
    r"<!--[^>]*-->": "",
    r'<g id="[^"]*">': "<g>",  # no style or link reads them
    r"; stroke-linejoin: (?:miter|round)": "",
    r"font-family: [^;\"]*": "font-family: 'DejaVu Sans', Verdana, sans-serif",
    r"\n\s*": "\n",
}
# Coordinates of what is drawn; a scale keeps its digits.
_PLACES = re.compile(r' (?:d|x|y)="[^"]*"')


def _shorter(found: re.Match[str]) -> str:
    """Two digits after the point, which is a hundredth of a pixel."""
    return re.sub(r"(\.\d\d)\d+", r"\1", re.sub(r"\s+", " ", found[0]))


def styles(rows: Iterable[Row]) -> dict[str, tuple[str, str]]:
    """A colour and a marker for each policy."""
    names = list(dict.fromkeys(row["policy"] for row in rows))
    return {
        name: (COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]) for i, name in enumerate(names)
    }


def over_budget(rows: Sequence[Row], value: str, title: str, label: str, path: Path) -> list[Path]:
    """A line a policy over its budgets, with standard errors; the full cache as a level."""
    rows = [row for row in rows if row.get(value) is not None]
    figure, axes = _axes(title, "budget, percent of the prompt's tokens", label)
    for name, (colour, marker) in styles(rows).items():
        own = [row for row in rows if row["policy"] == name]
        if name == "full":
            axes.axhline(own[0][value], color="0.4", linestyle="--", label="full")
            continue
        budgets, values = [row["budget"] for row in own], [row[value] for row in own]
        errors = [row.get(f"{value}_error") or 0.0 for row in own]
        axes.errorbar(budgets, values, errors, color=colour, marker=marker, capsize=2, label=name)
    budgets = sorted({row["budget"] for row in rows if row["policy"] != "full"})
    if budgets:
        axes.set_xscale("log")
        axes.set_xticks(budgets, [f"{budget:g}" for budget in budgets])
        axes.minorticks_off()
    if rows:
        axes.legend(fontsize="small")
    return save(figure, path)
