"""Seconds, rounds and bytes of each step of a job, between processes of this host.

In suite `dealer` everything is dealt before the parties start. Nothing is reported unless the
parties' counts agree with each other and with the prediction, both ways and in every step, and
every dealt correction was used.
"""

from __future__ import annotations

import secrets
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch

from mpcache.benchmarking import processes
from mpcache.benchmarking.job import PLAIN, Job, Side, walk
from mpcache.benchmarking.processes import DealtAhead, Ran, between, warm
from mpcache.errors import MpcacheError
from mpcache.protocols.counting import CountingCrypten
from mpcache.protocols.dealer_roles import CountingDealer
from mpcache.protocols.ledger import Entry, Prediction
from mpcache.protocols.operation import PlainMachine, SecureMachine
from mpcache.protocols.setting import Setting
from mpcache.protocols.work import Work

AROUND = ("norm", "input", "rotary", "output")  # scopes of attention that are not the cache's
_TIMES = tuple(known.name for known in fields(Entry) if known.name.endswith("seconds"))
Scoped = dict[str, Entry]


@dataclass(frozen=True)
class Measured:
    """One job's figures; `seconds` are those of the slower party, of each step but the first.

    Attributes:
        scopes: of each party, path inside the step -> counts of the last step, with the median
            times of all steps but the first. The step itself is ``""``.
        work: the same paths -> predicted work of the last step.
        dealer_scopes: the same paths -> the dealer's work, times as those of `scopes`.
        dealt_bytes, dealer_seconds: of the last step, and the median of steps.
        ahead_seconds: of party 1 for a step, before the first one: products of its masks with
            weights.
        plain_seconds: of the same text in plaintext, each step but the first.
    """

    seconds: tuple[float, ...]
    scopes: tuple[Scoped, ...]
    work: dict[str, Work]
    dealt_bytes: int
    dealer_seconds: float
    dealer_scopes: Scoped
    plain_seconds: tuple[float, ...]
    ahead_seconds: float = 0.0

    @property
    def steps(self) -> tuple[Entry, ...]:
        """What every party counted in the last step."""
        return tuple(_sum(scopes.values()) for scopes in self.scopes)

    @property
    def attention(self) -> tuple[Entry, ...]:
        """The same in what the cache does alone: without projections and norms, of all layers."""
        return tuple(
            _sum(entry for path, entry in scopes.items() if cached(path)) for scopes in self.scopes
        )

    @property
    def total_work(self) -> Work:
        total = Work()
        for part in self.work.values():
            total.add(part)
        return total


def cached(path: str) -> bool:
    """Whether a scope belongs to the cache: scores, selection, softmax and values."""
    _, found, inside = path.partition("attention/")
    return bool(found) and inside.split("/")[0] not in AROUND


def _sum(entries: Any) -> Entry:
    total = Entry()
    for entry in entries:
        total.add(entry)
    return total


def predicted(job: Job) -> Prediction:
    """What all parties count, from the text alone."""
    prediction = Prediction(job.parties)
    suite: Any
    if job.suite == "dealer":
        suite = CountingDealer(job.setting(), prediction)
    else:
        suite = CountingCrypten(job.setting(), prediction)
        suite.seeds()
    walk(job, SecureMachine(suite, prediction), Side(None), lambda step: None)
    return prediction


def measure(job: Job, plain: bool = True) -> Measured:
    """Deal, run all parties, hold their counts against the prediction, run the plaintext.

    Raises:
        MpcacheError: a party failed, or counts disagree: nothing is reported.
    """
    torch.set_num_threads(1)
    seeds = [secrets.token_bytes(16) for _ in range(2)]
    dealt = processes.deal(job, seeds) if job.suite == "dealer" else DealtAhead()
    results = processes.run(job, seeds, dealt.items)
    wanted = predicted(job)
    _gate(job, results, wanted, dealt.last_bytes)
    slowest = [max(row) for row in zip(*(ran.seconds for ran in results), strict=True)]
    return Measured(
        seconds=tuple(warm(slowest)),
        scopes=tuple(_middle(ran.entries, job.steps) for ran in results),
        work=_inside(wanted.work, job.steps - 1),
        dealt_bytes=dealt.last_bytes,
        dealer_seconds=dealt.seconds,
        dealer_scopes=_middle(dealt.entries, job.steps),
        plain_seconds=tuple(_plain(job)) if plain else (),
        ahead_seconds=max(ran.ahead_seconds for ran in results),
    )


def _inside(table: Mapping[str, Any], step: int) -> dict[str, Any]:
    """The part of a table by scope that belongs to a step, by the path inside it."""
    found = {}
    for path, value in table.items():
        head, _, rest = path.partition("/")
        if head == f"step{step}":
            found[rest] = value
    return found


def _middle(entries: Mapping[str, Entry], steps: int) -> Scoped:
    """The last step's counts with the median times of all steps but the first."""
    every = [_inside(entries, step) for step in range(steps)]
    return {
        path: replace(
            entry,
            **{
                name: statistics.median(getattr(table.get(path, entry), name) for table in warmed)
                for name in _TIMES
            },
        )
        for warmed in [every[1:] or every]
        for path, entry in every[-1].items()
    }


def counted(entry: Entry) -> tuple[int, ...]:
    """What must be as predicted."""
    return entry.rounds, entry.messages, entry.sent_bytes, entry.received_bytes, entry.dealt_bytes


def _gate(job: Job, results: Sequence[Ran], wanted: Prediction, dealt: int) -> None:
    sums = [
        [_sum(_inside(ran.entries, step).values()) for step in range(job.steps)] for ran in results
    ]
    for rank, ran in enumerate(results):
        if ran.transcript != wanted.ranks[rank].transcript.hexdigest():
            raise MpcacheError(f"party {rank} did not send what was predicted; nothing is reported")
        for number, entry in enumerate(sums[rank]):
            if counted(entry) != counted(wanted.ranks[rank].total(f"step{number}")):
                raise MpcacheError(
                    f"step {number} of party {rank} differs from its prediction; nothing is"
                    " reported"
                )
    for number in range(job.steps):
        sent, received = (
            sum(getattr(rows[number], name) for rows in sums)
            for name in ("sent_bytes", "received_bytes")
        )
        if sent != received:
            raise MpcacheError(
                f"step {number}: {sent} bytes were sent and {received} received; nothing is"
                " reported"
            )
    used = sums[1][-1].dealt_bytes
    if used != dealt:
        raise MpcacheError(
            f"the dealer dealt {dealt} bytes in the last step and party 1 used {used}; nothing is"
            " reported"
        )


def _plain(job: Job) -> list[float]:
    times: list[float] = []

    def on_step(step: int) -> None:
        if job.device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter())

    with torch.inference_mode():
        walk(job, PlainMachine(Setting(), job.device), Side(PLAIN), on_step)
    return warm(between(times))
