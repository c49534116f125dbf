"""Each test of this folder draws its own numbers, whatever ran before it in the same process."""

from __future__ import annotations

import zlib

import pytest
import torch

torch.manual_seed(20)  # for values that are drawn when tests are collected


def pytest_runtest_setup(item: pytest.Item) -> None:
    torch.manual_seed(zlib.crc32(item.nodeid.encode()))
