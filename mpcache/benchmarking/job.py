"""What a benchmark measures: a text that parties, dealer, prediction and plaintext all read."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from typing import Any

import torch

from mpcache.protocols.counting import hollow
from mpcache.protocols.operation import Machine
from mpcache.protocols.setting import Setting

OnStep = Callable[[int], None]
PLAIN = -1
# the field is new: where it is missing there is one way only to run
PROFILES = ("lan", "wan") if "profile" in {known.name for known in fields(Setting)} else ()


class Side:
    """Who reads a job's text, and how it brings values in.

    Args:
        rank: of a party; None in readings without data, `PLAIN` in plaintext.
    """

    def __init__(self, rank: int | None) -> None:
        self.rank = rank

    @property
    def owns(self) -> bool:
        """Whether this side has the values in the clear."""
        return self.rank in (0, PLAIN)

    def share(self, machine: Any, value: torch.Tensor) -> Any:
        """`value` as party 0 shares it."""
        if self.rank == PLAIN:
            return value.to(machine.device)
        frac = machine.setting.frac
        if self.rank is None:
            return hollow(value.shape, frac)
        ring = machine.encode(value) if self.rank == 0 else None
        return machine.suite.share(ring, tuple(value.shape), frac, 0)

    def tokens(self, machine: Machine, ids: list[int], vocab: int) -> Any:
        """Token ids as the client has them."""
        known = self.rank in (machine.setting.client, PLAIN)
        return machine.tokens(ids if known else None, len(ids), vocab)


@dataclass(frozen=True)
class Job(ABC):
    """What is measured: `steps` times the same work, after a setup.

    Args:
        suite: dealer or crypten.
        steps: the first one warms up where there are more.
        network: emulated round trip in milliseconds and rate in Mbit/s, 0 for none.
        parties: 2, or 3 in suite crypten.
        profile: one of `PROFILES`, or empty for the usual one.
        device: where the plaintext is computed.
    """

    suite: str
    steps: int
    network: tuple[float, float]
    parties: int = field(default=2, kw_only=True)
    profile: str = field(default="", kw_only=True)
    device: str = field(default="cpu", kw_only=True)

    @abstractmethod
    def prepare(self, machine: Machine, side: Side) -> Callable[[int], None]:
        """Set up, and return what does step i."""

    def setting(self) -> Setting:
        """The public numbers of the measured run."""
        chosen: dict[str, Any] = {"profile": self.profile} if self.profile else {}
        return Setting(suite=self.suite, world=self.parties, **chosen)


def walk(job: Job, machine: Any, side: Side, on_step: OnStep) -> None:
    """Read the job's text once; `on_step` is called before every step and after the last."""
    with machine.scope("setup"):
        step = job.prepare(machine, side)
    for number in range(job.steps):
        on_step(number)
        with machine.scope(f"step{number}"):
            step(number)
    on_step(job.steps)
