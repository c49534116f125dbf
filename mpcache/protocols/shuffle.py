"""Rows that stay move together by a secret shuffle: no product, and bytes that grow with n alone.

Each party turns the rows over by an order that it alone knows, so that where a row has come to is
uniformly random to either. Then who stays, and at which place, may be known there.
Secret-shared shuffles: Chase, Ghosh and Poburinnaya, ASIACRYPT 2020; here the dealer has the
correlation ready, and each party goes first for half of the columns.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch

from mpcache.kernels.prg import storage
from mpcache.protocols.channel import Spec
from mpcache.protocols.correlation import Correlation
from mpcache.protocols.counting import hollow
from mpcache.protocols.dealer import DealerSuite
from mpcache.protocols.pieces import Form, Piece, Pieces, Shape
from mpcache.protocols.secret import Kept, Secret, cat

Masks = tuple[torch.Tensor, torch.Tensor]


class Shuffle(Correlation):
    """Two orders of n rows and their places, one for each party, and what becomes of the masks.

    * `first` and `second` [.., n]: at the party that goes first and at the other; the order is
      that in which they are sorted. It is uniform but for a distance of n^2 / 2^65.
    * `hidden` at the first party, and shares `moved` of second(first(B) - hidden), for the rows;
      and the same for their places.

    Args:
        shape: of the rows, [.., n, columns] or [.., heads, n, columns] where heads go together.
        lead: dimensions before n that have orders of their own.
        leader: the rank of the party that goes first.
        bits: places count modulo 2^bits.
        masks: B of the rows and of the places, known to the dealer alone.
    """

    def __init__(
        self, shape: Shape, lead: int, leader: int, bits: int, masks: Masks | None
    ) -> None:
        self.masks = masks
        orders = (*shape[:lead], shape[-2])
        self.form = Form(
            (
                Piece("first", orders, holder=leader),
                Piece("second", orders, holder=1 - leader),
                Piece("hidden", shape, holder=leader),
                Piece("moved", shape, corrected=True),
                Piece("hidden places", orders, bits, leader),
                Piece("moved places", orders, bits, corrected=True),
            )
        )

    def complete(self, whole: Pieces) -> Pieces:
        assert self.masks is not None
        rows, places = self.masks
        first, second = whole["first"].argsort(-1), whole["second"].argsort(-1)
        turned = reordered(rows, first) - whole["hidden"]
        placed = places.gather(-1, first) - whole["hidden places"]
        return {"moved": reordered(turned, second), "moved places": placed.gather(-1, second)}


def reordered(rows: torch.Tensor, order: torch.Tensor) -> torch.Tensor:
    """`rows` [.., n, columns] at positions `order` [.., m]; rows may have more dimensions."""
    if order.ndim == 1:
        return rows.index_select(-2, order)
    count, shape = rows.shape[-2], rows.shape[:-2]
    between = [1] * (rows.ndim - 1 - order.ndim)
    order = order.reshape(*order.shape[:-1], *between, -1).expand(*shape, -1).flatten(0, -2)
    index = order + count * torch.arange(len(order)).unsqueeze(-1)
    picked = rows.reshape(-1, rows.shape[-1]).index_select(0, index.flatten())
    return picked.reshape(*shape, order.shape[-1], rows.shape[-1])


def compacted(suite: DealerSuite, place: Secret, x: Secret, k: int, bits: int) -> Secret:
    """The rows [.., k, columns] of x [.., n, columns] that have a place, in its order. Exact.

    1. What is not masked yet is masked once: e = rows - B is known to both, and so for places.
    2. The first party sends first(e) + hidden, and its share of the places' moved mask.
    3. The second turns them over, and has the places in the joined order. It sends those.
    4. Both take the rows with places 1 to k, in that order: the second has what it turned over,
       and both have shares of the moved mask.

    What both learn is the places in the joined order: of all arrangements of 1, ..., k and n - k
    zeros each is as likely as any other, whoever stays.

    Args:
        place: [.., n], 1 to k where a row stays and 0 elsewhere, modulo 2^bits; x may have
            dimensions between those before n and n, whose rows go together.
    """
    hidden, rows = _masked(suite, place, x)
    columns = rows.shape[-1]
    edges = [0, -(-columns // 2), columns] if columns > 1 else [0, columns]
    halves = [
        _Half(suite, leader, hidden, rows[..., first:last], bits)
        for leader, (first, last) in enumerate(itertools.pairwise(edges))
    ]
    led = [half for half in halves if not suite.hollow and half.leader == suite.rank]
    followed = [half for half in halves if not suite.hollow and half.leader != suite.rank]

    sent = {half.leader: half.turned_specs for half in halves}
    got = _exchange(suite, "turned", sent, lambda: led[0].turned())
    for half in followed:
        half.turn(*got)
    sent = {1 - half.leader: half.place_specs for half in halves}
    got = _exchange(suite, "places", sent, lambda: [followed[0].places])
    for half in led:
        half.places = got[0]
    return cat([half.chosen(k, x.frac) for half in halves], -1)


def _masked(suite: DealerSuite, place: Secret, x: Secret) -> tuple[Secret, Secret]:
    """Both masked once, in one message."""
    if isinstance(x, Kept):
        return suite.keep(place), x
    count = place.share.numel()
    both = suite.keep(cat([Secret(place.share, x.frac).flatten(), x.flatten()], 0))
    return both[:count].reshape(*place.shape), both[count:].reshape(*x.shape)


def _exchange(
    suite: DealerSuite,
    kind: str,
    sent: dict[int, list[Spec]],
    messages: Callable[[], list[torch.Tensor]],
) -> list[torch.Tensor]:
    """What the peer sends, where it does; `sent` has each sender's messages, by rank."""
    return suite.trade(kind, (sent.get(0, []), sent.get(1, [])), messages)


class _Half:
    """Columns of rows for which `leader` goes first."""

    def __init__(
        self, suite: DealerSuite, leader: int, place: Secret, x: Secret, bits: int
    ) -> None:
        assert isinstance(place, Kept) and isinstance(x, Kept)
        self.suite, self.leader, self.place, self.x = suite, leader, place, x
        self.shape = tuple(x.shape)
        masks = None
        if suite.hollow and place.mask is not None and x.mask is not None:  # the dealer's
            masks = x.mask, place.mask
        self.pieces = suite.draw(Shuffle(self.shape, place.ndim - 1, leader, bits, masks))
        self.narrow = storage(bits)
        spec = Spec(tuple(place.shape), self.narrow)
        self.place_specs, self.turned_specs = [spec], [Spec(self.shape), spec, spec]
        self.places = self.rows = torch.zeros(0, dtype=torch.int64)

    def turned(self) -> list[torch.Tensor]:
        """What the first party sends."""
        order, pieces = self.pieces["first"].argsort(-1), self.pieces
        rows = reordered(self.x.opened, order).add_(pieces.pop("hidden"))
        places = self.place.opened.gather(-1, order) + pieces["hidden places"]
        return [rows, places.to(self.narrow), pieces["moved places"].to(self.narrow)]

    def turn(self, rows: torch.Tensor, places: torch.Tensor, shared: torch.Tensor) -> None:
        """What the second party makes of it."""
        order = self.pieces["second"].argsort(-1)
        self.rows = reordered(rows, order)
        self.places = places.gather(-1, order) + shared + self.pieces["moved places"]
        self.places = self.places.to(self.narrow)

    def chosen(self, k: int, frac: int) -> Secret:
        """This party's share of the rows that stay, in the order of their places."""
        if self.suite.hollow:
            return hollow((*self.shape[:-2], k, self.shape[-1]), frac).modulo(self.x.width)
        order = self.places.argsort(-1)[..., self.shape[-2] - k :]
        chosen = reordered(self.pieces["moved"], order)
        if self.leader != self.suite.rank:
            chosen += reordered(self.rows, order)
        return Secret(chosen, frac, self.x.width)
