"""What party 1 works out before a token comes: products of its masks with the owner's weights.

Its share of x W is a (W - B) + c, where a is of its own seed and W - B came in setup. Such masks
are drawn from a stream of their own, in the order of use, so that they can be had before all
others: what is left for the token is an addition.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Iterable, Sequence

import torch

from mpcache.errors import MpcacheError
from mpcache.kernels.ring import ring_product
from mpcache.protocols.correlation import MaskedProduct
from mpcache.protocols.dealer import OwnedWeight, Use
from mpcache.protocols.pieces import Randomness


class Ahead:
    """Products in the order of use.

    Args:
        source: the stream of masks, from where party 1 goes on to draw.
        weights: all that were given, in that order.
    """

    def __init__(self, source: Randomness, weights: Sequence[OwnedWeight]) -> None:
        self.source, self.weights = source, weights
        self._made: deque[tuple[Use, torch.Tensor | None]] = deque()

    def work(self, uses: Iterable[Use], seconds: float = math.inf) -> None:
        """Work out what single tokens need; a prompt's masks are drawn and left for later, and
        so are those that `seconds` do not suffice for."""
        end = time.monotonic() + seconds
        for use in uses:
            weight = self.weights[use.weight]
            shape = (*use.x[:-1], weight.shape[-1])
            masked = MaskedProduct(use.x, shape, weight.mask, ring_product, use.width)
            a = masked.draw(1, self.source)["a"]
            now = use.of_a_token and time.monotonic() < end
            self._made.append((use, ring_product(a, weight.share) if now else None))

    def take(self, use: Use) -> torch.Tensor | None:
        """The product for the next use; None where it was left for later.

        Raises:
            MpcacheError: another use was foreseen.
        """
        if not self._made:
            return None
        foreseen, product = self._made.popleft()
        if foreseen != use:
            raise MpcacheError(f"{foreseen} was worked out ahead, and {use} came")
        return product
