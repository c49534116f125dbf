"""`mpcache calibrate`: whether a model stays in suite `dealer`'s ranges, and by how much."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from mpcache.cli_options import Cache, ConfigFile, Device, Model, Sets, configured, new_console


def calibrate(
    model: Model = None,
    text: Annotated[
        list[str] | None, typer.Option(help="A file or a built-in text; repeatable.")
    ] = None,
    windows: Annotated[int, typer.Option(min=1, help="Windows of the text.")] = 4,
    tokens: Annotated[int, typer.Option(min=32, help="Tokens of a window.")] = 512,
    out: Annotated[
        Path | None, typer.Option(help="The file to write; by default where `launch` looks.")
    ] = None,
    cache: Cache = None,
    config: ConfigFile = None,
    sets: Sets = None,
    device: Device = None,
) -> None:
    """Run a model in plaintext on text, and keep how near each operation comes to its range."""
    resolved = configured(config, sets, model=model, cache=cache, device=device)
    from mpcache import calibrating

    calibrating.calibrate_ranges(resolved, text or [], windows, tokens, out, new_console())
