"""What every test shares: no deadline for an example, and the rule for tests that need a GPU."""

from __future__ import annotations

from collections.abc import Iterator

import drawn
import pytest
from hypothesis import settings

# A busy machine is no failure, and examples are the same in every run, as all that is drawn.
settings.register_profile("unhurried", deadline=None, derandomize=drawn.SEED == 0)
settings.load_profile("unhurried")


@pytest.fixture(scope="session", autouse=True)
def _no_calibration(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What a user has calibrated on this machine is no part of a test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


def pytest_runtest_setup(item: pytest.Item) -> None:
    drawn.begin(item.nodeid)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip tests marked ``gpu`` where there is no CUDA device."""
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    import torch

    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device here"))
