"""A model whose shares cannot fit is refused before anything starts."""

from __future__ import annotations

import os

import pytest
from rich.console import Console

from mpcache import launching
from mpcache.config import load
from mpcache.errors import UsageError


@pytest.mark.parametrize("protocol", ["dealer", "crypten"])
def test_a_model_beyond_the_memory_is_refused(
    protocol: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pages = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": (1 << 30) // 4096}
    monkeypatch.setattr(os, "sysconf", lambda name: pages[name])
    config = load(
        None, {"protocol": protocol, "model": "opt-125m", "weights": "synthetic", "prompt": "a b"}
    )
    with pytest.raises(UsageError, match=r"0\.1 billion weights.*this machine has 1 GB"):
        launching.launch(config, Console(quiet=True))
