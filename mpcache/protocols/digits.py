"""Digit tables: what a secret r and a public y = x + r say of x, read digit by digit.

Which digits, questions and nodes there are is a plan's matter (`plans.py`); here is what is dealt
for one, and the results that its last table gives.
"""

from __future__ import annotations

import functools
import math
from abc import abstractmethod
from collections.abc import Sequence

import torch

from mpcache.kernels.pairs import differences
from mpcache.protocols.correlation import Correlation, made_once
from mpcache.protocols.pieces import Form, Piece, Pieces, Shape
from mpcache.protocols.plans import Plan, borrow, equality, window


class Digits(Correlation):
    """r, words for a plan's questions and nodes, and a last table of ring elements.

    Args:
        bits: r is uniform on so many, as y is opened; the plan reads the lowest of them.
        widths: of the results of an element, in bits: result i counts modulo 2^widths[i].
    """

    def __init__(self, shape: Shape, bits: int, plan: Plan, widths: Sequence[int] = (64,)) -> None:
        self.shape, self.bits, self.plan, self.results = shape, bits, plan, len(widths)
        pieces = [Piece("r", shape, bits)]
        for digit, kind in plan.words:
            size = 1 << plan.widths[digit]
            pieces.append(Piece(f"{kind}{digit}", shape, size, None, True, True, narrow=True))
        for level, nodes in enumerate(plan.levels):
            for place, node in enumerate(nodes):
                at, inputs = f"{level}.{place}", len(node.inputs)
                pieces.append(Piece(f"mask{at}", shape, inputs, exclusive=True, narrow=True))
                for output in range(len(node.outputs)):
                    name = f"node{at}.{output}"
                    pieces.append(Piece(name, shape, 1 << inputs, None, True, True, narrow=True))
        inputs = len(plan.last)
        pieces.append(Piece("mask", shape, inputs, exclusive=True, narrow=True))
        for result, width in enumerate(widths):
            table = (1 << inputs, *shape)
            pieces.append(Piece(f"last{result}", table, width, corrected=True, narrow=True))
        self.form = Form(pieces)

    @abstractmethod
    def payload(self, r: torch.Tensor, bits: Sequence[int]) -> list[torch.Tensor]:
        """The results for each r, where the last bits are these."""

    def complete(self, whole: Pieces) -> Pieces:
        plan, r, wanted = self.plan, whole["r"], {}
        digits, at = [], 0
        for width in plan.widths:
            digits.append((r >> at) & ((1 << width) - 1))
            at += width
        for digit, kind in plan.words:
            width = plan.widths[digit]
            wanted[f"{kind}{digit}"] = _answers(kind, width)[digits[digit]]
        for level, nodes in enumerate(plan.levels):
            for place, node in enumerate(nodes):
                mask = whole[f"mask{level}.{place}"].to(torch.int64)
                for output, table in enumerate(node.outputs):
                    turned = _turned(len(node.inputs), table)
                    wanted[f"node{level}.{place}.{output}"] = turned[mask]
        tables = self._last(r, whole["mask"].to(torch.int64))
        return wanted | {f"last{result}": tables[result] for result in range(self.results)}

    def _last(self, r: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
        """For every masked input the results [inputs, ..]."""
        inputs = len(self.plan.last)
        shown: dict[int, list[torch.Tensor]] = {}
        rows = []
        for value in range(1 << inputs):
            bits = [value >> i & 1 for i in range(inputs)]
            key = self.case(bits)
            if key not in shown:
                shown[key] = self.payload(r, bits)
            rows.append(key)
        keys = sorted(shown)
        cases = torch.tensor([keys.index(key) for key in rows])
        index = cases[torch.arange(1 << inputs).reshape(-1, *([1] * r.ndim)) ^ mask]
        raw = [torch.stack([shown[key][result] for key in keys]) for result in range(self.results)]
        return [table.gather(0, index) for table in raw]

    def case(self, bits: Sequence[int]) -> int:
        """A number for what the last bits mean: equal numbers have equal payloads."""
        return sum(bit << i for i, bit in enumerate(bits))


@functools.cache
def _answers(kind: str, width: int) -> torch.Tensor:
    """For every digit of r the word that answers: [2^width] int64."""
    size = 1 << width
    words = []
    for own in range(size):
        word = 0
        for v in range(size):
            less = v < own
            half = ((v - own - (kind == "half1")) % size) >= size // 2
            word |= (less if kind == "less" else half) << v
        words.append(word - (1 << 64) if word >> 63 else word)
    return torch.tensor(words, dtype=torch.int64)


@functools.cache
def _turned(inputs: int, table: int) -> torch.Tensor:
    """For every mask of a node's inputs the word whose bit v is the output on v ^ mask."""
    count, words = 1 << inputs, []
    for mask in range(count):
        word = sum((table >> (v ^ mask) & 1) << v for v in range(count))
        words.append(word - (1 << 64) if word >> 63 else word)
    return torch.tensor(words, dtype=torch.int64)


class Signs(Digits):
    """For sign tests on `bits` bits: the payload is [x < 0] when the top bit of y is 0."""

    def __init__(self, shape: Shape, bits: int, profile: str, width: int = 64) -> None:
        elements = torch.Size(shape).numel()
        plan = borrow(bits - 1, elements, width / 8, profile)
        super().__init__(shape, bits, plan, (width,))

    def case(self, bits: Sequence[int]) -> int:
        return _borrowed(bits)

    def payload(self, r: torch.Tensor, bits: Sequence[int]) -> list[torch.Tensor]:
        return [(r >> self.plan.bits) & 1 ^ _borrowed(bits)]


def _borrowed(bits: Sequence[int]) -> int:
    found = bits[0]
    for less, equal in zip(bits[1::2], bits[2::2], strict=True):
        found = less | (equal & found)
    return found


class PairSigns(Signs):
    """Sign tests of x_i - x_j for all pairs i < j of the last dimension [n], row by row.

    r hides each x once; the difference of two hides the difference of theirs. So only n elements
    are opened, however many pairs there are.
    """

    def __init__(self, shape: Shape, bits: int, profile: str, width: int = 64) -> None:
        size = shape[-1]
        super().__init__((*shape[:-1], size * (size - 1) // 2), bits, profile, width)
        self.form = Form((Piece("r", shape, bits), *self.pieces[1:]))

    def differences(self, hidden: torch.Tensor) -> torch.Tensor:
        """[..., n] -> [..., pairs], on the correlation's bits."""
        return differences(hidden, self.bits)

    def complete(self, whole: Pieces) -> Pieces:
        return super().complete({**whole, "r": self.differences(whole["r"])})


class Positive(Digits):
    """For max(x, 0) on `bits` bits: [x >= 0] and [x >= 0] m for a clear top bit of y, and m.

    m = -r + 2^(bits - 1) borrow, over the low bits: with y's low bits it is x or x + 2^(bits - 1).
    """

    def __init__(self, shape: Shape, bits: int, profile: str, width: int = 64) -> None:
        elements = torch.Size(shape).numel()
        plan = borrow(bits - 1, elements, 3 * width / 8, profile)
        super().__init__(shape, bits, plan, (width,) * 3)

    def case(self, bits: Sequence[int]) -> int:
        return _borrowed(bits)

    def payload(self, r: torch.Tensor, bits: Sequence[int]) -> list[torch.Tensor]:
        half, less = 1 << self.plan.bits, _borrowed(bits)
        moved = less * half - (r & (half - 1))
        shown = 1 - ((r >> self.plan.bits) & 1 ^ less)
        return [shown, shown * moved, moved]


class Zeros(Digits):
    """[x == 0] on `bits` bits: [y == r]."""

    def __init__(self, shape: Shape, bits: int, profile: str, width: int = 64) -> None:
        elements = torch.Size(shape).numel()
        plan = equality(bits, elements, width / 8, profile)
        super().__init__(shape, bits, plan, (width,))

    def case(self, bits: Sequence[int]) -> int:
        return int(all(bits))

    def payload(self, r: torch.Tensor, bits: Sequence[int]) -> list[torch.Tensor]:
        return [torch.full_like(r, int(all(bits)))]


class Windowed(Digits):
    """What depends on where x stands: inside its window, below or above.

    Args:
        low, high: bits of x inside the window, and signed ones above.
    """

    def __init__(
        self, shape: Shape, low: int, high: int, profile: str, widths: Sequence[int]
    ) -> None:
        elements = torch.Size(shape).numel()
        plan = window(low, high, elements, sum(widths) / 8, profile)
        super().__init__(shape, low + high, plan, widths)
        self.low = low

    def payload(self, r: torch.Tensor, bits: Sequence[int]) -> list[torch.Tensor]:
        inside, upper = bits
        low = r & ((1 << self.low) - 1)
        return self.inside(low, upper) if inside else self.outside(low, upper)

    @abstractmethod
    def inside(self, low: torch.Tensor, less: int) -> list[torch.Tensor]:
        """The results where x is inside; `low` are r's low bits, and x is y - r + 2^low less."""

    @abstractmethod
    def outside(self, low: torch.Tensor, above: int) -> list[torch.Tensor]:
        """The results where x is above its window or below."""


class Exponents(Windowed):
    """For exp(u) with u on `low` bits, `frac` of them fractional.

    The first result is exp(-r), times the exp of the whole window where y wrapped, with
    `precision` fractional bits, and 0 outside; the second `top` above the window, else 0.
    """

    def __init__(
        self, shape: Shape, low: int, high: int, frac: int, precision: int, top: int, profile: str
    ) -> None:
        super().__init__(shape, low, high, profile, (64, 8))
        self.frac, self.precision, self.top = frac, precision, top

    def inside(self, low: torch.Tensor, less: int) -> list[torch.Tensor]:
        exact = torch.exp(-low.to(torch.float64) / 2.0**self.frac)
        whole = math.exp(2.0 ** (self.low - self.frac)) if less else 1.0
        value = torch.round(exact * (whole * 2.0**self.precision)).to(torch.int64)
        return [value, torch.zeros_like(value)]

    def outside(self, low: torch.Tensor, above: int) -> list[torch.Tensor]:
        return [torch.zeros_like(low), torch.full_like(low, self.top if above else 0)]


class Clamped(Windowed):
    """For x kept to [0, 2^low): y's low bits count as often as the first result says, and the
    second is added, modulo 2^width."""

    def __init__(self, shape: Shape, low: int, high: int, profile: str, width: int) -> None:
        super().__init__(shape, low, high, profile, (width, width))

    def inside(self, low: torch.Tensor, less: int) -> list[torch.Tensor]:
        return [torch.ones_like(low), (less << self.low) - low]

    def outside(self, low: torch.Tensor, above: int) -> list[torch.Tensor]:
        top = (1 << self.low) - 1 if above else 0
        return [torch.zeros_like(low), torch.full_like(low, top)]


signs = made_once(Signs)
pair_signs = made_once(PairSigns)
positives = made_once(Positive)
zeros = made_once(Zeros)
exponents = made_once(Exponents)
clamped = made_once(Clamped)
