"""What every test shares: no deadline for an example, and the rule for tests that need a GPU."""

from __future__ import annotations

from collections.abc import Iterator

import drawn
import pytest
import torch
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


def pytest_sessionstart() -> None:
    drawn.begin("imports")


def pytest_runtest_setup(item: pytest.Item) -> None:
    drawn.begin(item.nodeid)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Nothing is drawn in an import but from drawn.of_module; ``gpu`` asks for a CUDA device."""
    before = torch.get_rng_state()
    drawn.begin("imports")
    if not torch.equal(before, torch.get_rng_state()):
        raise pytest.UsageError(
            "a test module draws numbers while it is imported, from torch's "
            "own generator; draw from drawn.of_module(__name__)"
        )
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if not marked:
        return
    if not torch.cuda.is_available():
        for item in marked:
            item.add_marker(pytest.mark.skip(reason="no CUDA device here"))
