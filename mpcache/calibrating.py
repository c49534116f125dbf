"""`mpcache calibrate`: measure a model's ranges, show them, and keep them where `launch` looks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from mpcache import ranges
from mpcache.config import RunConfig
from mpcache.errors import UsageError
from mpcache.evaluation.texts import load_text
from mpcache.launching import check_device
from mpcache.models.registry import find
from mpcache.report.console import print_ranges, print_warnings


def calibrate_ranges(
    config: RunConfig,
    texts: Sequence[str],
    windows: int,
    tokens: int,
    out: Path | None,
    console: Console,
) -> None:
    """Measure how near the configured model comes to suite dealer's ranges, print and keep it.

    Raises:
        UsageError: there are no weights, or the text does not do.
    """
    check_device(config)
    source = find(config.model, config.weights, config.seed)
    if source.kind == "synthetic":
        raise UsageError(
            f"{source.spec.name} has synthetic weights here: their ranges say nothing; expected a"
            " model with weights of its own. " + (source.notice or "")
        )
    source.check()
    text = load_text(texts)
    with console.status("plaintext twin"):
        found = ranges.measure(config, source, text, windows, tokens)
    print_ranges(console, found)
    for row in found.broken:
        print_warnings(console, [f"{row.where} wraps: 2^{row.met - 1} reached, 2^{row.wraps} held"])
    console.print(f"saved: {escape(str(ranges.save(found, source, out)))}", soft_wrap=True)
