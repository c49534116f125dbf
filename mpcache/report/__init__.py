"""From the parties' ledgers to report.json, report.md and the table on the screen."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

    from mpcache.report.record import RunRecord


def publish(record: RunRecord, folder: Path, console: Console) -> dict[str, Any]:
    """Save the record of a run and, if every check passes, render it as a result.

    report.json and config.yaml are written in any case; report.md and the printed table only
    when the checks are all true.

    Raises:
        MpcacheError: a check failed; the message lists what disagreed.
    """
    from mpcache.errors import MpcacheError
    from mpcache.report import build, checks, files
    from mpcache.report import console as screen

    report = build.build_report(record)
    files.write_config(folder, record.config)
    files.write_json(folder, report)
    refused = checks.refusal(checks.run_checks(record))
    if refused:
        (folder / files.MARKDOWN).unlink(missing_ok=True)
        raise MpcacheError(f"{refused}\nno result: the numbers are in {folder / files.REPORT}")
    files.write_markdown(folder, report)
    screen.print_summary(console, report)
    return report
