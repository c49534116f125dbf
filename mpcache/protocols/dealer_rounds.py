"""How primitives of suite `dealer` take their turns: rounds, and what both parties learn in them.

Primitives are plays (`plays`): those that do not depend on each other can be played together.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Generator, Sequence
from typing import Any, ClassVar

import torch

from mpcache.protocols.channel import Spec
from mpcache.protocols.correlation import Correlation
from mpcache.protocols.operation import Suite
from mpcache.protocols.pieces import Pieces
from mpcache.protocols.plays import Answers, Ask, Asks, Play, side_by_side
from mpcache.protocols.secret import Secret
from mpcache.protocols.setting import Setting
from mpcache.protocols.wire import Words

Specs = tuple[Sequence[Spec], Sequence[Spec]]
Messages = Callable[[], list[torch.Tensor]]
Opening = Generator[Asks, Answers, list[torch.Tensor]]


class Rounds(Suite):
    """Draws correlations, plays plays, opens what is masked.

    Where `hollow`, secrets have no data and only shapes are followed.
    """

    hollow: ClassVar[bool]
    rank: int

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    @abstractmethod
    def draw(self, correlation: Correlation) -> Pieces:
        """This party's pieces of the next correlation; where hollow only what the dealer tells."""

    @abstractmethod
    def trade(self, kind: str, sent: Specs, messages: Messages) -> list[torch.Tensor]:
        """Send `messages` to the peer and return its own; nothing where hollow.

        Args:
            sent: what each party sends, by rank; who sends nothing only waits.
        """

    def swap(self, kind: str, specs: Sequence[Spec], messages: Messages) -> list[torch.Tensor]:
        """As `trade`, where both send alike."""
        return self.trade(kind, (specs, specs), messages)

    def pass_on(
        self, kind: str, source: int, specs: Sequence[Spec], messages: Messages
    ) -> list[torch.Tensor]:
        """Send `messages` from `source` to its peer, who gets them; nothing elsewhere."""
        nothing: Sequence[Spec] = []
        return self.trade(kind, (specs, nothing) if source == 0 else (nothing, specs), messages)

    # --- rounds --------------------------------------------------------------------------------

    def together(self, *plays: Play) -> list[Any]:
        """Play primitives side by side, a round of all of them in one message, to their ends."""
        return list(self.play(side_by_side(plays)))

    def play(self, play: Play) -> Any:
        """Play one primitive to its end."""
        got: Answers | None = None
        while True:
            try:
                asks = play.send(got)  # type: ignore[arg-type]
            except StopIteration as end:
                return end.value
            got = self._ask(asks)

    def _ask(self, asks: Asks) -> Answers:
        """One message for all, and what each gets."""
        kind = "+".join(dict.fromkeys(ask.kind for ask in asks))
        zero, one = ([words.spec for ask in asks for words in ask.sent[r]] for r in (0, 1))
        if self.hollow:
            self.trade(kind, (zero, one), list)
            return [[] for _ in asks]

        def messages() -> list[torch.Tensor]:
            return [
                words.pack(tensor)
                for ask in asks
                for words, tensor in zip(ask.sent[self.rank], ask.own, strict=True)
            ]

        got = iter(self.trade(kind, (zero, one), messages))
        return [[words.unpack(next(got)) for words in ask.sent[1 - self.rank]] for ask in asks]

    def opening(
        self, kind: str, hidden: Sequence[torch.Tensor], words: Sequence[Words]
    ) -> Generator[Asks, Answers, list[torch.Tensor]]:
        """Both parties learn the sums of what they hold, modulo 2^bits of the words."""
        (got,) = yield [Ask(kind, (words, words), hidden)]
        if self.hollow:
            return []
        sums = []
        for mine, theirs, word in zip(hidden, got, words, strict=True):
            total = mine + theirs
            sums.append(total & ((1 << word.bits) - 1) if word.bits < 64 else total)
        return sums

    def revealing(
        self, kind: str, hidden: Sequence[torch.Tensor], words: Sequence[Words]
    ) -> Generator[Asks, Answers, list[torch.Tensor]]:
        """Both parties learn the XOR of what they hold, bytes below 2^bits of the words."""
        (got,) = yield [Ask(kind, (words, words), hidden)]
        return [mine ^ theirs for mine, theirs in zip(hidden, got, strict=False)]

    def _made(self, shape: Sequence[int], frac: int, width: int = 64) -> Secret:
        share = torch.empty(tuple(shape), dtype=torch.int64, device="meta")
        return Secret(share, frac, width)
