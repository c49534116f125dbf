"""Fitting seconds to what was done: coefficients that are never negative, and their error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

Columns = Mapping[str, float]
_SWEEPS = 500
_SETTLED = 1e-9


@dataclass(frozen=True)
class Sample:
    """What was done in one place, and the seconds that it took; samples of one `group` make up one
    measured piece."""

    group: str
    columns: Columns
    seconds: float


def fit(samples: Sequence[Sample], floor: float = 3e-5) -> dict[str, float]:
    """Seconds a unit of each column: the least squares that are not negative.

    A sample's error counts relative to the square root of its seconds, so that long ones rule a
    sum and short ones still tell their columns apart.

    Args:
        floor: seconds below which a sample counts as that long.
    """
    names = sorted({name for sample in samples for name in sample.columns})
    rows = np.array([[sample.columns.get(name, 0.0) for name in names] for sample in samples])
    seconds = np.array([sample.seconds for sample in samples])
    weight = 1 / np.sqrt(np.maximum(seconds, floor))
    found = nonnegative(rows * weight[:, None], seconds * weight)
    return {name: float(value) for name, value in zip(names, found, strict=True)}


def nonnegative(rows: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """x >= 0 with the least |rows x - wanted|^2, one coordinate after the other.

    The squares are convex and the bounds separate, so that this ends in a least point (Luo and
    Tseng, Journal of Optimization Theory and Applications 72, 1992).
    """
    size = np.sqrt((rows**2).sum(0))
    size[size == 0] = 1.0
    scaled = rows / size
    gram, target = scaled.T @ scaled, scaled.T @ wanted
    x = np.zeros(rows.shape[1])
    curved = np.where(np.diag(gram) > 0, np.diag(gram), 1.0)
    for _ in range(_SWEEPS):
        moved = 0.0
        for at in range(len(x)):
            new = max(0.0, x[at] + (target[at] - gram[at] @ x) / curved[at])
            moved, x[at] = max(moved, abs(new - x[at])), new
        if moved <= _SETTLED * max(1e-30, np.abs(x).max()):
            break
    return x / size


def total(coefficients: Mapping[str, float], columns: Columns) -> float:
    """Seconds of what was done; a use that was never sampled takes what others take on average."""
    seconds = 0.0
    for name, amount in columns.items():
        known = coefficients.get(name)
        seconds += amount * (average(coefficients, name) if known is None else known)
    return seconds


def average(coefficients: Mapping[str, float], name: str) -> float:
    """The mean over the columns of the kind of `name`, which ends behind its last space."""
    kind = name.rpartition(" ")[2]
    alike = [value for known, value in coefficients.items() if known.rpartition(" ")[2] == kind]
    return sum(alike) / len(alike) if alike else 0.0


def held_out(samples: Sequence[Sample]) -> dict[str, tuple[float, float]]:
    """Group -> its measured seconds, and those predicted from all other groups."""
    found = {}
    for group in dict.fromkeys(sample.group for sample in samples):
        inside = [sample for sample in samples if sample.group == group]
        others = [sample for sample in samples if sample.group != group]
        if others:
            speeds = fit(others)
            measured = sum(sample.seconds for sample in inside)
            found[group] = measured, sum(total(speeds, sample.columns) for sample in inside)
    return found
