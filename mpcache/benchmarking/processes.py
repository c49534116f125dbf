"""The parties of a job as processes of this host, on plain socket pairs."""

from __future__ import annotations

import itertools
import math
import multiprocessing
import socket
import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

import torch

from mpcache.benchmarking.job import Job, Side, walk
from mpcache.errors import MpcacheError
from mpcache.heap import keep_pages
from mpcache.kernels.prg import Stream
from mpcache.parties.transport import Wires
from mpcache.protocols.dealer import Use
from mpcache.protocols.dealer_roles import Dealing, Foreseeing, OnlineDealer
from mpcache.protocols.ledger import Entry, Ledger, Scopes
from mpcache.protocols.operation import SecureMachine

TIMEOUT_S = 600


@dataclass(frozen=True)
class Ran:
    """One party's figures.

    Attributes:
        seconds: of each step.
        ahead_seconds: what party 1 worked out before the first step, on average for a step.
        entries: path of a scope, beginning with its step -> what was counted in it.
    """

    seconds: list[float]
    entries: dict[str, Entry]
    transcript: str
    ahead_seconds: float = 0.0


@dataclass(frozen=True)
class DealtAhead:
    """What the dealer made before the parties start: corrections, and its work by step."""

    items: list[torch.Tensor] = field(default_factory=list)
    entries: dict[str, Entry] = field(default_factory=dict)
    seconds: float = 0.0
    last_bytes: int = 0


class _Corrections:
    """What was dealt, in the order of use."""

    def __init__(self, items: list[torch.Tensor]) -> None:
        self.items = iter(items)

    def ring(self, shape: Sequence[int], dtype: torch.dtype = torch.int64) -> torch.Tensor:
        return next(self.items)

    def finish(self) -> None:
        if next(self.items, None) is not None:
            raise MpcacheError("corrections were left over; nothing is reported")


def deal(job: Job, seeds: Sequence[bytes]) -> DealtAhead:
    """All corrections of a job in suite `dealer`; `seconds` is the median of its steps."""
    items: list[torch.Tensor] = []
    suite = Dealing(job.setting(), (Stream(seeds[0]), Stream(seeds[1])), items.append)
    times: list[float] = []
    sizes: list[int] = []
    ledger = Scopes()

    def on_step(step: int) -> None:
        times.append(time.perf_counter())
        sizes.append(suite.dealt_bytes)

    walk(job, SecureMachine(suite, ledger), Side(None), on_step)
    seconds = statistics.median(warm(between(times)))
    return DealtAhead(items, ledger.entries, seconds, sizes[-1] - sizes[-2])


def between(times: Sequence[float]) -> list[float]:
    return [later - earlier for earlier, later in itertools.pairwise(times)]


def warm(seconds: Sequence[float]) -> list[float]:
    """Seconds of each step but the first, which warms up; of that one if it is alone."""
    return list(seconds[1:] or seconds)


def run(job: Job, seeds: Sequence[bytes], items: list[torch.Tensor]) -> list[Ran]:
    """Run all parties and return what each measured.

    Raises:
        MpcacheError: a party failed; the message has every failure.
    """
    context = multiprocessing.get_context("fork")
    socks: list[dict[int, socket.socket]] = [{} for _ in range(job.parties)]
    for low, high in itertools.combinations(range(job.parties), 2):
        socks[low][high], socks[high][low] = socket.socketpair()
    ends, processes = [], []
    for rank in range(job.parties):
        near, far = context.Pipe(duplex=False)
        ends.append(near)
        others = [
            sock for place in range(job.parties) if place != rank for sock in socks[place].values()
        ]
        seed = seeds[rank] if rank < len(seeds) else b""
        arguments = (job, rank, socks[rank], others, seed, items if rank == 1 else [], far)
        process = context.Process(target=_party, args=arguments, daemon=True)
        process.start()
        far.close()
        processes.append(process)
    for sock in [sock for table in socks for sock in table.values()]:
        sock.close()
    results: list[Any] = []
    for rank, end in enumerate(ends):
        try:
            results.append(end.recv())
        except EOFError:
            results.append(f"party {rank} ended without a word (out of memory?)")
    for process in processes:
        process.join()
    failed = [result for result in results if isinstance(result, str)]
    if failed:
        raise MpcacheError("; ".join(failed))
    return results


def _party(
    job: Job,
    rank: int,
    socks: dict[int, socket.socket],
    others: list[socket.socket],
    seed: bytes,
    items: list[torch.Tensor],
    out: Connection,
) -> None:
    """One party's process: sends what `_run` returns, or why it failed."""
    for sock in others:
        sock.close()
    torch.set_num_threads(1)
    if job.suite == "crypten":  # as a party of a run does
        keep_pages()
    try:
        out.send(_run(job, rank, socks, seed, items))
    except Exception as error:
        out.send(f"party {rank}: {type(error).__name__}: {error}")


def _run(
    job: Job, rank: int, socks: dict[int, socket.socket], seed: bytes, items: list[torch.Tensor]
) -> Ran:
    ledger = Ledger(rank, job.parties)
    rtt_ms, mbps = job.network
    times: list[float] = []
    with (
        torch.inference_mode(),
        Wires(socks, ledger, timeout_s=TIMEOUT_S, rtt_ms=rtt_ms, mbps=mbps) as wires,
        ExitStack() as stack,
    ):
        setting = job.setting()
        corrections = _Corrections(items) if rank == 1 else None
        if job.suite == "dealer":
            suite: Any = OnlineDealer(setting, wires, ledger, Stream(seed), corrections)
        else:
            from mpcache.protocols.crypten import CryptenSuite, attached

            stack.enter_context(attached(wires))
            suite = CryptenSuite(setting, wires, ledger)
        uses = foreseen(job) if job.suite == "dealer" and rank == 1 else []
        ahead = 0.0

        def on_step(step: int) -> None:
            nonlocal ahead
            if step == 0 and uses:
                began = time.perf_counter()
                suite.foresee(uses, math.inf)
                ahead = (time.perf_counter() - began) / job.steps
            times.append(time.perf_counter())

        walk(job, SecureMachine(suite, ledger), Side(rank), on_step)
        if corrections is not None:
            corrections.finish()
    return Ran(between(times), ledger.entries, ledger.transcript.hexdigest(), ahead)


def foreseen(job: Job) -> list[Use]:
    """Products with weights in all steps of a job in suite `dealer`, in their order."""
    suite = Foreseeing(job.setting())
    walk(job, SecureMachine(suite, suite.prediction), Side(None), lambda step: None)
    return [use for uses in suite.uses.values() for use in uses]
