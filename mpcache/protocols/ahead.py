"""Products of masks with weights, worked out before they are asked for and for many tokens at once.

Party 1's share of x W is a (W - B) + c, where a is of its own seed and W - B came in setup, and the
dealer makes c from a B. Neither depends on x. So masks a are drawn from a stream of their own, in
the order of use, and those of the next tokens meet a weight together: it is read (at the dealer,
its mask B expanded) once for all of them.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence

import torch

from mpcache.errors import MpcacheError
from mpcache.kernels.ring import ring_product
from mpcache.protocols.correlation import MaskedProduct
from mpcache.protocols.dealer import Use
from mpcache.protocols.pieces import Randomness

# Tokens that meet a weight together. More of them would save little more of its reading, and the
# first of them would wait longer.
AT_ONCE = 16


class Ahead:
    """Products in the order of use.

    Args:
        source: the stream of masks, from where it is drawn on.
        uses: all that are to come; a prompt's masks are drawn, and its products left to the caller.
        weight: what a weight's masks are multiplied by, from its number.
    """

    def __init__(
        self, source: Randomness, uses: Sequence[Use], weight: Callable[[int], torch.Tensor]
    ) -> None:
        self.source, self.weight = source, weight
        self._left = deque(uses)
        self._windows: deque[_Window] = deque()

    def work(self, seconds: float) -> None:
        """Work out what single tokens need, as far as `seconds` go."""
        end = time.monotonic() + seconds
        while self._left and time.monotonic() < end:
            window = self._open()
            for number in list(window.masks):
                if time.monotonic() < end:
                    window.work(number, self.weight)

    def take(self, use: Use) -> torch.Tensor | None:
        """The product for the next use; None for a prompt's, and where nothing was foreseen.

        Raises:
            MpcacheError: another use was foreseen.
        """
        if not self._windows:
            if not self._left:
                return None
            self._open()
        window = self._windows[0]
        foreseen = window.uses.popleft()
        if foreseen != use:
            raise MpcacheError(f"{foreseen} was worked out ahead, and {use} came")
        if not window.uses:
            self._windows.popleft()
        if not use.of_a_token:
            return None
        product = window.take(use.weight, self.weight)
        return product.view(*use.x[:-1], product.shape[-1])

    def _open(self) -> _Window:
        """Draw the masks of the next tokens, or of one use of a prompt."""
        uses, met = [self._left.popleft()], Counter[int]()
        met[uses[0].weight] += 1
        while (
            uses[0].of_a_token
            and self._left
            and self._left[0].of_a_token
            and met[self._left[0].weight] < AT_ONCE
        ):
            uses.append(self._left.popleft())
            met[uses[-1].weight] += 1
        self._windows.append(_Window(uses, self.source))
        return self._windows[-1]


class _Window:
    """Uses that are worked out together: by weight, masks and then products, a row a use."""

    def __init__(self, uses: Sequence[Use], source: Randomness) -> None:
        self.uses = deque(uses)
        self.masks: dict[int, list[torch.Tensor]] = {}
        self._products: dict[int, deque[torch.Tensor]] = {}
        for use in uses:
            a = MaskedProduct(use.x, use.x, use.width).draw(1, source)["a"]
            if use.of_a_token:
                self.masks.setdefault(use.weight, []).append(a.view(1, -1))

    def work(self, number: int, weight: Callable[[int], torch.Tensor]) -> None:
        rows = torch.cat(self.masks.pop(number))
        self._products[number] = deque(ring_product(rows, weight(number)).split(1))

    def take(self, number: int, weight: Callable[[int], torch.Tensor]) -> torch.Tensor:
        if number in self.masks:
            self.work(number, weight)
        return self._products[number].popleft()
