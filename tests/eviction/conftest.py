"""Gates for the tiny models of tests, which none were trained for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .gates import drawn


@pytest.fixture(scope="package", autouse=True)
def _gates() -> Iterator[None]:
    with drawn():
        yield
