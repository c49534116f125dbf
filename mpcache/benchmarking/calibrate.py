"""Fit this machine's speeds to small layers that are measured here and now."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from mpcache.benchmarking.layers import DecodeJob, PrefillJob
from mpcache.benchmarking.pair import Job, Measured, measure
from mpcache.calibration import PHASES, Load, Pace, Speeds, fit
from mpcache.eviction.registry import make_policy, policy_at
from mpcache.models.known import KNOWN
from mpcache.models.spec import ModelSpec

LOCAL = (0.0, 0.0)
STEPS = 6
# models whose layers are measured: tokens stored before a decode step, and tokens of a prompt
DECODE = {
    "dealer": {"smollm2": (100, 1000), "opt-350m": (300,), "opt-1.3b": (100, 1000, 3000)},
    "crypten": {"smollm2": (64, 256), "opt-350m": (128,), "opt-1.3b": (100,)},
}
PREFILL = {
    "dealer": {"smollm2": (48, 128, 256), "opt-350m": (64,), "opt-1.3b": (32, 96)},
    "crypten": {"smollm2": (16, 64), "opt-350m": (24,)},
}


def _spec(model: str) -> ModelSpec:
    """One layer of a known model."""
    return replace(KNOWN[model].spec, layers=1)


def _jobs(suite: str) -> Iterator[Job]:
    steps = STEPS if suite == "dealer" else 2
    for model, lengths in DECODE[suite].items():
        for tokens in lengths:
            for cache in ("mpcache", "full"):
                policy = policy_at(cache, max(1, tokens // 5), tokens)
                yield DecodeJob(suite, steps, LOCAL, _spec(model), policy, tokens)
    for model, lengths in PREFILL[suite].items():
        for tokens in lengths:
            yield PrefillJob(suite, 2, LOCAL, _spec(model), make_policy("mpcache"), tokens)


def calibrate(suite: str, on_sample: Callable[[str], None]) -> Speeds:
    """Measure and fit one suite; `on_sample` is told of each layer as it is done."""
    samples: dict[str, list[tuple[list[float], float, float]]] = {name: [] for name in PHASES}
    for job in _jobs(suite):
        found = measure(job, plain=False)
        phase = "decode" if isinstance(job, DecodeJob) else "prefill"
        row = Load.of(phase, found.steps, found.work).row()
        samples[phase].append((row, _median(found.seconds), found.dealer_seconds))
        on_sample(_line(job, found))
    paces, worst = {}, 0.0
    for phase, rows in samples.items():
        loads, seconds, dealer = (list(column) for column in zip(*rows, strict=True))
        dealing = fit(loads, dealer) if all(dealer) else (0.0,) * len(loads[0])
        pace = paces[phase] = Pace(fit(loads, seconds), dealing)
        worst = max(worst, float(abs(loads @ np.array(pace.party) / seconds - 1).max()))
    return Speeds(paces["prefill"], paces["decode"], worst, sum(map(len, samples.values())))


def _median(values: tuple[float, ...]) -> float:
    return sorted(values)[len(values) // 2]


def _line(job: Any, found: Measured) -> str:
    kind = "decode" if isinstance(job, DecodeJob) else "prefill"
    return (
        f"{job.suite}, {kind}, {job.spec.name}, {job.policy.name}, {job.tokens} tokens:"
        f" {_median(found.seconds) * 1e3:.1f} ms"
    )
