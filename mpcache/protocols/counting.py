"""The cost reading: suites that do nothing but declare what each primitive sends.

A counting suite is given tensors without data (device meta), follows every shape, and tells the
prediction each message that the running suite would send. Tests require that labels, shapes, bytes
and rounds equal those of the running suite.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from mpcache.protocols.channel import Spec
from mpcache.protocols.ledger import Prediction
from mpcache.protocols.operation import Cost, Operation, SecureMachine, Suite
from mpcache.protocols.secret import Secret
from mpcache.protocols.setting import Setting

Shape = tuple[int, ...]


def hollow(shape: Sequence[int], frac: int) -> Secret:
    """A secret of this shape without a share, for the cost reading."""
    return Secret(torch.empty(tuple(shape), dtype=torch.int64, device="meta"), frac)


class CountingCrypten(Suite):
    """What CrypTen 0.4.1 sends, from its source.

    * Beaver products open both masked operands in one all-reduce, `square` one.
    * A comparison shares the arithmetic shares as bits (nothing is sent), adds them with a
      set-propagate-kill tree of one AND and then six of twice its width, for each party after the
      first, and turns the sign bit back with one opening.
    * Truncation is local for two parties; for more, party 0 scatters a mask and gathers the sum.
    """

    name: ClassVar[str] = "crypten"

    def __init__(self, setting: Setting, prediction: Prediction) -> None:
        self.setting = setting
        self.prediction = prediction
        self.world = setting.world

    def _all_reduce(self, *shapes: Sequence[int]) -> None:
        specs = [Spec(tuple(shape)) for shape in shapes]
        ranks = range(self.world)
        self.prediction.step("all_reduce", {(a, b): specs for a in ranks for b in ranks if a != b})

    def _called(self, name: str, *shapes: Sequence[int]) -> None:
        self.prediction.called(name, sum(8 * math.prod(shape) for shape in shapes))

    def seeds(self) -> None:
        """The one exchange that attaching CrypTen takes."""
        ring = {(rank, (rank + 1) % self.world): [Spec(())] for rank in range(self.world)}
        self.prediction.step("seeds", ring)

    def share(
        self, value: torch.Tensor | None, shape: tuple[int, ...], frac: int, source: int
    ) -> Secret:
        return hollow(shape, frac)

    def multiply(self, x: Secret, y: Secret) -> Secret:
        self._all_reduce(x.shape, y.shape)
        product = Secret(x.share * y.share, x.frac + y.frac)
        self._called("multiply", x.shape, y.shape, product.shape)
        return product

    def square(self, x: Secret) -> Secret:
        self._all_reduce(x.shape)
        self._called("square", x.shape)
        return Secret(x.share, 2 * x.frac)

    def matmul(self, x: Secret, y: Secret, width: int = 64) -> Secret:
        self._all_reduce(x.shape, y.shape)
        self.prediction.multiplied("torch", x.share, y.share)
        shape = torch.broadcast_shapes(x.shape[:-2], y.shape[:-2])
        product = hollow((*shape, x.shape[-2], y.shape[-1]), x.frac + y.frac)
        self._called("matmul", x.shape, y.shape, product.shape)
        return product

    def truncate(self, x: Secret, bits: int) -> Secret:
        self._called("truncate", x.shape)
        if self.world > 2:
            spec = [Spec(tuple(x.shape))]
            others = range(1, self.world)
            self.prediction.step("scatter", {(0, rank): spec for rank in others})
            self.prediction.step("gather", {(rank, 0): spec for rank in others})
        return Secret(x.share, x.frac - bits)

    def negative(self, x: Secret, magnitude: int = 15, keep: int = 16) -> Secret:
        self._called("negative", x.shape)
        one, two = (1, *x.shape), (2, 1, *x.shape)
        for _ in range(self.world - 1):
            self._all_reduce(one, one)
            for _ in range(6):
                self._all_reduce(two, two)
        self._all_reduce(x.shape)
        return Secret(x.share, 0)

    def shift(self, x: Secret, public: torch.Tensor) -> Secret:
        shape = torch.broadcast_shapes(x.shape, public.shape)
        return Secret(x.share.expand(shape), x.frac)

    def open(self, x: Secret, to: int | None, why: str) -> torch.Tensor | None:
        target = "everyone" if to is None else "client"
        self.prediction.opened(why, target, x.share.numel())
        if to is None:
            self._all_reduce(x.shape)
        else:
            spec = [Spec(tuple(x.shape))]
            sources = [rank for rank in range(self.world) if rank != to]
            self.prediction.step("reduce", {(rank, to): spec for rank in sources})
        return None


def counting_machine(setting: Setting) -> SecureMachine:
    """A machine that reads a program for its cost; its `ledger` is the Prediction."""
    prediction = Prediction(setting.world)
    return SecureMachine(CountingCrypten(setting, prediction), prediction)


def cost_of(operation: Operation, setting: Setting, *args: Any, **options: Any) -> Cost:
    """What `operation` costs on secrets of the given shapes.

    Args:
        args: a `Shape` (tuple of sizes) stands for a secret with `setting.frac` bits; a Secret
            (for example `hollow(shape, frac)`) and everything else is passed on.
    """
    machine = counting_machine(setting)
    values = [hollow(a, setting.frac) if isinstance(a, tuple) else a for a in args]
    operation(machine, *values, **options)
    assert isinstance(machine.ledger, Prediction)
    totals = [ledger.total() for ledger in machine.ledger.ranks]
    return Cost(
        totals[0].rounds,
        tuple(entry.sent_bytes for entry in totals),
        tuple(entry.dealt_bytes for entry in totals),
    )
