"""One way to run an operation: on shares, for its cost, and next to exact arithmetic."""

from __future__ import annotations

import random
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar
from unittest import mock

import drawn
import torch

from mpcache.errors import MpcacheError
from mpcache.parties.local import run_parties
from mpcache.parties.transport import Wires
from mpcache.protocols import crypten
from mpcache.protocols.counting import counting_machine, hollow
from mpcache.protocols.crypten import CryptenSuite, attached
from mpcache.protocols.ledger import Ledger, Prediction, Scopes
from mpcache.protocols.operation import PlainMachine, SecureMachine
from mpcache.protocols.setting import Setting

T = TypeVar("T")
FRAC = 16
UNIT = 2.0**-FRAC
WORLDS = (2, 3)
COUNTED = ("rounds", "messages", "sent_bytes", "received_bytes", "dealt_bytes")

# Where a truncation's shares are cut, in units: two shares of opposite sign lose less than one
# together, three shares less than one each.
TRUNCATION = {2: 1.0, 3: 3.0}


class SeededMasks:
    """Stands for the module `secrets`: each party draws the same numbers in every test run.

    Local truncation fails with odds |x| / 2^63 an element; so no test fails once in a while.
    """

    def __init__(self) -> None:
        self._drawn: Counter[str] = Counter()

    def randbits(self, bits: int) -> int:
        name = threading.current_thread().name
        self._drawn[name] += 1
        return random.Random(f"{drawn.SEED}, {name}, {self._drawn[name]}").getrandbits(bits)


class Tape:
    """Corrections as the dealer emits them, read once and in order."""

    def __init__(self) -> None:
        self.items: list[torch.Tensor] = []
        self.at = 0

    def ring(self, shape: Sequence[int], dtype: torch.dtype = torch.int64) -> torch.Tensor:
        if self.at == len(self.items):
            raise MpcacheError("nothing is left")
        item = self.items[self.at]
        self.at += 1
        assert tuple(item.shape) == tuple(shape) and item.dtype == dtype
        return item


def on_parties(world: int, program: Callable[[SecureMachine, Wires], T]) -> list[T]:
    """Run `program` at each of `world` parties attached to CrypTen; results by rank."""
    setting = Setting(world=world)

    def run(wires: Wires) -> T:
        with attached(wires):
            suite = CryptenSuite(setting, wires, wires.ledger)
            return program(SecureMachine(suite, wires.ledger), wires)

    with mock.patch.object(crypten, "secrets", SeededMasks()):
        return run_parties(world, run)


def grid(values: torch.Tensor, frac: int = FRAC) -> torch.Tensor:
    """The nearest values that `frac` fractional bits can hold, float64."""
    return torch.round(values.double() * 2.0**frac) / 2.0**frac


@dataclass
class Outcome:
    """Opened results, and every party's ledger beside its prediction."""

    results: list[torch.Tensor]
    fracs: list[int]
    ledgers: list[Ledger]
    predicted: list[Ledger]

    def check_cost(self) -> None:
        """Measured rounds, bytes, messages and transcript equal the predicted ones."""
        for ledger, prediction in zip(self.ledgers, self.predicted, strict=True):
            assert counts(ledger) == counts(prediction)
            assert ledger.transcript.hexdigest() == prediction.transcript.hexdigest()


def counts(ledger: Scopes) -> dict[str, dict[str, float]]:
    """What a ledger counted, without times, in the scopes in which anything was sent."""
    return {
        path: {name: entry[name] for name in COUNTED}
        for path, entry in ledger.by_scope().items()
        if entry["rounds"]
    }


def perform(
    world: int,
    operation: Callable[..., Any],
    inputs: Sequence[torch.Tensor],
    fracs: Sequence[int] | None = None,
    **options: Any,
) -> Outcome:
    """Share `inputs` (rounded to `fracs` bits), run `operation` on them, and open what it returns.

    The same text is read for its cost; party 0 holds the inputs.
    """
    fracs = fracs or [FRAC] * len(inputs)

    def program(machine: SecureMachine, wires: Wires) -> Any:
        shares = [
            machine.suite.share(
                machine.encode(x, frac) if wires.rank == 0 else None, tuple(x.shape), frac, 0
            )
            for x, frac in zip(inputs, fracs, strict=True)
        ]
        with machine.scope("op"):
            values = listed(operation(machine, *shares, **options))
        opened = [machine.open(value, "client", "test") for value in values]
        return opened, [value.frac for value in values], wires.ledger

    done = on_parties(world, program)
    counting = counting_machine(Setting(world=world))
    counting.suite.seeds()  # type: ignore[attr-defined]
    with counting.scope("op"):
        hollows = [hollow(x.shape, frac) for x, frac in zip(inputs, fracs, strict=True)]
        values = listed(operation(counting, *hollows, **options))
    for value in values:
        counting.open(value, "client", "test")
    assert isinstance(counting.ledger, Prediction)
    client = Setting(world=world).client
    results, fracs_out, _ = done[client]
    assert [value.frac for value in values] == fracs_out
    for value, result in zip(values, results, strict=True):
        assert tuple(value.shape) == tuple(result.shape)
    return Outcome(results, fracs_out, [ledger for _, _, ledger in done], counting.ledger.ranks)


def listed(value: Any) -> list[Any]:
    return list(value) if isinstance(value, tuple | list) else [value]


def plain() -> PlainMachine:
    return PlainMachine(Setting())
