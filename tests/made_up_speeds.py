"""Speeds of no machine, for tests."""

from __future__ import annotations

from mpcache.speeds import Error, Grid, Kernels, Speeds, Wire

GRID = Grid((1, 64), (64, 1024), (64, 1024), (((1e-9,) * 2,) * 2,) * 2, 2e-5)
WIRE = Wire(1e-4, 1e-9, 8e-5, 5e-10, 3e-10, 7e-10)
PARTY = {"Triple uses": 2e-4, "Triple bytes": 1e-9, "scope uses": 5e-5, "owned products": 1.25}
SPEEDS = Speeds(
    Kernels(GRID, GRID, GRID, GRID, 2e-10),
    PARTY,
    {name: value / 2 for name, value in PARTY.items()},
    WIRE,
    Wire(*(2 * value for value in (1e-4, 1e-9, 8e-5, 5e-10, 3e-10, 7e-10))),
    Error(0.12, 0.2, 9),
    Error(0.07, 0.15, 9),
)
