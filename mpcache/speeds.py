"""Predicted seconds: a party's own work by primitive, its messages on a wire, the dealer's work.

A party's work is what its primitives take a use and a byte, and what matrix products take at their
shapes. Both come from `mpcache cost --calibrate` and hold for the machine that measured them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mpcache import fitting
from mpcache.protocols.dealer_roles import KEPT_MASKS
from mpcache.protocols.ledger import Entry
from mpcache.protocols.work import Product, Work


@dataclass(frozen=True)
class Grid:
    """Seconds a multiply-add of ring products, by shape; between shapes by logarithms.

    Args:
        rows, inputs, outputs: shapes that were measured, ascending.
        rates: [rows, inputs, outputs] seconds a multiply-add.
        call: seconds of a product with next to nothing to do, alone or in a batch.
    """

    rows: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    rates: tuple[tuple[tuple[float, ...], ...], ...]
    call: float

    def __post_init__(self) -> None:
        for name in ("rows", "inputs", "outputs"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        rates = tuple(tuple(map(tuple, plane)) for plane in self.rates)
        object.__setattr__(self, "rates", rates)
        wanted = len(self.rows), len(self.inputs), len(self.outputs)
        if np.shape(self.rates) != wanted or not np.all(np.asarray(self.rates) > 0):
            raise ValueError(f"expected rates over 0 of shape {wanted}")

    def seconds(self, product: Product) -> float:
        axes = (
            (self.rows, product.rows),
            (self.inputs, product.inputs),
            (self.outputs, product.outputs),
        )
        rates = np.log(np.asarray(self.rates))
        for points, value in axes:  # each axis is interpolated away in turn
            low, share = _place(points, value)
            rates = rates[low] * (1 - share) + rates[min(low + 1, len(points) - 1)] * share
        rate = math.exp(float(rates))
        return self.call + product.multiply_adds * rate


def _place(points: Sequence[int], value: int) -> tuple[int, float]:
    """Which point lies below `value`, and how far it is to the next one; ends go on level."""
    if value <= points[0]:
        return 0, 0.0
    if value >= points[-1]:
        return len(points) - 1, 0.0
    low = max(place for place, point in enumerate(points) if point <= value)
    left, right = math.log(points[low]), math.log(points[low + 1])
    return low, (math.log(value) - left) / (right - left)


@dataclass(frozen=True)
class Kernels:
    """Products by how they are made: ring products of either layout, and torch's own.

    `narrow` are ring products with right sides of 16 bits, as a weight's owner has them; `expand`
    is the dealer's seconds for a byte of a weight's mask.
    """

    by_inputs: Grid
    by_outputs: Grid
    narrow: Grid
    torch: Grid
    expand: float

    def party(self, product: Product, together: float = 1) -> float:
        """Seconds of the party that takes longer.

        Args:
            together: how many tokens' masks meet a weight at once, at party 1 and the dealer.
        """
        if product.kind == "owned" and not product.by_outputs:
            return max(self.narrow.seconds(product), self.dealer(product, together))
        return self.dealer(product)

    def ahead(self, product: Product) -> float:
        """The same where party 1 has worked out before what a single token needs."""
        if product.kind == "owned" and not product.by_outputs and product.rows == 1:
            return self.narrow.seconds(product)
        return self.party(product)

    def dealer(self, product: Product, together: float = 1) -> float:
        """Seconds of the dealer, whose operands are masks of 64 bits."""
        if product.kind == "torch":
            return self.torch.seconds(product)
        grid = self.by_outputs if product.by_outputs else self.by_inputs
        if product.kind == "owned" and product.rows == 1:
            rows = round(together)
            return grid.seconds(product._replace(rows=rows)) / rows
        return grid.seconds(product)


def columns(work: Work, seconds: Callable[[Product], float]) -> dict[str, float]:
    """What coefficients are fitted to: uses and bytes of each primitive, `seconds` of products."""
    found: dict[str, float] = {}

    def add(name: str, amount: float) -> None:
        found[name] = found.get(name, 0.0) + amount

    for call, times in work.calls.items():
        add(f"{call.name} uses", times)
        if call.size:
            add(f"{call.name} bytes", times * call.size)
    for product, times in work.products.items():
        turned = " turned" if product.by_outputs else ""
        add(f"{product.kind}{turned} products", times * seconds(product))
    return found


@dataclass(frozen=True)
class Wire:
    """One exchange between two parties: seconds, and how many of them a processor is busy.

    Args:
        round_seconds, byte_seconds: of an exchange, and of each byte that a party sends in it.
        round_busy, byte_busy: the same of a party's processor.
        sent_busy, taken_busy: of each byte of large frames that go one way, at their sender and at
            a receiver that does other work beside.
    """

    round_seconds: float
    byte_seconds: float
    round_busy: float
    byte_busy: float
    sent_busy: float
    taken_busy: float

    def seconds(self, load: Load, network: tuple[float, float]) -> float:
        """Of all exchanges; an emulated network's delay holds this machine's own in it."""
        own = load.rounds * self.round_seconds + load.sent_bytes * self.byte_seconds
        return max(own, far_seconds(load, network))

    def busy(self, load: Load) -> float:
        return load.rounds * self.round_busy + load.sent_bytes * self.byte_busy


@dataclass(frozen=True)
class Load:
    """What a piece of a run asks for: counts of the party that has most, and work.

    Args:
        share: of `work`.
        together: how many tokens' products with weights are worked out at once, on average.
        first: whether the dealer meets the weights for the first time.
    """

    rounds: float
    sent_bytes: float
    dealt_bytes: float
    work: Work = field(default_factory=Work)
    share: float = 1.0
    together: float = 1
    first: bool = False

    @staticmethod
    def of(entries: Sequence[Entry], work: Work, share: float = 1.0) -> Load:
        """The largest counts of all parties; all of it times `share`."""
        return Load(
            share * max(entry.rounds for entry in entries),
            share * max(entry.sent_bytes for entry in entries),
            share * max(entry.dealt_bytes for entry in entries),
            work,
            share,
        )

    @property
    def expanded_bytes(self) -> float:
        """Of weights' masks, which the dealer expands when it meets a weight for the first time,
        and those that it did not keep whenever some tokens' products are worked out."""
        owned = self.share * sum(
            8 * times * product.operands
            for product, times in self.work.products.items()
            if product.kind == "owned"
        )
        return owned if self.first else max(0.0, owned - KEPT_MASKS) / self.together


def far_seconds(load: Load, network: tuple[float, float]) -> float:
    """What a network alone takes: half a round trip a round, and the bytes at its rate.

    Args:
        network: round trip in milliseconds, rate in Mbit/s (0 for no limit).
    """
    rtt_ms, mbps = network
    return load.rounds * rtt_ms / 2e3 + (load.sent_bytes * 8e-6 / mbps if mbps else 0.0)


@dataclass(frozen=True)
class Error:
    """How far predictions were off, relative to what was measured."""

    median: float
    worst: float
    count: int

    @staticmethod
    def over(pairs: Sequence[tuple[float, float]]) -> Error:
        """Of (measured, predicted)."""
        off = sorted(abs(predicted / measured - 1) for measured, predicted in pairs)
        return Error(off[len(off) // 2], off[-1], len(off))


@dataclass(frozen=True)
class Speeds:
    """What a machine takes for one suite.

    Attributes:
        party, dealer: column -> processor seconds a unit; the dealer's empty where there is none.
        plain, tls: exchanges over a plain socket and over TLS.
        held_out: the error on layers that were left out of the fit, in seconds from begin to end.
        held_out_busy: the same in a party's processor seconds, which other processes do not touch.
    """

    kernels: Kernels
    party: Mapping[str, float]
    dealer: Mapping[str, float]
    plain: Wire
    tls: Wire
    held_out: Error
    held_out_busy: Error

    @property
    def accuracy(self) -> str:
        """A sentence on how far predictions are off."""
        found, busy = self.held_out, self.held_out_busy
        return (
            f"on each of {found.count} measured pieces, predicted from all others, seconds were off"
            f" by {found.median:.0%} in the middle and {found.worst:.0%} at most; processor seconds"
            f" by {busy.median:.0%} and {busy.worst:.0%}"
        )

    @staticmethod
    def read(values: Mapping[str, Any]) -> Speeds:
        """From plain values, as `dataclasses.asdict` makes them."""
        kernels = dict(values["kernels"])
        expand = float(kernels.pop("expand"))
        grids = {name: Grid(**grid) for name, grid in kernels.items()}
        return Speeds(
            Kernels(**grids, expand=expand),
            {str(name): float(value) for name, value in values["party"].items()},
            {str(name): float(value) for name, value in values["dealer"].items()},
            Wire(**values["plain"]),
            Wire(**values["tls"]),
            Error(**values["held_out"]),
            Error(**values["held_out_busy"]),
        )

    def own(self, load: Load, live: bool = True) -> float:
        """A party's own work; see `seconds`."""
        kernels = self.kernels.ahead
        if live:
            kernels = functools.partial(self.kernels.party, together=load.together)
        return load.share * fitting.total(self.party, columns(load.work, kernels))

    def dealing(self, load: Load) -> float:
        """The dealer's work; it works out as many tokens' products at once as a party."""
        kernels = functools.partial(self.kernels.dealer, together=load.together)
        own = load.share * fitting.total(self.dealer, columns(load.work, kernels))
        return own + self.kernels.expand * load.expanded_bytes

    def seconds(
        self,
        load: Load,
        network: tuple[float, float] = (0.0, 0.0),
        shared: tuple[int, int] | None = None,
        live: bool = True,
        tls: bool = True,
    ) -> float:
        """A party's work and its exchanges; the dealer's work where that takes longer.

        Args:
            network: round trip in milliseconds, rate in Mbit/s (0 for no limit).
            shared: parties and cores of a host that runs all of them and the dealer, whose work
                then takes turns.
            live: whether the dealer works at the same time, and sends what it deals; else
                everything was dealt before, and party 1 has worked ahead.
            tls: whether the parties and the dealer talk over TLS.
        """
        wire = self.tls if tls else self.plain
        own, dealer = self.own(load, live), 0.0
        busy = shared[0] * (own + wire.busy(load)) if shared else 0.0
        if live:
            taken = load.dealt_bytes * wire.taken_busy
            own += taken
            dealer = self.dealing(load) + load.dealt_bytes * wire.sent_busy
            busy += taken + dealer
        turns = busy / shared[1] if shared else 0.0
        return max(own + wire.seconds(load, network), dealer, turns)
