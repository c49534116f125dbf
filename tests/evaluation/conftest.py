"""A file of text, long enough for a few windows of a tiny model."""

from __future__ import annotations

from pathlib import Path

import pytest

from .tiny import TEXT


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT)
    return path
