"""Predicted seconds: what this machine takes a round, a byte, a dealt byte and a multiply-add.

The speeds are fitted to measured layers (`mpcache cost --calibrate`) and saved in the user's cache
folder. They hold for the machine and the version that they were measured with, and no other.
"""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mpcache import __version__
from mpcache.config import PRESETS, RunConfig
from mpcache.protocols.ledger import Entry, Work
from mpcache.report.files import write_atomic
from mpcache.report.machine import describe_machine

FEATURES = ("rounds", "sent_bytes", "dealt_bytes", "operands", "multiply_adds")
NETWORKS = ("local", "lan", "wan")
PHASES = ("prefill", "decode")


@dataclass(frozen=True)
class Load:
    """What a piece of a run asks of a party: the features that seconds are fitted to.

    Attributes:
        phase: prefill or decode: many rows at once, or one.
    """

    phase: str
    rounds: float
    sent_bytes: float
    dealt_bytes: float
    operands: float
    multiply_adds: float

    @staticmethod
    def of(phase: str, entries: Sequence[Entry], work: Work, share: float = 1.0) -> Load:
        """The largest counts of all parties, times `share`."""
        return Load(
            phase,
            share * max(entry.rounds for entry in entries),
            share * max(entry.sent_bytes for entry in entries),
            share * max(entry.dealt_bytes for entry in entries),
            share * work.operands,
            share * work.multiply_adds,
        )

    def row(self) -> list[float]:
        return [float(getattr(self, name)) for name in FEATURES]


@dataclass(frozen=True)
class Pace:
    """Seconds a unit of each feature, for a party and for the dealer."""

    party: tuple[float, ...]
    dealer: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("party", "dealer"):
            speeds = tuple(map(float, getattr(self, name)))
            if len(speeds) != len(FEATURES):
                raise ValueError(f"{name} has {len(speeds)} speeds; expected {len(FEATURES)}")
            object.__setattr__(self, name, speeds)


@dataclass(frozen=True)
class Speeds:
    """The paces of prefill and decode: rows by the hundred keep caches and compilers busier.

    Attributes:
        worst: the largest relative error on the layers that it was fitted to.
    """

    prefill: Pace
    decode: Pace
    worst: float
    samples: int

    def seconds(
        self,
        load: Load,
        network: tuple[float, float] = (0.0, 0.0),
        shared: tuple[int, int] | None = None,
        live: bool = True,
    ) -> float:
        """A party's work and the network's delay; the dealer's work where that takes longer.

        Args:
            live: whether the dealer works at the same time; else everything was dealt before.
            network: round trip in milliseconds, rate in Mbit/s (0 for no limit).
            shared: parties and cores of a host that runs all of them and the dealer, whose work
                then takes turns.
        """
        rtt_ms, mbps = network
        pace: Pace = getattr(self, load.phase)
        own, dealer = (float(np.dot(speeds, load.row())) for speeds in (pace.party, pace.dealer))
        dealer = dealer if live else 0.0
        wire = load.rounds * rtt_ms / 2e3 + (load.sent_bytes * 8 / (mbps * 1e6) if mbps else 0.0)
        turns = (shared[0] * own + dealer) / shared[1] if shared else 0.0
        return max(own + wire, dealer, turns)


def fit(rows: Sequence[Sequence[float]], seconds: Sequence[float]) -> tuple[float, ...]:
    """Nonnegative least squares of the relative errors.

    The solution is an ordinary one on the features that it uses; there are few, so all sets are
    tried.

    Args:
        rows: features of each sample. seconds: measured, over 0.
    """
    scaled = np.asarray(rows, dtype=np.float64) / np.asarray(seconds, dtype=np.float64)[:, None]
    size = np.abs(scaled).max(0)
    used = [column for column in range(scaled.shape[1]) if size[column] > 0]
    best, least = np.zeros(scaled.shape[1]), np.inf
    for count in range(1, len(used) + 1):
        for chosen in itertools.combinations(used, count):
            part = scaled[:, chosen] / size[list(chosen)]
            found = np.linalg.lstsq(part, np.ones(len(part)), rcond=None)[0]
            off = float(((part @ found - 1) ** 2).sum())
            if (found >= 0).all() and off < least:
                best, least = np.zeros(scaled.shape[1]), off
                best[list(chosen)] = found / size[list(chosen)]
    return tuple(float(value) for value in best)


# --- the file ------------------------------------------------------------------------------------


def path() -> Path:
    """Where the calibration of this user lies."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(root) / "mpcache" / "calibration.json"


def _here() -> dict[str, Any]:
    facts = describe_machine()
    return {name: facts[name] for name in ("cpu", "cores", "system", "torch")}


def save(suites: Mapping[str, Speeds]) -> Path:
    """Save the speeds of each suite, for this machine and version."""
    target = path()
    target.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "version": __version__,
        "machine": _here(),
        "suites": {name: asdict(speeds) for name, speeds in suites.items()},
    }
    write_atomic(target, json.dumps(content, indent=2) + "\n")
    return target


def load(suite: str) -> tuple[Speeds | None, str]:
    """The speeds of a suite, or None and why there are none."""
    again = "run `mpcache cost --calibrate`"
    try:
        content = json.loads(path().read_text(encoding="utf-8"))
        found = content["suites"].get(suite)
        of = content["version"], content["machine"]
        if found is not None:
            found = Speeds(**{**found, **{name: Pace(**found[name]) for name in PHASES}})
    except FileNotFoundError:
        return None, f"no seconds: this machine is not calibrated; {again}"
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None, f"no seconds: {path()} cannot be read; {again}"
    if of != (__version__, _here()):
        return None, f"no seconds: the calibration is of another machine or version; {again}"
    if found is None:
        return None, f"no seconds: suite {suite} is not calibrated; {again}"
    return found, ""


def seconds_on_networks(
    speeds: Speeds, loads: Mapping[str, Load], parties: int
) -> dict[str, dict[str, float]]:
    """Network -> name of a load -> predicted seconds.

    ``local`` is all processes on this host; elsewhere each has a host of its own like this one.
    """
    shared = parties, int(describe_machine()["cores"])
    return {
        network: {
            name: speeds.seconds(load, PRESETS[network], shared if network == "local" else None)
            for name, load in loads.items()
        }
        for network in NETWORKS
    }


def run_seconds(config: RunConfig, loads: Mapping[str, Load]) -> dict[str, float] | None:
    """Predicted seconds of a run with all its processes on this host; None if not calibrated."""
    speeds, _ = load(config.protocol)
    if speeds is None:
        return None
    shared = config.parties, int(describe_machine()["cores"])
    network = config.network.rtt_ms, config.network.mbps
    return {name: speeds.seconds(piece, network, shared) for name, piece in loads.items()}


def loads_of(
    totals: Mapping[str, tuple[Sequence[Entry], Work]], decode_steps: int
) -> dict[str, Load]:
    """`prefill`, and `token`: a decode step on average, where there is one.

    Args:
        totals: phase -> counts of each party, and arithmetic.
    """
    found = {"prefill": Load.of("prefill", *totals["prefill"])}
    if decode_steps:
        found["token"] = Load.of("decode", *totals["decode"], share=1 / decode_steps)
    return found
