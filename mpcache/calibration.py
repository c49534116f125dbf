"""Where a machine's measured speeds are kept, and the seconds of runs predicted from them.

`mpcache cost --calibrate` measures them and saves them in the user's cache folder. They hold for
the machine and the version that they were measured with, and no other.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from mpcache import __version__
from mpcache.config import PRESETS, RunConfig
from mpcache.protocols.ahead import AT_ONCE
from mpcache.protocols.ledger import Entry
from mpcache.protocols.work import Work
from mpcache.report.files import write_atomic
from mpcache.report.machine import describe_machine
from mpcache.speeds import Load, Speeds

NETWORKS = ("local", "lan", "wan")


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
    write_atomic(target, json.dumps(content) + "\n")
    return target


def load(suite: str) -> tuple[Speeds | None, str]:
    """The speeds of a suite, or None and why there are none."""
    again = "run `mpcache cost --calibrate`"
    try:
        content = json.loads(path().read_text(encoding="utf-8"))
        of, found = (content["version"], content["machine"]), content["suites"].get(suite)
        if of == (__version__, _here()) and found is not None:
            found = Speeds.read(found)
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
    live = config.protocol == "dealer" and config.store is None
    return {
        name: speeds.seconds(piece, network, shared, live, config.network.tls)
        for name, piece in loads.items()
    }


def loads_of(
    totals: Mapping[str, tuple[Sequence[Entry], Work]], decode_steps: int
) -> dict[str, Load]:
    """`prefill`, and `token`: a decode step on average, where there is one.

    Args:
        totals: phase -> counts of each party, and work.
    """
    found = {"prefill": replace(Load.of(*totals["prefill"]), first=True)}
    if decode_steps:
        token = Load.of(*totals["decode"], share=1 / decode_steps)
        windows = math.ceil(decode_steps / AT_ONCE)
        found["token"] = replace(token, together=decode_steps / windows)
    return found
