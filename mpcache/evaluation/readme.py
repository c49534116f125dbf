"""The measured accuracy and predicted prices inside the README: written by a command."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mpcache.benchmarking.readme import fill_file
from mpcache.errors import UsageError
from mpcache.evaluation import pareto, tables
from mpcache.report.files import write_atomic

CHART_BYTES = 200_000
COUNTED = ("rounds", "online_bytes", "dealt_bytes")  # prices that do not depend on a machine
Result = Mapping[str, Any]


def chart(number: int) -> Path:
    """Where the chart of text `number`, from 0 on, goes."""
    return Path("docs") / (f"{pareto.NAME}-{number + 1}.svg" if number else f"{pareto.NAME}.svg")


def body(results: Sequence[Result]) -> str:
    """What stands between the markers: one table of all texts, and a chart of each.

    Raises:
        UsageError: the results are not of the same policies and budgets at the same prices.
    """
    warnings = dict.fromkeys(text for result in results for text in result["warnings"])
    charts = "\n\n".join(
        f"![Accuracy of cache policies on {result['text']} against the price of a token]"
        f"({chart(number)})"
        for number, result in enumerate(results)
    )
    lines = "\n\n".join(tables.subject_line(result) for result in results)
    commands = "\n".join(f"    {result['command']}" for result in results)
    folders = " ".join(["--from DIR"] * len(results))
    return (
        "".join(f"**{text}**\n\n" for text in warnings)
        + f"{charts}\n\n{pareto.notes(results[0], len(results))}\n\n"
        f"{pareto.marked(*table(results))}\n{lines}\n\n"
        f"{commands}\n    mpcache eval readme {folders}"
    )


def table(results: Sequence[Result]) -> tuple[list[str], list[list[str]]]:
    """Header and cells: the accuracy on each text, then the prices, which they share.

    A mark stands where a row is in front on every text.
    """
    if len(results) == 1:
        return pareto.table(results[0]["rows"])
    names = [str(result["text"]).partition(" ")[0] for result in results]
    header = ["policy", "budget %", "attended"]
    for measure in ("perplexity ratio", "passkey"):
        header += [f"{measure}, {name}" for name in names]
    cells = []
    for rows in _beside(results):
        row = {**rows[0], "front": _everywhere([row["front"] for row in rows])}
        found = [pareto.accuracy(one, measure) for measure in pareto.MEASURES for one in rows]
        cells.append([*pareto.named(row), *found, *pareto.priced_cells(row)])
    return [*header, *pareto.PRICES], cells


def _beside(results: Sequence[Result]) -> list[list[Any]]:
    """The rows of each policy and budget, one a text."""
    found = [{(row["policy"], row["budget"]): row for row in one["rows"]} for one in results]
    alike = [
        {**one["subject"], "text": None} | {"keys": one["settings"]["keys"]} for one in results
    ]
    same = all(one == alike[0] for one in alike)
    same = same and all(list(one) == list(found[0]) for one in found)
    rows = [[one[key] for one in found] for key in found[0]] if same else []
    prices = [[tuple(row.get(name) for name in COUNTED) for row in one] for one in rows]
    if not same or any(len(set(one)) > 1 for one in prices):
        raise UsageError(
            "the folders differ in more than their text; run `mpcache eval pareto` into each with"
            " the same options but --text (what is measured is not run again)"
        )
    return rows


def _everywhere(fronts: Sequence[Mapping[str, Sequence[str]]]) -> dict[str, list[str]]:
    """The axes on which a row is in front on each text, by measure."""
    return {
        measure: [axis for axis in axes if all(axis in front[measure] for front in fronts)]
        for measure, axes in fronts[0].items()
    }


def write(folders: Sequence[Path], readme: Path) -> list[Path]:
    """Fill `readme` from `pareto.json` in each folder, and copy the charts beside it.

    Raises:
        UsageError: a folder has no result, the results do not fit each other, a chart is too
            large, or markers are missing; nothing was written.
    """
    read = [_read(folder) for folder in folders]
    try:
        text = body([result for result, _ in read])
    except (KeyError, TypeError):
        places = ", ".join(str(folder / f"{pareto.NAME}.json") for folder in folders)
        raise UsageError(f"{places}: no result of mpcache eval pareto; run it again") from None
    fill_file(readme, {pareto.NAME: text}, "eval")
    written = [readme]
    for number, (_, picture) in enumerate(read):
        target = readme.parent / chart(number)
        target.parent.mkdir(exist_ok=True)
        write_atomic(target, picture)
        target.chmod(0o644)
        written.append(target)
    return written


def _read(folder: Path) -> tuple[dict[str, Any], str]:
    """The result and the chart in a folder."""
    path = folder / f"{pareto.NAME}.json"
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        picture = path.with_suffix(".svg").read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"{error.filename} cannot be read: {error.strerror}; run `mpcache eval pareto --out"
            f" {folder}` first"
        ) from None
    except ValueError:
        raise UsageError(f"{path}: no result of mpcache eval pareto; run it again") from None
    if len(picture.encode()) > CHART_BYTES:
        raise UsageError(f"{path.with_suffix('.svg')} has over {CHART_BYTES:,} bytes")
    return result, picture
