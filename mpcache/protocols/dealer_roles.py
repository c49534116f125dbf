"""Who reads suite `dealer`: the parties that run it, the prediction that counts it, the dealer."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from mpcache.protocols.ahead import Ahead
from mpcache.protocols.channel import Channel
from mpcache.protocols.correlation import Correlation
from mpcache.protocols.dealer import (
    DealerSuite,
    Make,
    OwnedWeight,
    SharedMasks,
    Use,
    no_mask,
)
from mpcache.protocols.dealer_rounds import Messages, Specs
from mpcache.protocols.ledger import Ledger, Prediction
from mpcache.protocols.pieces import Pieces, Randomness
from mpcache.protocols.secret import Secret
from mpcache.protocols.setting import Setting
from mpcache.protocols.work import Kind, held_bytes

APART = 1 << 63  # number of the stream of masks of products with weights; weights have small ones
KEPT_MASKS = 2 << 30  # bytes of weight masks that the dealer keeps; others it expands anew


_NOTHING = torch.empty(0, dtype=torch.uint8)


class Corrections(Protocol):
    """Where party 1 gets its corrections from, in the order of use."""

    def ring(self, shape: Sequence[int], dtype: torch.dtype = torch.int64) -> torch.Tensor:
        """The next correction, integers [shape]."""
        ...


class OnlineDealer(DealerSuite):
    """The run: one party, its seed, and (at party 1) the dealer's corrections."""

    hollow = False

    def __init__(
        self,
        setting: Setting,
        channel: Channel,
        ledger: Ledger,
        seed: Randomness,
        corrections: Corrections | None,
    ) -> None:
        super().__init__(setting)
        self.rank, self.channel, self.ledger = channel.rank, channel, ledger
        self.seed, self.corrections = seed, corrections
        self._ahead: Ahead | None = None
        self._weights = 0

    @functools.cached_property
    def _apart(self) -> Randomness:
        """Where masks of products with weights come from, at party 1."""
        return self.seed.branch(APART)

    def foresee(self, uses: Sequence[Use], seconds: float = 0.0) -> None:
        """At party 1, before the first use: all products with weights that will come.

        Args:
            seconds: for working them out now; others are when the first of them is asked for.
        """
        if self.rank == 1:
            self._ahead = Ahead(self.seed.branch(APART), uses, lambda n: self.owned[n].share)
            self._ahead.work(seconds)

    def worked_ahead(self, use: Use) -> torch.Tensor | None:
        return self._ahead.take(use) if self._ahead is not None else None

    def draw(self, correlation: Correlation) -> Pieces:
        apart = correlation.apart and self.rank == 1
        pieces = correlation.draw(self.rank, self._apart if apart else self.seed)
        if self.corrections is not None:
            began, count = time.perf_counter(), correlation.dealt_bytes
            dealt = self.corrections.ring((count,), torch.uint8) if count else _NOTHING
            pieces |= correlation.read(dealt)
            entry = self.ledger.entry()
            entry.dealt_bytes += correlation.dealt_bytes
            entry.dealer_seconds += time.perf_counter() - began
        return pieces

    def weight_mask(self, shape: tuple[int, ...]) -> Callable[[], torch.Tensor]:
        self._weights += 1
        number = self._weights
        return lambda: self.seed.branch(number).ring(shape)

    def shared_masks(self, shape: tuple[int, ...]) -> SharedMasks:
        self._weights += 1
        mask = self.seed.branch(self._weights).ring(shape)  # kept: a product takes it every time
        return lambda: mask, no_mask

    def kept_mask(self, shape: tuple[int, ...]) -> torch.Tensor | None:
        return self.seed.ring(shape)

    def trade(self, kind: str, sent: Specs, messages: Messages) -> list[torch.Tensor]:
        peer = 1 - self.rank
        send = {peer: messages()} if sent[self.rank] else {}
        receive = {peer: list(sent[peer])} if sent[peer] else {}
        return self.channel.exchange(kind, send, receive).get(peer, [])

    def opened(self, why: str, to: str, values: int) -> None:
        self.ledger.opened(why, to, values)


class CountingDealer(DealerSuite):
    """The cost: counts messages and corrections without data."""

    hollow = True

    def __init__(self, setting: Setting, prediction: Prediction) -> None:
        super().__init__(setting)
        self.prediction = prediction

    def draw(self, correlation: Correlation) -> Pieces:
        self.prediction.ranks[1].entry().dealt_bytes += correlation.dealt_bytes
        self.prediction.called(type(correlation).__name__, held_bytes(correlation.pieces))
        return {}

    def multiplied(self, x: Secret, y: Secret) -> None:
        kind: Kind = "owned" if isinstance(y, OwnedWeight) else "shared"
        self.prediction.multiplied(kind, x.share, y.share)

    def cut_locally(self, x: Secret, bits: int) -> None:
        self.prediction.cut(x.frac, bits, x.share.numel())

    def shared_masks(self, shape: tuple[int, ...]) -> SharedMasks:
        return lambda: None, no_mask

    def kept_mask(self, shape: tuple[int, ...]) -> torch.Tensor | None:
        self.prediction.called("keep", 8 * math.prod(shape))
        return None

    def trade(self, kind: str, sent: Specs, messages: Messages) -> list[torch.Tensor]:
        frames = {(rank, 1 - rank): sent[rank] for rank in (0, 1) if sent[rank]}
        self.prediction.step(kind, frames)
        return []

    def opened(self, why: str, to: str, values: int) -> None:
        self.prediction.opened(why, to, values)


class Foreseeing(CountingDealer):
    """The cost, for the products with weights that a run will have.

    Attributes:
        uses: path of two scopes -> uses in them, in their order.
    """

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting, Prediction(setting.world))
        self.uses: dict[str, list[Use]] = {}

    def foreseen(self, use: Use) -> None:
        path = "/".join(self.prediction.path.split("/")[:2])
        self.uses.setdefault(path, []).append(use)


class Dealing(DealerSuite):
    """The dealer's walk: knows both seeds, emits party 1's corrections in the order of use.

    Args:
        emit: takes each correlation's bytes for party 1.
    """

    hollow = True

    def __init__(
        self,
        setting: Setting,
        seeds: tuple[Randomness, Randomness],
        emit: Callable[[torch.Tensor], None],
    ) -> None:
        super().__init__(setting)
        self.seeds, self.emit = seeds, emit
        self.dealt_bytes = 0
        self._apart = seeds[1].branch(APART)
        self._weights = 0
        self._room = KEPT_MASKS
        self._ahead: Ahead | None = None

    def foresee(self, uses: Sequence[Use]) -> None:
        """Before the first use: all products with weights that will come."""
        self._ahead = Ahead(self.seeds[1].branch(APART), uses, lambda n: self.owned[n].mask())

    def masked(self, weight: OwnedWeight, use: Use, a: torch.Tensor) -> torch.Tensor:
        done = self._ahead.take(use) if self._ahead is not None else None
        return super().masked(weight, use, a) if done is None else done

    def draw(self, correlation: Correlation) -> Pieces:
        zero = correlation.draw(0, self.seeds[0])
        one = correlation.draw(1, self._apart if correlation.apart else self.seeds[1])
        dealt, told = correlation.corrections(zero, one)
        if dealt.numel():
            self.emit(dealt)
        self.dealt_bytes += correlation.dealt_bytes
        return told

    def weight_mask(self, shape: tuple[int, ...]) -> Make:
        self._weights += 1
        number = self._weights
        return self._held(lambda: self.seeds[0].branch(number).ring(shape), shape)

    def shared_masks(self, shape: tuple[int, ...]) -> SharedMasks:
        self._weights += 1
        number = self._weights

        def first() -> torch.Tensor:
            return self.seeds[0].branch(number).ring(shape)

        def whole() -> torch.Tensor:
            return first() + self.seeds[1].branch(number).ring(shape)

        return self._held(whole, shape), self._held(first, shape)

    def _held(self, make: Make, shape: tuple[int, ...]) -> Make:
        """As `make`, once where there is room: what is never asked for is never made."""
        size, kept = 8 * math.prod(shape), list[torch.Tensor]()

        def get() -> torch.Tensor:
            if kept:
                return kept[0]
            made = make()
            if size <= self._room:
                self._room -= size
                kept.append(made)
            return made

        return get

    def kept_mask(self, shape: tuple[int, ...]) -> torch.Tensor | None:
        return self.seeds[0].ring(shape) + self.seeds[1].ring(shape)

    def trade(self, kind: str, sent: Specs, messages: Messages) -> list[torch.Tensor]:
        return []

    def opened(self, why: str, to: str, values: int) -> None:
        return None
