"""From the parties' ledgers to report.json, report.md, report.html and a table on the screen."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import Console

    from mpcache.report.record import RunRecord


def publish(record: RunRecord, folder: Path, console: Console) -> dict[str, Any]:
    """Save the record of a run and, if every check passes, render it as a result.

    report.json and config.yaml are written in any case; report.md, report.html and the printed
    table only when the checks are all true.

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
        for name in (files.MARKDOWN, files.PAGE):
            (folder / name).unlink(missing_ok=True)
        raise MpcacheError(f"{refused}\nno result: the numbers are in {folder / files.REPORT}")
    files.write_markdown(folder, report)
    files.write_page(folder / files.PAGE, [report])
    screen.print_summary(console, report)
    return report


def render_again(runs: Sequence[Path], page: Path | None, console: Console) -> Path:
    """Write report.md of each run anew from its report.json, and one HTML page of them all.

    Args:
        runs: folders of runs, and files of lines that `mpcache bench` wrote.
        page: the page's file; report.html in the folder of the first one if None.

    Returns:
        The page's file.

    Raises:
        UsageError: a run has no report that can be shown, or a folder is not writable; nothing
            was written.
    """
    from mpcache.benchmarking.section import section
    from mpcache.errors import UsageError
    from mpcache.report import console as screen
    from mpcache.report import files
    from mpcache.report.markdown import render
    from mpcache.report.page import render_page

    lines = [path for path in runs if path.suffix == ".jsonl"]
    home = files.folder_of(runs[0])
    runs = [path for path in runs if path not in lines]
    pieces = [section(path) for path in lines]
    reports = [files.load_report(run) for run in runs]
    folders = [files.folder_of(run) for run in runs]
    target = page or home / files.PAGE
    files.check_writable([target.parent, *folders])
    if target.is_dir():
        raise UsageError(f"{target} is a folder; give --html a file")
    texts = []
    for run, report in zip(runs, reports, strict=True):
        try:
            texts.append(render(report))
            render_page([report])
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            raise UsageError(
                f"{run}: its report.json is damaged, or of another version ({type(error).__name__}:"
                f" {error}); run it again"
            ) from None
    for folder, text in zip(folders, texts, strict=True):
        files.write_atomic(folder / files.MARKDOWN, text)
    files.write_atomic(target, render_page(reports, pieces))
    for report in reports:
        screen.print_summary(console, report)
    return target
