"""The chart of accuracy against price: a panel for each measure and axis, fronts drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mpcache.evaluation import charts

Row = Mapping[str, Any]
# Rounds have no panel of their own: on a wide-area network they are what the seconds are made of.
PANELS = {
    "online_bytes": ("MB sent a token", 1e6),
    "dealt_bytes": ("MB dealt a token", 1e6),
    "lan_seconds": ("predicted s a token, lan", 1.0),
    "wan_seconds": ("predicted s a token, wan", 1.0),
}
ROWS = {"ratio": "perplexity over the full cache's", "exact": "passkeys found"}
LEVELS = (0.9, 1.0, 1.02, 1.05, 1.1, 1.2, 1.3, 1.5, 1.75, 2, 2.5, 3, 4, 6, 10, 30, 100)
OFFSETS = ((5, 5), (5, -11), (-5, 5), (-5, -11), (9, -3), (-9, -3), (0, 10), (0, -16))


def draw(result: Mapping[str, Any], path: Path) -> list[Path]:
    """Write `path` as PNG and SVG: every priced policy and budget, in every panel."""
    from matplotlib import pyplot

    rows = [row for row in result["rows"] if row["oblivious"]]
    styles = charts.styles(rows)
    with charts.drawing():
        figure, grid = pyplot.subplots(
            len(ROWS), len(PANELS), figsize=(15, 8), sharex="col", sharey="row",
            layout="constrained",
        )  # fmt: skip
        for line, measure in zip(grid, ROWS, strict=True):
            for axes, price in zip(line, PANELS, strict=True):
                _panel(axes, rows, price, measure, styles)
            line[0].set_ylabel(ROWS[measure])
        for axes, (price, (label, unit)) in zip(grid[-1], PANELS.items(), strict=True):
            axes.set_xlabel(label)
            _price_ticks(axes, [row[price] / unit for row in rows])
        _ratio_ticks(grid[0][0], rows)
        grid[1][0].set_ylim(-0.06, 1.12)
        handles, labels = grid[0][0].get_legend_handles_labels()
        order = sorted(range(len(labels)), key=lambda i: labels[i] == FRONT)
        figure.legend(
            [handles[i] for i in order], [labels[i] for i in order], loc="outside lower center",
            ncols=min(8, len(labels)), frameon=False,
        )  # fmt: skip
        subject = result["subject"]
        figure.suptitle(
            f"Accuracy against the predicted price of a token on shares: {subject['model']},"
            f" {subject['context']:,} tokens of {result['text']}; numbers are budgets in percent"
        )
        figure.canvas.draw()
        for line, measure in zip(grid, ROWS, strict=True):
            for axes, price in zip(line, PANELS, strict=True):
                _labels(figure, axes, rows, price, measure)
        return charts.save(figure, path)


FRONT = "front: nothing as good costs less"


def _panel(
    axes: Any, rows: Sequence[Row], price: str, measure: str, styles: Mapping[str, Any]
) -> None:
    unit = PANELS[price][1]
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    for name, (colour, marker) in styles.items():
        own = [row for row in rows if row["policy"] == name]
        axes.plot(
            [row[price] / unit for row in own], [row[measure] for row in own], color=colour,
            linewidth=0.8, alpha=0.35, zorder=2,
        )  # fmt: skip
        for ahead in (False, True):
            some = [row for row in own if (price in row["front"][measure]) is ahead]
            x, y = [row[price] / unit for row in some], [row[measure] for row in some]
            axes.plot(
                x, y, marker, color=colour, markerfacecolor=colour if ahead else "white",
                markersize=8 if ahead else 5.5, zorder=4,
            )  # fmt: skip
            if ahead and some:
                errors = [row[f"{measure}_error"] or 0.0 for row in some]
                axes.errorbar(x, y, errors, fmt="none", ecolor=colour, elinewidth=0.9, zorder=3)
        axes.plot([], [], marker, color=colour, markersize=8, label=name)
    best = sorted((row[price] / unit, row[measure]) for row in rows if price in
                  row["front"][measure])  # fmt: skip
    axes.plot(*zip(*best, strict=True), color="black", linewidth=1.4, linestyle=(0, (4, 2)),
              drawstyle="steps-post", label=FRONT, zorder=3)  # fmt: skip


def _price_ticks(axes: Any, prices: Sequence[float]) -> None:
    """A logarithmic scale with plain numbers: one policy may cost many times another."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_xscale("log")
    wide = max(prices) > 20 * min(prices)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 3) if wide else (1, 1.5, 2, 3, 5, 7)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())


def _ratio_ticks(axes: Any, rows: Sequence[Row]) -> None:
    """A logarithmic scale with plain numbers."""
    from matplotlib.ticker import NullFormatter, NullLocator

    axes.set_yscale("log")
    low, high = min(row["ratio"] for row in rows), max(row["ratio"] for row in rows)
    span = max(high / low, 1.02)
    axes.set_ylim(low / span**0.08, high * span**0.12)
    shown = [level for level in LEVELS if low / span**0.08 <= level <= high * span**0.12]
    kept: list[float] = []
    for level in shown:
        if not kept or level / kept[-1] > span**0.05:
            kept.append(level)
    if len(kept) > 1:
        axes.set_yticks(kept, [f"{level:g}" for level in kept])
        axes.yaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_minor_formatter(NullFormatter())


def _labels(figure: Any, axes: Any, rows: Sequence[Row], price: str, measure: str) -> None:
    """The budgets of the points in front, each where it covers neither point nor label."""
    renderer = figure.canvas.get_renderer()
    unit = PANELS[price][1]
    places = axes.transData.transform([(row[price] / unit, row[measure]) for row in rows])
    taken: list[Any] = []
    for row in rows:
        if price not in row["front"][measure]:
            continue
        for last, offset in enumerate(OFFSETS, 1):
            note = axes.annotate(
                f"{row['budget']:g}", (row[price] / unit, row[measure]), xytext=offset,
                textcoords="offset points", fontsize=9, zorder=5,
                ha="left" if offset[0] > 0 else "right" if offset[0] < 0 else "center",
            )  # fmt: skip
            box = note.get_window_extent(renderer)
            free = not any(box.overlaps(other) for other in taken)
            free = free and not any(box.contains(*place) for place in places)
            if free or last == len(OFFSETS):
                taken.append(box)
                break
            note.remove()
