"""What a party sent, received and opened, by scope; and the same counts as a prediction.

A *round* is a step in which a party must wait for a peer's message. Every party counts each step
that it takes part in, so the counts of all parties agree. Bytes are frames on the wire before TLS.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field

import torch

from mpcache.protocols.channel import Spec, frame_bytes
from mpcache.protocols.work import Call, Cut, Kind, Product, Work, worked


@dataclass
class Entry:
    """Totals of one scope. `seconds` is wall time in the scope itself, children not included.

    Three parts of it are told apart; the rest is the party's own work. `wait_seconds`: in an
    exchange, until the last peer began to send. `transfer_seconds`: from then on until every frame
    was there, emulated delay included. `dealer_seconds`: taking corrections, which is waiting for
    the dealer and copying. The first two need one clock, so one host: across hosts both are in
    `wait_seconds`.

    `busy_seconds` is processor time in the scope, of all threads, and `wire_busy_seconds` the part
    of it that was spent in exchanges: what other processes take does not lengthen them.
    """

    rounds: int = 0
    messages: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0
    dealt_bytes: int = 0
    seconds: float = 0.0
    wait_seconds: float = 0.0
    transfer_seconds: float = 0.0
    dealer_seconds: float = 0.0
    busy_seconds: float = 0.0
    wire_busy_seconds: float = 0.0

    def add(self, other: Entry) -> None:
        for name, value in asdict(other).items():
            setattr(self, name, getattr(self, name) + value)


@dataclass(frozen=True)
class Opening:
    """One reason for which values left the shares: to whom, and how many values in all."""

    why: str
    to: str
    values: int


_LAYER = re.compile(r"layer(\d+)")


def layer_of(name: str) -> int | None:
    """The number of the decoder layer that a scope's own name stands for; None of others."""
    found = _LAYER.fullmatch(name)
    return int(found[1]) if found else None


class Scopes:
    """A path of scopes such as ``decode/layer3/attention/softmax``, and time spent in each.

    `on_enter`, where set, is called with the path of every scope that is entered: for progress.
    """

    def __init__(self) -> None:
        self.on_enter: Callable[[str], None] | None = None
        self.entries: dict[str, Entry] = {}
        self._paths: list[str] = []  # that of each open scope
        self._since, self._busy = time.perf_counter(), time.process_time()

    @property
    def path(self) -> str:
        return self._paths[-1] if self._paths else "start"

    def entry(self) -> Entry:
        found = self.entries.get(self.path)
        if found is None:
            found = self.entries[self.path] = Entry()
        return found

    def _enter(self, name: str) -> None:
        self._paths.append(f"{self._paths[-1]}/{name}" if self._paths else name)

    def _leave(self) -> None:
        self._paths.pop()

    def _settle(self) -> None:
        now, busy = time.perf_counter(), time.process_time()
        entry = self.entry()
        entry.seconds += now - self._since
        entry.busy_seconds += busy - self._busy
        self._since, self._busy = now, busy

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """Everything inside is counted under the current path and `name`."""
        self._settle()
        self._enter(name)
        if self.on_enter is not None:
            self.on_enter(self.path)
        try:
            yield
        finally:
            self._settle()
            self._leave()

    def total(self, prefix: str = "") -> Entry:
        """Sum over the scope `prefix` and everything inside it; all scopes for ``""``."""
        self._settle()
        total = Entry()
        for path, entry in self.entries.items():
            if not prefix or path == prefix or path.startswith(prefix + "/"):
                total.add(entry)
        return total

    def by_scope(self) -> dict[str, dict[str, float]]:
        """Every scope with its totals, as plain values for a report."""
        self._settle()
        return {path: asdict(entry) for path, entry in sorted(self.entries.items())}


class Transcript:
    """A running digest over labels, directions, dtypes and shapes: all that lengths give away."""

    def __init__(self) -> None:
        self._digest = hashlib.sha256()

    def add(
        self, label: str, sent: Mapping[int, Sequence[Spec]], got: Mapping[int, Sequence[Spec]]
    ) -> None:
        parts = [label]
        for arrow, frames in ((">", sent), ("<", got)):
            for peer in sorted(frames):
                parts.append(f"{arrow}{peer}:{','.join([spec.text for spec in frames[peer]])}")
        self._digest.update(" ".join(parts).encode() + b"\n")

    def hexdigest(self) -> str:
        return self._digest.hexdigest()


@dataclass
class Ledger(Scopes):
    """The ledger of one party in one run. `world` parties take part; this one is `rank`."""

    rank: int
    world: int
    transcript: Transcript = field(default_factory=Transcript)

    def __post_init__(self) -> None:
        super().__init__()
        self._openings: dict[tuple[str, str], int] = {}

    def record(
        self,
        label: str,
        sent: Mapping[int, Sequence[Spec]],
        received: Mapping[int, Sequence[Spec]],
        wait_seconds: float = 0.0,
        transfer_seconds: float = 0.0,
        busy_seconds: float = 0.0,
    ) -> None:
        """Count one step, made of one frame to each peer in `sent` and from each in `received`."""
        self.transcript.add(label, sent, received)
        entry = self.entry()
        entry.rounds += 1
        entry.messages += len(sent)
        entry.sent_bytes += sum(frame_bytes(label, specs) for specs in sent.values())
        entry.received_bytes += sum(frame_bytes(label, specs) for specs in received.values())
        entry.wait_seconds += wait_seconds
        entry.transfer_seconds += transfer_seconds
        entry.wire_busy_seconds += busy_seconds

    def opened(self, why: str, to: str, values: int) -> None:
        """Note that `values` elements left the shares, for `to`, because of `why`."""
        self._openings[why, to] = self._openings.get((why, to), 0) + values

    @property
    def openings(self) -> list[Opening]:
        return [Opening(why, to, n) for (why, to), n in sorted(self._openings.items())]


Sends = Mapping[tuple[int, int], Sequence[Spec]]


class Prediction(Scopes):
    """The ledgers of all parties at once, counted without a party: `ranks[r]` predicts party r.

    `work` has by scope what a processor is asked for, about the same at every party.
    """

    def __init__(self, world: int) -> None:
        super().__init__()
        self.world = world
        self.ranks = [Ledger(rank, world) for rank in range(world)]
        self.work: dict[str, Work] = {}

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        every: list[Scopes] = [self, *self.ranks]
        for scopes in every:
            scopes._enter(name)
        self.called("scope", 0)
        if self.on_enter is not None:
            self.on_enter(self.path)
        try:
            yield
        finally:
            for scopes in every:
                scopes._leave()

    def step(self, kind: str, sends: Sends) -> None:
        """Count one step in which `sends[source, target]` is each frame's content."""
        label = f"{self.path}:{kind}"
        for ledger in self.ranks:
            sent = {to: specs for (source, to), specs in sends.items() if source == ledger.rank}
            got = {source: specs for (source, to), specs in sends.items() if to == ledger.rank}
            ledger.record(label, sent, got)

    def multiplied(self, kind: Kind, left: torch.Tensor, right: torch.Tensor) -> None:
        """Note a product of matrices [.., m, k] and [.., k, n]."""
        self._work().products[Product.of(kind, left, right)] += 1

    def called(self, name: str, size: int) -> None:
        """Note a use of the primitive `name`, which handles `size` bytes."""
        self._work().calls[Call(name, size)] += 1

    def cut(self, frac: int, bits: int, values: int) -> None:
        """Note that `values` with `frac` fractional bits were truncated locally by `bits`."""
        self._work().cuts[Cut(frac, bits)] += values

    def _work(self) -> Work:
        return self.work.setdefault(self.path, Work())

    def worked(self, prefix: str = "") -> Work:
        """Work in the scope `prefix` and everything inside it; of all scopes for ``""``."""
        return worked(self.work, prefix)

    def opened(self, why: str, to: str, values: int) -> None:
        for ledger in self.ranks:
            ledger.opened(why, to, values)
