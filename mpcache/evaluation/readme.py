"""The measured accuracy and predicted prices inside the README: written by a command."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mpcache.benchmarking.readme import fill_file
from mpcache.errors import UsageError
from mpcache.evaluation import pareto, tables
from mpcache.report.files import write_atomic

CHART_BYTES = 200_000
CHART = Path("docs") / f"{pareto.NAME}.svg"


def body(result: dict[str, Any]) -> str:
    """What stands between the markers."""
    warning = "".join(f"**{text}**\n\n" for text in result["warnings"])
    return (
        f"{warning}![Accuracy of cache policies against the price of a token]({CHART})\n\n"
        f"{pareto.notes(result)}\n\n{pareto.markdown(result)}\n{tables.subject_line(result)}\n\n"
        f"    {result['command']}\n    mpcache eval readme --from DIR"
    )


def write(folder: Path, readme: Path) -> list[Path]:
    """Fill `readme` from `pareto.json` in `folder`, and copy the chart beside it.

    Raises:
        UsageError: the folder has no result, the chart is too large, or markers are missing;
            nothing was written.
    """
    path = folder / f"{pareto.NAME}.json"
    try:
        text = body(json.loads(path.read_text(encoding="utf-8")))
        chart = path.with_suffix(".svg").read_text(encoding="utf-8")
    except OSError as error:
        raise UsageError(
            f"{error.filename} cannot be read: {error.strerror}; run `mpcache eval pareto --out"
            f" {folder}` first"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise UsageError(f"{path} is no result of mpcache eval pareto; run it again") from None
    if len(chart.encode()) > CHART_BYTES:
        raise UsageError(f"{path.with_suffix('.svg')} has over {CHART_BYTES:,} bytes")
    fill_file(readme, {pareto.NAME: text}, "eval")
    target = readme.parent / CHART
    target.parent.mkdir(exist_ok=True)
    write_atomic(target, chart)
    target.chmod(0o644)
    return [readme, target]
