"""Fits find what made the figures, are never negative, and are judged on what they did not see."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mpcache.fitting import Sample, average, fit, held_out, nonnegative, total

TRUE = {"a uses": 2e-4, "a bytes": 3e-9, "b uses": 5e-5}


def _samples(noise: float, count: int = 20) -> list[Sample]:
    rng = np.random.default_rng(3)
    found = []
    for number in range(count):
        columns = {
            "a uses": float(rng.integers(1, 20)),
            "a bytes": float(rng.uniform(1e3, 1e6)),
            "b uses": float(rng.integers(0, 30)),
        }
        seconds = total(TRUE, columns) * rng.uniform(1 - noise, 1 + noise)
        found.append(Sample(f"piece {number // 4}", columns, seconds))
    return found


def test_a_fit_finds_the_speeds_and_none_is_negative() -> None:
    found = fit(_samples(0.0))
    assert found == pytest.approx(TRUE, rel=1e-4)
    noisy = fit(_samples(0.3))
    assert all(value >= 0 for value in noisy.values())
    for sample in _samples(0.3):
        assert total(noisy, sample.columns) == pytest.approx(sample.seconds, rel=0.5)


@given(st.integers(0, 10_000))
def test_no_other_choice_that_is_not_negative_is_nearer(seed: int) -> None:
    """Against every set of columns: the least squares on it, where those are not negative."""
    rng = np.random.default_rng(seed)
    rows, wanted = rng.normal(size=(9, 4)), rng.normal(size=9)
    found = nonnegative(rows, wanted)
    assert (found >= 0).all()
    least = float((wanted**2).sum())
    for count in range(1, 5):
        for chosen in itertools.combinations(range(4), count):
            part = rows[:, chosen]
            x = np.linalg.lstsq(part, wanted, rcond=None)[0]
            if (x >= 0).all():
                least = min(least, float(((part @ x - wanted) ** 2).sum()))
    assert ((rows @ found - wanted) ** 2).sum() == pytest.approx(least, rel=1e-6)


def test_a_column_that_never_occurs_costs_nothing() -> None:
    samples = [Sample("x", {**sample.columns, "c uses": 0.0}, sample.seconds)
               for sample in _samples(0.0)]  # fmt: skip
    assert fit(samples)["c uses"] == 0.0


def test_what_was_never_sampled_costs_the_average_of_its_kind() -> None:
    speeds = {"a uses": 2.0, "b uses": 4.0, "a bytes": 0.5}
    assert average(speeds, "new uses") == 3.0
    assert total(speeds, {"new uses": 2.0, "new bytes": 4.0, "a uses": 1.0}) == 6.0 + 2.0 + 2.0
    assert total({}, {"a uses": 3.0}) == 0.0


def test_held_out_pieces_are_not_in_their_own_fit() -> None:
    samples = _samples(0.0)
    strange = Sample("strange", {"a uses": 10.0}, 99.0)
    found = held_out([*samples, strange])
    measured, predicted = found["strange"]
    assert measured == 99.0
    assert predicted == pytest.approx(10 * TRUE["a uses"], rel=1e-3)
    assert set(found) == {"strange", *(f"piece {number}" for number in range(5))}
    assert held_out([strange]) == {}
