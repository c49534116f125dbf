"""Fit this machine's speeds to small layers that are measured here and now."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from mpcache.benchmarking.layers import DecodeJob, PrefillJob
from mpcache.benchmarking.pair import Job, Measured, measure
from mpcache.calibration import PHASES, Load, Pace, Speeds, fit
from mpcache.eviction.registry import make_policy
from mpcache.models.known import KNOWN
from mpcache.models.spec import ModelSpec

LOCAL = (0.0, 0.0)
STEPS = 6
# hidden size, tokens stored: of decode steps in each suite
DECODE = {
    "dealer": ((512, 128), (1024, 512), (2048, 256), (2048, 1500)),
    "crypten": ((256, 64), (512, 256), (1024, 64)),
}
PREFILL = {
    "dealer": ((512, 32), (576, 96), (576, 192), (1024, 64), (1024, 128)),
    "crypten": ((256, 16), (512, 48), (576, 96)),
}


def _spec(family: str, hidden: int) -> ModelSpec:
    """One layer of that hidden size, with the proportions of a known model."""
    known = KNOWN["smollm2" if family == "llama" else "opt-1.3b"].spec
    heads = hidden // 64
    return replace(
        known, layers=1, hidden=hidden, heads=heads, kv_heads=heads, head_dim=64, ffn=3 * hidden
    )


def _jobs(suite: str) -> Iterator[Job]:
    for family in ("llama", "opt"):
        for hidden, tokens in DECODE[suite]:
            policy = make_policy("mpcache" if family == "llama" else "full", dynamic_keep=0.2)
            yield DecodeJob(suite, STEPS, LOCAL, _spec(family, hidden), policy, tokens)
        for hidden, tokens in PREFILL[suite]:
            spec, policy = _spec(family, hidden), make_policy("mpcache")
            yield PrefillJob(suite, 3, LOCAL, spec, policy, tokens)


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
        f"{job.suite}, {kind}, hidden {job.spec.hidden}, {job.tokens} tokens:"
        f" {_median(found.seconds) * 1e3:.1f} ms"
    )
