"""Two party processes on a plain socket pair: seconds, rounds and bytes of each step of a job.

In suite `dealer` everything is dealt before the parties start. Nothing is reported unless the
parties' counts agree with each other and with the prediction, both ways and in every step, and
every dealt correction was used.
"""

from __future__ import annotations

import itertools
import multiprocessing
import secrets
import socket
import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from typing import Any

import torch

from mpcache.errors import MpcacheError
from mpcache.kernels.prg import Stream
from mpcache.parties.transport import Wires
from mpcache.protocols.counting import CountingCrypten, hollow
from mpcache.protocols.dealer_roles import CountingDealer, Dealing, OnlineDealer
from mpcache.protocols.ledger import Entry, Ledger, Prediction, Scopes, Work
from mpcache.protocols.operation import Machine, PlainMachine, SecureMachine
from mpcache.protocols.setting import Setting

OnStep = Callable[[int], None]


class Side:
    """Who reads a job's text, and how it brings values in.

    Args:
        rank: of a party; None in readings without data, -1 in plaintext.
    """

    def __init__(self, rank: int | None) -> None:
        self.rank = rank

    @property
    def owns(self) -> bool:
        """Whether this side has the values in the clear."""
        return self.rank in (0, -1)

    def share(self, machine: Any, value: torch.Tensor) -> Any:
        """`value` as party 0 shares it."""
        if self.rank == -1:
            return value
        frac = machine.setting.frac
        if self.rank is None:
            return hollow(value.shape, frac)
        ring = machine.encode(value) if self.rank == 0 else None
        return machine.suite.share(ring, tuple(value.shape), frac, 0)


@dataclass(frozen=True)
class Job(ABC):
    """What is measured: `steps` times the same work, after a setup.

    Args:
        suite: dealer or crypten.
        steps: the first one warms up where there are more.
        network: emulated round trip in milliseconds and rate in Mbit/s, 0 for none.
    """

    suite: str
    steps: int
    network: tuple[float, float]

    @abstractmethod
    def prepare(self, machine: Machine, side: Side) -> Callable[[int], None]:
        """Set up, and return what does step i."""


@dataclass(frozen=True)
class Measured:
    """One job's figures; `seconds` are those of the slower party, of each step but the first.

    Attributes:
        steps: what every party counted in the last step.
        attention: the same in what the cache does alone, without projections and norms; its
            seconds are the median of all steps but the first, of each party.
        dealt_bytes, dealer_seconds: of the last step, and the median of steps.
        work: predicted arithmetic of the last step.
        plain_seconds: of the same text in plaintext, each step but the first.
    """

    seconds: tuple[float, ...]
    steps: tuple[Entry, ...]
    attention: tuple[Entry, ...]
    dealt_bytes: int
    dealer_seconds: float
    work: Work
    plain_seconds: tuple[float, ...]


class _Corrections:
    """What was dealt, in the order of use."""

    def __init__(self, items: list[torch.Tensor]) -> None:
        self.items = iter(items)

    def ring(self, shape: Sequence[int], dtype: torch.dtype = torch.int64) -> torch.Tensor:
        return next(self.items)

    def finish(self) -> None:
        if next(self.items, None) is not None:
            raise MpcacheError("corrections were left over; nothing is reported")


def walk(job: Job, machine: Any, side: Side, on_step: OnStep) -> None:
    """Read the job's text once; `on_step` is called before every step and after the last."""
    with machine.scope("setup"):
        step = job.prepare(machine, side)
    for number in range(job.steps):
        on_step(number)
        with machine.scope(f"step{number}"):
            step(number)
    on_step(job.steps)


def predicted(job: Job) -> Prediction:
    """What both parties count, from the text alone."""
    prediction = Prediction(2)
    setting = Setting(suite=job.suite)
    suite: Any
    if job.suite == "dealer":
        suite = CountingDealer(setting, prediction)
    else:
        suite = CountingCrypten(setting, prediction)
        suite.seeds()
    walk(job, SecureMachine(suite, prediction), Side(None), lambda step: None)
    return prediction


def _deal(job: Job, seeds: Sequence[bytes]) -> tuple[list[torch.Tensor], float, int]:
    """Corrections; the dealer's median seconds of a step, and the bytes of the last."""
    items: list[torch.Tensor] = []
    suite = Dealing(Setting(suite="dealer"), (Stream(seeds[0]), Stream(seeds[1])), items.append)
    times: list[float] = []
    sizes: list[int] = []

    def on_step(step: int) -> None:
        times.append(time.perf_counter())
        sizes.append(suite.dealt_bytes)

    walk(job, SecureMachine(suite, Scopes()), Side(None), on_step)
    return items, statistics.median(_steps_of(times)), sizes[-1] - sizes[-2]


def _steps_of(times: Sequence[float]) -> list[float]:
    """Seconds of each step but the first, which warms up; of that one if it is alone."""
    seconds = [later - earlier for earlier, later in itertools.pairwise(times)]
    return seconds[1:] or seconds


def _party(
    job: Job,
    rank: int,
    sock: socket.socket,
    seed: bytes,
    items: list[torch.Tensor],
    out: Connection,
) -> None:
    """One party's process: sends what `_run` returns, or why it failed."""
    torch.set_num_threads(1)
    try:
        out.send(_run(job, rank, sock, seed, items))
    except Exception as error:
        out.send(f"party {rank}: {type(error).__name__}: {error}")


def _run(
    job: Job, rank: int, sock: socket.socket, seed: bytes, items: list[torch.Tensor]
) -> tuple[list[float], list[Entry], list[Entry], str]:
    ledger = Ledger(rank, 2)
    rtt_ms, mbps = job.network
    times: list[float] = []
    with (
        torch.inference_mode(),
        Wires({1 - rank: sock}, ledger, timeout_s=600, rtt_ms=rtt_ms, mbps=mbps) as wires,
        ExitStack() as stack,
    ):
        setting = Setting(suite=job.suite)
        corrections = _Corrections(items) if rank == 1 else None
        if job.suite == "dealer":
            suite: Any = OnlineDealer(setting, wires, ledger, Stream(seed), corrections)
        else:
            from mpcache.protocols.crypten import CryptenSuite, attached

            stack.enter_context(attached(wires))
            suite = CryptenSuite(setting, wires, ledger)
        machine = SecureMachine(suite, ledger)
        walk(job, machine, Side(rank), lambda step: times.append(time.perf_counter()))
        if corrections is not None:
            corrections.finish()
    steps = [ledger.total(f"step{step}") for step in range(job.steps)]
    attention = [cached(ledger, f"step{step}") for step in range(job.steps)]
    return times, steps, attention, ledger.transcript.hexdigest()


AROUND = ("norm", "input", "rotary", "output")  # scopes of attention that are not the cache's


def cached(scopes: Scopes, step: str) -> Entry:
    """What the cache does in a step: scores, selection, softmax and values of all layers."""
    total = Entry()
    for path, entry in scopes.entries.items():
        parts = path.split("/")
        if parts[0] == step and "attention" in parts:
            inside = parts[parts.index("attention") + 1 :]
            if inside and inside[0] not in AROUND:
                total.add(entry)
    return total


def _both(job: Job, seeds: Sequence[bytes], items: list[torch.Tensor]) -> list[Any]:
    """Run both parties and return what each sends."""
    context = multiprocessing.get_context("fork")
    socks = socket.socketpair()
    ends, processes = [], []
    for rank in range(2):
        near, far = context.Pipe(duplex=False)
        ends.append(near)
        arguments = (job, rank, socks[rank], seeds[rank], items if rank else [], far)
        process = context.Process(target=_party, args=arguments, daemon=True)
        process.start()
        far.close()
        processes.append(process)
    for sock in socks:
        sock.close()
    results = []
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


def counted(entry: Entry) -> tuple[int, ...]:
    """What must be as predicted."""
    return entry.rounds, entry.messages, entry.sent_bytes, entry.received_bytes, entry.dealt_bytes


def measure(job: Job, plain: bool = True) -> Measured:
    """Deal, run both parties, hold their counts against the prediction, run the plaintext.

    Raises:
        MpcacheError: a party failed, or counts disagree: nothing is reported.
    """
    torch.set_num_threads(1)
    seeds = [secrets.token_bytes(16) for _ in range(2)]
    items, dealer_seconds, dealt = _deal(job, seeds) if job.suite == "dealer" else ([], 0.0, 0)
    results = _both(job, seeds, items)
    wanted = predicted(job)
    _gate(job, results, wanted, dealt)
    times = [max(row) for row in zip(*(times for times, _, _, _ in results), strict=True)]
    return Measured(
        seconds=tuple(_steps_of(times)),
        steps=tuple(steps[-1] for _, steps, _, _ in results),
        attention=tuple(_middle(entries) for _, _, entries, _ in results),
        dealt_bytes=dealt,
        dealer_seconds=dealer_seconds,
        work=wanted.worked(f"step{job.steps - 1}"),
        plain_seconds=tuple(_plain(job)) if plain else (),
    )


def _middle(entries: Sequence[Entry]) -> Entry:
    """The last step's counts with the median seconds of all but the first."""
    seconds = statistics.median(entry.seconds for entry in entries[1:] or entries)
    return replace(entries[-1], seconds=seconds)


def _gate(job: Job, results: Sequence[Any], wanted: Prediction, dealt: int) -> None:
    for rank, (_, steps, _, transcript) in enumerate(results):
        if transcript != wanted.ranks[rank].transcript.hexdigest():
            raise MpcacheError(f"party {rank} did not send what was predicted; nothing is reported")
        for number, entry in enumerate(steps):
            expected = wanted.ranks[rank].total(f"step{number}")
            peer = results[1 - rank][1][number]
            if counted(entry) != counted(expected) or entry.sent_bytes != peer.received_bytes:
                raise MpcacheError(
                    f"step {number} of party {rank} differs from its prediction; nothing is"
                    " reported"
                )
    used = results[1][1][-1].dealt_bytes
    if used != dealt:
        raise MpcacheError(
            f"the dealer dealt {dealt} bytes in the last step and party 1 used {used}; nothing is"
            " reported"
        )


def _plain(job: Job) -> list[float]:
    times: list[float] = []
    with torch.inference_mode():
        machine = PlainMachine(Setting())
        walk(job, machine, Side(-1), lambda step: times.append(time.perf_counter()))
    return _steps_of(times)
