"""A sweep over contexts, caches, protocols and networks: one row of plain values a job."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from mpcache import __version__, calibration
from mpcache.benchmarking.layers import DecodeJob, PrefillJob
from mpcache.benchmarking.operators import OPERATORS, OperatorJob
from mpcache.benchmarking.pair import Job, Measured, measure
from mpcache.calibration import Load
from mpcache.config import AVAILABLE_PROTOCOLS, PRESETS
from mpcache.config_layers import nearest, parse_network
from mpcache.errors import UsageError
from mpcache.eviction.registry import policy_at, policy_names
from mpcache.models import registry
from mpcache.models.spec import ModelSpec
from mpcache.report.files import write_atomic
from mpcache.report.machine import describe_machine

Row = dict[str, Any]
KINDS = ("decode", "prefill", "ops")
MAX_CONTEXT = 1 << 17


@dataclass(frozen=True)
class Sweep:
    """What is measured, checked before anything starts.

    Args:
        layers: decoder layers of a step; with 4 or more the policies' layers that share a choice
            are among them.
        contexts: tokens stored before the first decode step, or fed in a prefill.
        networks: as in the configuration: local, lan, wan, wan-slow or RTT,MBPS.
        repeat: steps of a job, after one that warms up.
        keep: share of the context's tokens that a decode step attends to, but with full.
        only: operators whose name has this in it.
    """

    kind: str
    model: str = "opt-1.3b"
    layers: int = 1
    contexts: tuple[int, ...] = (1024,)
    caches: tuple[str, ...] = ("mpcache", "full")
    protocols: tuple[str, ...] = ("dealer",)
    networks: tuple[str, ...] = ("local",)
    repeat: int = 5
    keep: float = 0.2
    only: str = ""

    def __post_init__(self) -> None:
        _known("protocol", self.protocols, AVAILABLE_PROTOCOLS)
        _known("cache", self.caches, policy_names())
        for name, value, least in (("--layers", self.layers, 1), ("--repeat", self.repeat, 1)):
            if value < least:
                raise UsageError(f"{name} {value}: expected {least} or more")
        for context in self.contexts:
            if not 1 <= context <= MAX_CONTEXT:
                raise UsageError(f"--contexts {context}: expected 1 to {MAX_CONTEXT} tokens")
        if not 0 < self.keep <= 1:
            raise UsageError(f"--keep {self.keep}: expected a share over 0 and at most 1")
        for network in self.networks:
            network_of(network)
        if self.kind != "ops" and self.layers > self.spec().layers:
            raise UsageError(
                f"--layers {self.layers}: {self.model} has {self.spec().layers} layers; expected"
                " that many at most"
            )
        if self.kind == "prefill":
            for cache in self.caches:
                policy_at(cache, 1, 1).require(self.spec())
        if self.kind == "ops" and not self.operators():
            names = ", ".join(operator.name for operator in OPERATORS)
            raise UsageError(f"--only {self.only!r} is in no operator's name; there are: {names}")

    def spec(self) -> ModelSpec:
        return registry.find(self.model, "synthetic", 0).spec

    def operators(self) -> list[Any]:
        return [operator for operator in OPERATORS if self.only in operator.name]


def _known(what: str, given: Sequence[str], known: Sequence[str]) -> None:
    if not given:
        raise UsageError(f"no {what} was given; choose of {', '.join(known)}")
    for name in given:
        if name not in known:
            near = nearest(name, known)
            raise UsageError(f"{what} {name!r} is unknown{near}; choose of {', '.join(known)}")


def network_of(text: str) -> tuple[float, float]:
    """Round trip in milliseconds and rate in Mbit/s of a named network or ``RTT,MBPS``."""
    given = parse_network(text)
    if "rtt_ms" not in given:
        _known("network", (text,), tuple(PRESETS))
        return PRESETS[text]
    rtt_ms, mbps = float(given["rtt_ms"]), float(given["mbps"])
    if not (0 <= rtt_ms < math.inf and 0 <= mbps < math.inf):
        raise UsageError(f"network {text!r}: expected finite numbers that are not below 0")
    return rtt_ms, mbps


def run(sweep: Sweep, on_row: Callable[[Row], None]) -> list[Row]:
    """Measure every combination; `on_row` is called with each row as it comes.

    Raises:
        MpcacheError: a job's counts were not as predicted; its row and those after it are missing.
    """
    machine, rows = describe_machine(), []
    for facts, job in jobs(sweep):
        row = row_of(sweep.kind, facts, job, measure(job), machine)
        rows.append(row)
        on_row(row)
    return rows


def jobs(sweep: Sweep) -> Iterator[tuple[Row, Job]]:
    """Every combination with what names it; operators that a suite lacks are left out."""
    combinations = [
        (protocol, network) for protocol in sweep.protocols for network in sweep.networks
    ]
    steps = sweep.repeat + 1
    for protocol, network in combinations:
        facts: Row = {"protocol": protocol, "network": network}
        common = (protocol, steps, network_of(network))
        if sweep.kind == "ops":
            for operator in sweep.operators():
                if protocol in operator.suites:
                    yield {"operator": operator.name} | facts, OperatorJob(*common, operator)
            continue
        kind = DecodeJob if sweep.kind == "decode" else PrefillJob
        spec = replace(sweep.spec(), layers=sweep.layers)
        for context in sweep.contexts:
            for cache in sweep.caches:
                policy = policy_at(cache, max(1, round(sweep.keep * context)), context)
                policy = policy.fitted(sweep.spec())
                named = {
                    "model": sweep.model,
                    "layers": sweep.layers,
                    "context": context,
                    "cache": cache,
                    "weights": "synthetic",
                }
                if cache != "full":
                    named["keep"] = sweep.keep
                yield named | facts, kind(*common, spec, policy, context)


def row_of(kind: str, facts: Row, job: Job, measured: Measured, machine: Row) -> Row:
    """One line of JSON: what was measured, under what, on which machine."""
    rtt_ms, mbps = job.network
    return {
        "kind": kind,
        **facts,
        "emulated": {"rtt_ms": rtt_ms, "mbps": mbps} if rtt_ms or mbps else None,
        "seconds": spread(measured.seconds),
        "predicted_seconds": predicted_seconds(kind, job, measured),
        "rounds": measured.steps[0].rounds,
        "sent_bytes": [entry.sent_bytes for entry in measured.steps],
        "attention": {
            "seconds": max(entry.seconds for entry in measured.attention),
            "rounds": measured.attention[0].rounds,
            "sent_bytes": [entry.sent_bytes for entry in measured.attention],
        },
        "dealt_bytes": measured.dealt_bytes,
        "dealer_seconds": measured.dealer_seconds,
        "plaintext_seconds": spread(measured.plain_seconds),
        "work": asdict(measured.work),
        "measured_equals_predicted": True,  # `measure` raises otherwise
        "machine": machine,
        "version": __version__,
    }


def predicted_seconds(kind: str, job: Job, measured: Measured) -> float | None:
    """What this machine's calibration says of a step; None without one, and for operators."""
    speeds, _ = calibration.load(job.suite)
    if speeds is None or kind not in calibration.PHASES:
        return None
    return speeds.seconds(Load.of(kind, measured.steps, measured.work), job.network, live=False)


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Median, least and most, and of how many."""
    return {
        "median": statistics.median(seconds),
        "min": min(seconds),
        "max": max(seconds),
        "count": len(seconds),
    }


def write_lines(path: Path, rows: Sequence[Row]) -> None:
    """One JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, "".join(json.dumps(row) + "\n" for row in rows))


def read_lines(path: Path) -> list[Row]:
    """The rows of `write_lines`.

    Raises:
        UsageError: there is no such file, or it is not of that form.
    """
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return [row for row in rows if row["kind"] in KINDS]
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist; run `mpcache bench` first") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(f"{path} holds no lines of `mpcache bench`; run it again") from None
