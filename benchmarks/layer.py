"""One decode step of one decoder layer on shares: seconds, rounds and bytes by suite and cache.

Two party processes on a plain socket pair of this host, synthetic weights, a cache filled with
random keys and values. In suite `dealer` everything is dealt before the parties start; the
dealer's seconds and bytes are shown beside the online ones. Seconds are medians over the steps.
The program stops when the parties' counts disagree, differ from the predicted ones, or corrections
are left over. Users' runs add TLS and a live dealer: see `mpcache launch`.

    python benchmarks/layer.py [--model opt-1.3b] [--tokens 1024] [--steps 5] [--keep 0.2]
"""

from __future__ import annotations

import argparse
import itertools
import multiprocessing
import secrets
import socket
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

import torch

from mpcache.errors import MpcacheError
from mpcache.eviction.base import Cache, Policy
from mpcache.eviction.registry import make_policy
from mpcache.kernels.prg import Stream
from mpcache.models import registry
from mpcache.models.decoder import decoder_layer, load_weights
from mpcache.models.spec import ModelSpec
from mpcache.models.synthetic import synthetic_weights
from mpcache.parties.transport import Wires
from mpcache.protocols.counting import CountingCrypten, hollow
from mpcache.protocols.dealer_roles import CountingDealer, Dealing, OnlineDealer
from mpcache.protocols.ledger import Entry, Ledger, Prediction, Scopes
from mpcache.protocols.operation import PlainMachine, SecureMachine
from mpcache.protocols.setting import Setting
from mpcache.report.machine import describe_machine


@dataclass(frozen=True)
class Job:
    """What is measured: `layer` 0 chooses for itself, 3 reuses the choice of 2."""

    spec: ModelSpec
    policy: Policy
    suite: str
    tokens: int
    steps: int
    network: tuple[float, float]


class Corrections:
    """What was dealt, in the order of use."""

    def __init__(self, items: list[torch.Tensor]) -> None:
        self.items = iter(items)

    def ring(self, shape: Sequence[int], dtype: torch.dtype = torch.int64) -> torch.Tensor:
        return next(self.items)

    def finish(self) -> None:
        if next(self.items, None) is not None:
            raise MpcacheError("corrections were left over")


def walk(job: Job, machine: Any, rank: int | None, on_step: Callable[[int], None]) -> None:
    """Fill a cache and feed one token after another through one layer.

    Args:
        rank: None in hollow readings, -1 in plaintext.
    """
    spec = job.spec
    generator = torch.Generator().manual_seed(1)
    holds = rank in (0, -1)
    with machine.scope("setup"):
        model = load_weights(machine, spec, synthetic_weights(spec) if holds else None)
        cache: Cache = job.policy.start(spec, job.tokens, job.steps + 1)
        stored = job.policy.budget(job.tokens, 1).static
        shape = (2, spec.kv_heads, stored, spec.head_dim)
        both = machine.keep(share(machine, rank, torch.randn(shape, generator=generator)))
        cache.keys[0], cache.values[0] = both[0], both[1]
    for step in range(job.steps):
        x = share(machine, rank, torch.randn(1, spec.hidden, generator=generator))
        on_step(step)
        with machine.scope(f"step{step}"):
            decoder_layer(machine, model, 0, x, job.tokens + step, cache)
    on_step(job.steps)


def share(machine: Any, rank: int | None, value: torch.Tensor) -> Any:
    if rank == -1:
        return value
    frac = machine.setting.frac
    if rank is None:
        return hollow(value.shape, frac)
    ring = machine.encode(value) if rank == 0 else None
    return machine.suite.share(ring, tuple(value.shape), frac, 0)


def deal(job: Job, seeds: Sequence[bytes]) -> tuple[list[torch.Tensor], float, int]:
    """Corrections, and of the steps alone: the dealer's seconds and the bytes, a step."""
    items: list[torch.Tensor] = []
    suite = Dealing(Setting(suite="dealer"), (Stream(seeds[0]), Stream(seeds[1])), items.append)
    times, sizes = [], []

    def on_step(step: int) -> None:
        times.append(time.perf_counter())
        sizes.append(suite.dealt_bytes)

    walk(job, SecureMachine(suite, Scopes()), None, on_step)
    seconds = statistics.median(b - a for a, b in itertools.pairwise(times))
    return items, seconds, sizes[-1] - sizes[-2]


def party(
    job: Job,
    rank: int,
    sock: socket.socket,
    seed: bytes,
    items: list[torch.Tensor],
    out: Connection,
) -> None:
    torch.set_num_threads(1)
    ledger = Ledger(rank, 2)
    rtt_ms, mbps = job.network
    times: list[float] = []
    with (
        torch.inference_mode(),
        Wires({1 - rank: sock}, ledger, timeout_s=600, rtt_ms=rtt_ms, mbps=mbps) as wires,
        ExitStack() as stack,
    ):
        setting = Setting(suite=job.suite)
        if job.suite == "dealer":
            corrections = Corrections(items) if rank == 1 else None
            suite: Any = OnlineDealer(setting, wires, ledger, Stream(seed), corrections)
        else:
            from mpcache.protocols.crypten import CryptenSuite, attached

            stack.enter_context(attached(wires))
            suite = CryptenSuite(setting, wires, ledger)
        machine = SecureMachine(suite, ledger)
        walk(job, machine, rank, lambda step: times.append(time.perf_counter()))
        if isinstance(suite, OnlineDealer) and isinstance(suite.corrections, Corrections):
            suite.corrections.finish()
    steps = [ledger.total(f"step{step}") for step in range(job.steps)]
    out.send((times, steps, ledger.transcript.hexdigest()))


def predicted(job: Job) -> Prediction:
    prediction = Prediction(2)
    setting = Setting(suite=job.suite)
    suite: Any
    if job.suite == "dealer":
        suite = CountingDealer(setting, prediction)
    else:
        suite = CountingCrypten(setting, prediction)
        suite.seeds()
    walk(job, SecureMachine(suite, prediction), None, lambda step: None)
    return prediction


def counted(entry: Entry) -> tuple[int, ...]:
    return entry.rounds, entry.messages, entry.sent_bytes, entry.received_bytes, entry.dealt_bytes


@dataclass
class Row:
    seconds: float
    spread: tuple[float, float]
    step: Entry
    sent: int
    dealt: int
    dealer_seconds: float


def measure(job: Job) -> Row:
    """Run both parties.

    Raises:
        MpcacheError: counts disagree between the parties, or with the prediction.
    """
    seeds = [secrets.token_bytes(16) for _ in range(2)]
    items, dealer_seconds, dealt = deal(job, seeds) if job.suite == "dealer" else ([], 0.0, 0)
    context = multiprocessing.get_context("fork")
    ends, processes = [], []
    socks = socket.socketpair()
    for rank in range(2):
        near, far = context.Pipe()
        ends.append(near)
        arguments = (job, rank, socks[rank], seeds[rank], items if rank else [], far)
        processes.append(context.Process(target=party, args=arguments))
    for process in processes:
        process.start()
    results = [end.recv() for end in ends]
    for process in processes:
        process.join()
    wanted = predicted(job)
    for rank, (_, steps, transcript) in enumerate(results):
        if transcript != wanted.ranks[rank].transcript.hexdigest():
            raise MpcacheError(f"party {rank} did not send what was predicted; nothing is reported")
        for step, entry in enumerate(steps):
            expected = wanted.ranks[rank].total(f"step{step}")
            peer = results[1 - rank][1][step]
            if counted(entry) != counted(expected) or entry.sent_bytes != peer.received_bytes:
                raise MpcacheError(f"step {step} of party {rank} differs from its prediction")
    last = [steps[-1] for _, steps, _ in results]
    if job.suite == "dealer" and last[1].dealt_bytes != dealt:
        raise MpcacheError("the dealer dealt other bytes than party 1 used; nothing is reported")
    times = [max(row) for row in zip(*(times for times, _, _ in results), strict=True)]
    seconds = [b - a for a, b in itertools.pairwise(times)][1:] or [times[1] - times[0]]
    sent = max(entry.sent_bytes for entry in last)
    spread = (min(seconds), max(seconds))
    return Row(statistics.median(seconds), spread, last[0], sent, dealt, dealer_seconds)


def plain_seconds(job: Job) -> float:
    times: list[float] = []
    with torch.inference_mode():
        machine = PlainMachine(Setting())
        walk(job, machine, -1, lambda step: times.append(time.perf_counter()))
    return statistics.median(b - a for a, b in itertools.pairwise(times))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="opt-1.3b")
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--keep", type=float, default=0.2, help="dynamic_keep of mpcache")
    parser.add_argument("--rtt-ms", type=float, default=0.0, help="emulated round trip")
    parser.add_argument("--mbps", type=float, default=0.0, help="emulated bandwidth")
    parser.add_argument("--suites", default="dealer,crypten")
    parser.add_argument("--caches", default="mpcache,full")
    options = parser.parse_args()
    torch.set_num_threads(1)
    spec = registry.find(options.model, "synthetic", 0).spec
    spec = replace(spec, layers=1, vocab=64, context=options.tokens + 64)
    caches = {
        "mpcache": make_policy("mpcache", static_keep=0.9, dynamic_keep=options.keep),
        "full": make_policy("full"),
    }
    machine = describe_machine()
    print(f"one layer of {options.model}, synthetic weights, {options.tokens} tokens, 2 parties")
    print(f"machine: {machine}")
    if options.rtt_ms or options.mbps:
        print(f"network: EMULATED, {options.rtt_ms:g} ms round trip, {options.mbps:g} Mbit/s")
    print(
        "suite    cache    seconds (min-max)      rounds  sent bytes  dealt bytes dealer s  plain s"
    )
    for suite in options.suites.split(","):
        steps = options.steps if suite == "dealer" else 3
        for name in options.caches.split(","):
            network = (options.rtt_ms, options.mbps)
            job = Job(spec, caches[name], suite, options.tokens, steps, network)
            row = measure(job)
            low, high = row.spread
            print(
                f"{suite:8s} {name:8s} {row.seconds:8.3f} ({low:.3f}-{high:.3f})"
                f" {row.step.rounds:10d} {row.sent:11,d} {row.dealt:12,d} {row.dealer_seconds:9.3f}"
                f" {plain_seconds(job):8.4f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
