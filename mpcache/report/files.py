"""The folder of a run: written file by file, each either whole or not at all."""

from __future__ import annotations

import json
import math
import os
import secrets
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from mpcache.config import RunConfig, to_yaml
from mpcache.errors import UsageError

REPORT, MARKDOWN, PAGE = "report.json", "report.md", "report.html"
CONFIG = "config.yaml"
# Fields without which there is nothing to show; see `report.build`.
NEEDED = (
    *("version", "id", "config", "machine", "parties", "protocol", "network", "model", "text"),
    *("prompt_tokens", "new_tokens", "cache", "plaintext", "agreement", "secure", "predicted"),
    *("checks", "openings", "warnings"),
)


def new_run_id() -> str:
    """A name for a run: when it was, and six hexadecimal digits against collisions."""
    return f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"


def run_folder(config: RunConfig, run_id: str) -> Path:
    """The folder of a run, made if it is missing.

    Raises:
        UsageError: the folder cannot be made or written.
    """
    folder = Path(config.report) if config.report else Path("runs") / run_id
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"the report folder {folder} cannot be made: {error.strerror}; choose another with"
            " --report"
        ) from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise UsageError(
            f"the report folder {folder} is not writable; choose another with --report"
        )
    return folder


def check_writable(folders: Iterable[Path]) -> None:
    """Refuse folders that are missing or may not be written.

    Raises:
        UsageError: names the first of them.
    """
    for folder in folders:
        if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
            raise UsageError(f"{folder} is not a writable folder; choose another")


def write_atomic(path: Path, text: str) -> None:
    """Write `text` so that a reader sees the old file or the new one, readable by its owner."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8", errors="replace") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def write_config(folder: Path, config: RunConfig) -> None:
    """Save the resolved configuration, without the prompt."""
    write_atomic(folder / CONFIG, to_yaml(config))


def write_json(folder: Path, report: dict[str, Any]) -> None:
    """Save the report of a run."""
    write_json_to(folder / REPORT, report)


def write_json_to(path: Path, values: dict[str, Any]) -> None:
    """Save plain values as JSON; a number that is not finite becomes null."""
    text = json.dumps(_finite(values), indent=2, allow_nan=False, ensure_ascii=False)
    write_atomic(path, text + "\n")


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_markdown(folder: Path, report: dict[str, Any]) -> None:
    from mpcache.report.markdown import render

    write_atomic(folder / MARKDOWN, render(report))


def write_page(path: Path, reports: Sequence[dict[str, Any]]) -> None:
    """Write one HTML page for these runs."""
    from mpcache.report.page import render_page

    write_atomic(path, render_page(reports))


def folder_of(run: Path) -> Path:
    """The folder of a run that is named by it or by its report.json."""
    return run if run.is_dir() else run.parent


def load_report(folder: Path) -> dict[str, Any]:
    """Read a run's report.json.

    Raises:
        UsageError: there is none, it is not a report, or one of its checks failed.
    """
    path = folder / REPORT if folder.is_dir() else folder
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist; give the folder of a finished run") from None
    except (OSError, ValueError):
        raise UsageError(f"{path} is not a readable report; run `mpcache launch` again") from None
    if not isinstance(report, dict) or not isinstance(report.get("checks"), dict):
        raise UsageError(f"{path} is not a report of mpcache; give the folder of a finished run")
    missing = [name for name in NEEDED if name not in report]
    if missing:
        raise UsageError(
            f"{path} lacks {', '.join(missing)}: another version wrote it; run it again"
        )
    failed = [name for name, passed in report["checks"].items() if not passed]
    if failed:
        raise UsageError(
            f"{path} is no result: {', '.join(failed)} failed in that run; run it again"
        )
    return report
