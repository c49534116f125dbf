"""A primitive as a play: a generator that yields what it sends and is sent what the peer sent.

Plays that do not depend on each other go side by side: what they send in a round leaves in one
message.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from mpcache.protocols.wire import Words


@dataclass(frozen=True)
class Ask:
    """What a primitive sends in one round.

    Args:
        sent: by rank, how the tensors of each party's message travel; nothing where it only waits.
        own: this party's tensors, as `sent[rank]` says; none where hollow.
    """

    kind: str
    sent: tuple[Sequence[Words], Sequence[Words]]
    own: Sequence[torch.Tensor]


Asks = list[Ask]
Answers = list[list[torch.Tensor]]
Play = Generator[Asks, Answers, Any]


def side_by_side(plays: Sequence[Play]) -> Play:
    """All plays to their ends, a round of each at the same time; returns what they return."""
    if len(plays) == 1:
        return [(yield from plays[0])]
    results: list[Any] = [None] * len(plays)
    waiting: dict[int, Asks] = {}

    def go_on(number: int, got: Answers | None) -> None:
        try:
            waiting[number] = plays[number].send(got)  # type: ignore[arg-type]
        except StopIteration as end:
            waiting.pop(number, None)
            results[number] = end.value

    for number in range(len(plays)):
        go_on(number, None)
    while waiting:
        asked = dict(waiting)
        got = yield [ask for asks in asked.values() for ask in asks]
        for number, asks in asked.items():
            mine, got = got[: len(asks)], got[len(asks) :]
            go_on(number, mine)
    return results
