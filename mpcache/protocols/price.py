"""One number for what a text costs in suite `dealer`, so that the cheapest of several is taken.

Everything is weighed in bytes, on the network of the setting's profile. Prices follow from public
shapes alone, so all readings of a run choose alike.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from mpcache.protocols.counting import hollow
from mpcache.protocols.dealer_roles import CountingDealer
from mpcache.protocols.ledger import Prediction
from mpcache.protocols.operation import SecureMachine
from mpcache.protocols.secret import Kept, Secret
from mpcache.protocols.setting import Setting

Text = Callable[[SecureMachine], Any]


@dataclass(frozen=True)
class Rate:
    """What counts as much as sending a byte.

    Args:
        round_bytes: bytes that a round costs: what the network carries while it lasts.
        multiply_adds: of a product, which weigh one byte: a party does each twice, 10^10 a second.
    """

    round_bytes: int
    multiply_adds: int


# lan: 3 Gbit/s; a round takes 0.15 ms on the way and 0.35 ms of work. wan: 400 Mbit/s and 20 ms.
RATES = {"lan": Rate(3 << 16, 12), "wan": Rate(1 << 20, 96)}


def price(setting: Setting, text: Text) -> int:
    """Rounds, bytes sent by the party that sends most, bytes dealt and products of `text`."""
    prediction = Prediction(2)
    text(SecureMachine(CountingDealer(setting, prediction), prediction))
    totals = [ledger.total() for ledger in prediction.ranks]
    rate = RATES[getattr(setting, "profile", "lan")]
    return (
        totals[0].rounds * rate.round_bytes
        + max(total.sent_bytes for total in totals)
        + sum(total.dealt_bytes for total in totals)
        + prediction.worked().multiply_adds // rate.multiply_adds
    )


def shaped(shape: tuple[int, ...], frac: int, kept: bool = False, width: int = 64) -> Secret:
    """A secret of this shape without a share, masked once where `kept`: for a price."""
    if not kept:
        return hollow(shape, frac).modulo(width)
    return Kept(torch.empty(shape, dtype=torch.int64, device="meta"), None, frac, -1, width)
