"""A sweep: every combination of what is asked for is a job, and a row of plain values."""

from __future__ import annotations

import itertools
import json
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from mpcache import __version__, calibration
from mpcache.benchmarking.job import PROFILES, Job
from mpcache.benchmarking.layers import DecodeJob, PrefillJob
from mpcache.benchmarking.measure import Measured, measure
from mpcache.benchmarking.operators import OPERATORS, OperatorJob
from mpcache.config import AVAILABLE_PROTOCOLS, PRESETS
from mpcache.config import load as load_config
from mpcache.config_layers import nearest, parse_network
from mpcache.errors import UsageError
from mpcache.eviction.registry import policy_at, policy_names
from mpcache.models import registry
from mpcache.models.spec import ModelSpec
from mpcache.protocols.ledger import Entry
from mpcache.report.files import write_atomic
from mpcache.report.machine import describe_machine
from mpcache.speeds import Load

Row = dict[str, Any]
KINDS = ("decode", "prefill", "ops")
MAX_CONTEXT = 1 << 17
NEEDED = ("seconds", "parts", "parties", "machine")  # without which a line is of another version


@dataclass(frozen=True)
class Sweep:
    """What is measured, checked before anything starts.

    Args:
        layers: decoder layers of a step, None for the whole model with embedding and head; with 4
            or more the policies' layers that share a choice are among them.
        contexts: tokens stored before the first decode step, or fed in a prefill.
        networks: as in the configuration: local, lan, wan, wan-slow or RTT,MBPS.
        parties: 2, or 3 in suite crypten.
        profiles: of suite dealer; an empty name is the usual one.
        devices: of the plaintext.
        repeat: steps of a job, after one that warms up.
        keep: share of the context's tokens that a decode step attends to, but with full.
        only: operators whose name has this in it.
    """

    kind: str
    model: str = "opt-1.3b"
    layers: int | None = 1
    contexts: tuple[int, ...] = (1024,)
    caches: tuple[str, ...] = ("mpcache", "full")
    protocols: tuple[str, ...] = ("dealer",)
    networks: tuple[str, ...] = ("local",)
    parties: tuple[int, ...] = (2,)
    profiles: tuple[str, ...] = ("",)
    devices: tuple[str, ...] = ("cpu",)
    repeat: int = 5
    keep: float = 0.2
    only: str = ""

    def __post_init__(self) -> None:
        _known("protocol", self.protocols, AVAILABLE_PROTOCOLS)
        _known("cache", self.caches, policy_names())
        if self.repeat < 1:
            raise UsageError(f"--repeat {self.repeat}: expected 1 or more")
        for context in self.contexts:
            if not 1 <= context <= MAX_CONTEXT:
                raise UsageError(f"--contexts {context}: expected 1 to {MAX_CONTEXT} tokens")
        if not 0 < self.keep <= 1:
            raise UsageError(f"--keep {self.keep}: expected a share over 0 and at most 1")
        for network in self.networks:
            network_of(network)
        self._check_suites()
        self._check_devices()
        if self.kind != "ops":
            self._check_model()
            if self.kind == "prefill":
                for cache in self.caches:
                    policy_at(cache, 1, 1).require(self.spec())
        elif not self.operators():
            names = ", ".join(operator.name for operator in OPERATORS)
            raise UsageError(f"--only {self.only!r} is in no operator's name; there are: {names}")

    def _check_suites(self) -> None:
        """Every suite must have every number of parties and every profile."""
        if not self.parties or set(self.parties) - {2, 3}:
            raise UsageError(f"--parties {_listed(self.parties)}: expected 2 or 3")
        if 3 in self.parties and "dealer" in self.protocols:
            raise UsageError("--parties 3: suite dealer has two; add --protocols crypten")
        given = [name for name in self.profiles if name]
        if given and not PROFILES:
            raise UsageError("--profiles: this version has one profile only; leave it out")
        if given:
            _known("profile", given, PROFILES)
        if given and "crypten" in self.protocols:
            raise UsageError("--profiles are for suite dealer; leave out --protocols crypten")

    def _check_devices(self) -> None:
        _known("device", self.devices, ("cpu", "cuda"))
        if "cuda" in self.devices and not torch.cuda.is_available():
            raise UsageError("--devices cuda: torch sees no GPU here; use cpu")

    def _check_model(self) -> None:
        """The layers exist, and a whole model's shares fit into the memory."""
        source = registry.find(self.model, "synthetic", 0)
        most = source.spec.layers
        if self.layers is not None and not 1 <= self.layers <= most:
            raise UsageError(
                f"--layers {self.layers}: {self.model} has {most} layers; expected 1 to {most}, or"
                " all for the whole model"
            )
        if self.layers is None:
            from mpcache.weight_memory import check_memory

            for protocol, parties in itertools.product(self.protocols, self.parties):
                config = {"model": self.model, "protocol": protocol, "parties": parties}
                check_memory(load_config(None, config), source.spec)

    def spec(self) -> ModelSpec:
        return registry.find(self.model, "synthetic", 0).spec

    def operators(self) -> list[Any]:
        return [operator for operator in OPERATORS if self.only in operator.name]


def _listed(values: Sequence[object]) -> str:
    return ",".join(map(str, values)) or "(none)"


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
    for protocol, parties, profile, network, device in itertools.product(
        sweep.protocols, sweep.parties, sweep.profiles, sweep.networks, sweep.devices
    ):
        facts: Row = {
            "protocol": protocol,
            "parties": parties,
            "profile": profile,
            "network": network,
            "device": device,
        }
        common = (protocol, sweep.repeat + 1, network_of(network))
        chosen: Row = {"parties": parties, "profile": profile, "device": device}
        if sweep.kind == "ops":
            for operator in sweep.operators():
                if protocol in operator.suites:
                    job = OperatorJob(*common, operator, **chosen)
                    yield {"operator": operator.name} | facts, job
            continue
        kind = DecodeJob if sweep.kind == "decode" else PrefillJob
        whole = sweep.layers is None
        spec = replace(sweep.spec(), layers=sweep.layers or sweep.spec().layers)
        for context, cache in itertools.product(sweep.contexts, sweep.caches):
            policy = policy_at(cache, max(1, round(sweep.keep * context)), context)
            policy = policy.fitted(sweep.spec())
            named = {
                "model": sweep.model,
                "layers": spec.layers,
                "whole": whole,
                "context": context,
                "cache": cache,
                "weights": "synthetic",
            }
            if cache != "full":
                named["keep"] = sweep.keep
            yield named | facts, kind(*common, spec, policy, context, whole=whole, **chosen)


def row_of(kind: str, facts: Row, job: Job, measured: Measured, machine: Row) -> Row:
    """One line of JSON: what was measured, under what, on which machine."""
    rtt_ms, mbps = job.network
    return {
        "kind": kind,
        **facts,
        "emulated": {"rtt_ms": rtt_ms, "mbps": mbps} if rtt_ms or mbps else None,
        "seconds": spread(measured.seconds),
        "predicted_seconds": predicted_seconds(job, measured),
        "parts": [parts(entry) for entry in measured.steps],
        "rounds": measured.steps[0].rounds,
        "sent_bytes": [entry.sent_bytes for entry in measured.steps],
        "attention": {
            "seconds": max(entry.seconds for entry in measured.attention),
            "rounds": measured.attention[0].rounds,
            "sent_bytes": [entry.sent_bytes for entry in measured.attention],
        },
        "dealt_bytes": measured.dealt_bytes,
        "dealer_seconds": measured.dealer_seconds,
        "ahead_seconds": measured.ahead_seconds,
        "plaintext_seconds": spread(measured.plain_seconds),
        "measured_equals_predicted": True,  # `measure` raises otherwise
        "machine": machine,
        "version": __version__,
    }


def parts(entry: Entry) -> dict[str, float]:
    """A party's median seconds by what it did: see `Entry`. `busy` is its processor's."""
    away = entry.wait_seconds + entry.transfer_seconds + entry.dealer_seconds
    return {
        "compute": max(0.0, entry.seconds - away),
        "wait": entry.wait_seconds,
        "transfer": entry.transfer_seconds,
        "dealer": entry.dealer_seconds,
        "busy": entry.busy_seconds,
    }


def predicted_seconds(job: Job, measured: Measured) -> float | None:
    """What this machine's calibration says of a step; None without one."""
    speeds, _ = calibration.load(job.suite)
    if speeds is None:
        return None
    shared = job.parties, int(describe_machine()["cores"])
    load = Load.of(measured.steps, measured.total_work)
    return speeds.seconds(load, job.network, shared, live=False, tls=False)


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
        rows = [row for row in rows if row["kind"] in KINDS]
        for row in rows:
            for name in NEEDED:
                row[name]
        return rows
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist; run `mpcache bench` first") from None
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(f"{path} holds no lines of `mpcache bench`; run it again") from None
