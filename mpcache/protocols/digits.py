"""Digit tables: what a secret r and a public y = x + r say of x, read digit by digit.

A digit of r has a word for each question about it: bit v of the word answers for the public digit
v. Nodes join few bits by a truth table; the last step reads ring elements. A `Plan` says which
digits, questions and nodes; `planned` finds the cheapest one.
"""

from __future__ import annotations

import functools
import itertools
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from mpcache.kernels.pairs import differences
from mpcache.protocols.correlation import Correlation, made_once
from mpcache.protocols.pieces import Form, Piece, Pieces, Shape

Kind = Literal["less", "equal", "half0", "half1"]
WIDEST = 6  # bits of a digit, and of a node's inputs: a word is a machine word at most
NARROWEST = 3  # bits of a digit: a byte
# What a round and a dealt byte are worth, in bytes that are sent: on a LAN dealing goes on beside
# the run; on a WAN its bytes cross the slow line too, and are kept until they are used.
ROUND_BYTES = {"lan": 1 << 17, "wan": 1 << 20}
DEALT_WEIGHT = {"lan": 0.5, "wan": 2.0}


@dataclass(frozen=True)
class Question:
    """One bit asked of a digit.

    Args:
        digit: which, from the lowest.
        kind: less: [v < r's digit]. equal: [v == r's digit]. half0 and half1: whether v - r's
            digit (- 1) is at least half its range.
        turned: whether v is the digit of y - 2^low, instead of y's.
    """

    digit: int
    kind: Kind
    turned: bool = False


@dataclass(frozen=True)
class Node:
    """Truth tables of a few bits: bit v of an output is its value on input v.

    Args:
        inputs: numbers of bits: questions first, then the outputs of earlier nodes.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """Digits' widths from the lowest, questions, levels of nodes, and what the last table reads.

    Args:
        low: where turned digits begin, in bits.
    """

    widths: tuple[int, ...]
    low: int
    questions: tuple[Question, ...]
    levels: tuple[tuple[Node, ...], ...]
    last: tuple[int, ...]

    @property
    def bits(self) -> int:
        return sum(self.widths)

    @functools.cached_property
    def words(self) -> tuple[tuple[int, Kind], ...]:
        """The dealt words: digit, and question that it answers; less answers equal as well."""
        asked = [
            (question.digit, "less" if question.kind == "equal" else question.kind)
            for question in self.questions
        ]
        return tuple(dict.fromkeys(asked))

    @functools.cached_property
    def arrays(self) -> PlanArrays:
        """The plan as compiled kernels take it."""
        return PlanArrays(self)

    @property
    def rounds(self) -> int:
        """After the opening of y."""
        return len(self.levels) + 1

    @functools.cached_property
    def sizes(self) -> tuple[float, float]:
        """Bytes of an element, dealt without the last table and sent after y."""
        dealt = sum(2 ** self.widths[digit] / 8 for digit, _ in self.words)
        sent = len(self.last) / 8
        for node in itertools.chain(*self.levels):
            dealt += len(node.outputs) * 2 ** len(node.inputs) / 8
            sent += len(node.inputs) / 8
        return dealt, sent

    def price(self, elements: int, entry: float, profile: str) -> float:
        """Bytes, dealt ones and rounds counted as told above, with `entry` bytes in an entry."""
        dealt, sent = self.sizes
        dealt += entry * 2 ** len(self.last)
        return (
            elements * (sent + DEALT_WEIGHT[profile] * dealt) + self.rounds * ROUND_BYTES[profile]
        )


@dataclass(frozen=True)
class LevelArrays:
    """A level's nodes: pieces of masks and words by name, and the rows of bits that they read."""

    masks: tuple[str, ...]
    tables: tuple[str, ...]
    inputs: np.ndarray
    counts: np.ndarray
    nodes: np.ndarray
    sizes: np.ndarray


class PlanArrays:
    """A plan as `kernels.questions` takes it."""

    def __init__(self, plan: Plan) -> None:
        begins = np.cumsum([0, *plan.widths])
        asked, names = [], []
        for question in plan.questions:
            width = plan.widths[question.digit]
            low = plan.low if question.turned else -1
            size, equal = _word_bytes(width), question.kind == "equal"
            asked.append((begins[question.digit], width, low, size, equal))
            names.append(f"{'less' if equal else question.kind}{question.digit}")
        self.asked = np.array(asked, dtype=np.int64)
        self.tables = tuple(names)
        self.levels = [_level(level, nodes) for level, nodes in enumerate(plan.levels)]
        self.last = np.array(plan.last, dtype=np.int64)
        self.last_count = np.array([len(plan.last)], dtype=np.int64)
        self._rows = len(names) + sum(len(level.tables) for level in self.levels)

    def bits(self, elements: int) -> torch.Tensor:
        """Room for all bits: uint8 [bits, elements]."""
        return torch.empty((self._rows, elements), dtype=torch.uint8)


def _word_bytes(bits: int) -> int:
    return max(1, (1 << bits) >> 3)


def _level(level: int, nodes: Sequence[Node]) -> LevelArrays:
    outputs = [
        (place, output) for place, node in enumerate(nodes) for output in range(len(node.outputs))
    ]
    return LevelArrays(
        tuple(f"mask{level}.{place}" for place in range(len(nodes))),
        tuple(f"node{level}.{place}.{output}" for place, output in outputs),
        np.array([bit for node in nodes for bit in node.inputs], dtype=np.int64),
        np.array([len(node.inputs) for node in nodes], dtype=np.int64),
        np.array([place for place, _ in outputs], dtype=np.int64),
        np.array([_word_bytes(len(nodes[place].inputs)) for place, _ in outputs], dtype=np.int64),
    )


def _cheapest(plans: Sequence[Plan], elements: int, entry: float, profile: str) -> Plan:
    """Elements count as the power of two above: a few more do not change the plan."""
    rounded = 1 << max(elements - 1, 0).bit_length()
    return min(plans, key=lambda plan: plan.price(rounded, entry, profile))


def _useful(plans: Sequence[Plan]) -> tuple[Plan, ...]:
    """Without those that another beats in all that counts."""
    facts = {plan: (*plan.sizes, plan.rounds, len(plan.last)) for plan in plans}
    kept: list[Plan] = []
    for plan in sorted(facts, key=lambda plan: facts[plan]):
        if not any(
            all(a <= b for a, b in zip(facts[one], facts[plan], strict=True)) for one in kept
        ):
            kept.append(plan)
    return tuple(kept)


class _Drawing:
    """A plan being drawn: bits are numbered as they come."""

    def __init__(self, widths: Sequence[int], low: int = 0) -> None:
        self.widths, self.low = tuple(widths), low
        self.questions: dict[Question, None] = {}  # in the order in which they were asked
        self.nodes: list[list[tuple[Sequence[object], list[int]]]] = []

    def ask(self, digit: int, kind: Kind, turned: bool = False) -> object:
        question = Question(digit, kind, turned)
        self.questions[question] = None
        return question

    def join(self, level: int, inputs: Sequence[object], *outputs: int) -> list[object]:
        while len(self.nodes) <= level:
            self.nodes.append([])
        self.nodes[level].append((inputs, list(outputs)))
        return [(level, len(self.nodes[level]) - 1, output) for output in range(len(outputs))]

    def plan(self, last: Sequence[object]) -> Plan:
        numbers: dict[object, int] = {bit: i for i, bit in enumerate(self.questions)}
        levels = []
        for level, nodes in enumerate(self.nodes):
            done = [
                Node(tuple(numbers[bit] for bit in inputs), tuple(outputs))
                for inputs, outputs in nodes
            ]
            levels.append(tuple(done))
            for place, (_, outputs) in enumerate(nodes):
                for output in range(len(outputs)):
                    numbers[level, place, output] = len(numbers)
        ends = tuple(numbers[bit] for bit in last)
        return Plan(self.widths, self.low, tuple(self.questions), tuple(levels), ends)


@functools.cache
def _truth(inputs: int, function: Callable[..., bool]) -> int:
    """The truth table of a function of bits, input bit i of v being its argument i."""
    return sum(
        1 << v for v in range(1 << inputs) if function(*(bool(v >> i & 1) for i in range(inputs)))
    )


def _less(*bits: bool) -> bool:
    """Less of a lowest group: bits less_0, less_1, equal_1, less_2, equal_2, ..."""
    found = bits[0]
    for less, equal in _pairs(bits[1:]):
        found = less or (equal and found)
    return found


def _pairs(bits: Sequence[bool]) -> Iterator[tuple[bool, bool]]:
    return zip(bits[::2], bits[1::2], strict=True)


def _upper_less(*bits: bool) -> bool:
    """Less of any other group: bits less_0, equal_0, less_1, equal_1, ..."""
    found = False
    for less, equal in _pairs(bits):
        found = less or (equal and found)
    return found


def _upper_equal(*bits: bool) -> bool:
    return all(equal for _, equal in _pairs(bits))


def _every(*bits: bool) -> bool:
    return all(bits)


def _even(total: int, parts: int) -> tuple[int, ...]:
    return tuple(total // parts + (i < total % parts) for i in range(parts))


def _borrow(drawing: _Drawing, digits: Sequence[int], groups: Sequence[int]) -> list[object]:
    """Bits that say [y < r] on these digits: less; or less_0, less_1, equal_1, ... of what is left.

    Args:
        groups: for each level of nodes, how many groups come out of it.
    """
    state: list[tuple[object, object]] = [
        (drawing.ask(d, "less"), None if i == 0 else drawing.ask(d, "equal"))
        for i, d in enumerate(digits)
    ]
    for level, count in enumerate(groups):
        sizes, at, joined = _even(len(state), count), 0, []
        for place, size in enumerate(sizes):
            part, at = state[at : at + size], at + size
            if size == 1:
                joined.append(part[0])
                continue
            bits = [bit for pair in part for bit in pair if bit is not None]
            if place == 0:
                (less,) = drawing.join(level, bits, _truth(len(bits), _less))
                joined.append((less, None))
            else:
                tables = (_truth(len(bits), _upper_less), _truth(len(bits), _upper_equal))
                less, equal = drawing.join(level, bits, *tables)
                joined.append((less, equal))
        state = joined
    return [bit for pair in state for bit in pair if bit is not None]


def _shapes(bits: int, last: int) -> Iterator[tuple[tuple[int, ...], tuple[int, ...]]]:
    """Widths of digits and groups by level that leave `last` groups at most."""
    for digits in range(-(-bits // WIDEST), -(-bits // NARROWEST) + 1):
        yield from ((_even(bits, digits), groups) for groups in _groups(digits, last))


def _groups(count: int, last: int, levels: int = 3) -> Iterator[tuple[int, ...]]:
    """How many groups come out of each level, so that `last` are left at most."""
    if count <= last:
        yield ()
    if levels:
        for groups in range(-(-count // (WIDEST // 2)), count):
            for rest in _groups(groups, last, levels - 1):
                yield (groups, *rest)


@functools.cache
def _borrows(bits: int, last: int) -> tuple[Plan, ...]:
    found = []
    for widths, groups in _shapes(bits, last):
        drawing = _Drawing(widths)
        found.append(drawing.plan(_borrow(drawing, range(len(widths)), groups)))
    return _useful(found)


def borrow(bits: int, elements: int, entry: float, profile: str, last: int = 3) -> Plan:
    """The cheapest plan for [y < r] on `bits` bits.

    Args:
        entry: bytes in an entry of the last table. last: groups that it joins at most.
    """
    return _cheapest(_borrows(bits, last), elements, entry, profile)


@functools.cache
def _equalities(bits: int) -> tuple[Plan, ...]:
    found = []
    for digits in range(-(-bits // WIDEST), bits + 1):
        for count in range(1, min(digits, 4) + 1):
            drawing = _Drawing(_even(bits, digits))
            ends: list[object] = [drawing.ask(d, "equal") for d in range(digits)]
            sizes, joined = _even(digits, count), []
            if max(sizes) > WIDEST:
                continue
            for size in sizes:
                part, ends = ends[:size], ends[size:]
                joined += part if size == 1 else drawing.join(0, part, _truth(size, _every))
            found.append(drawing.plan(joined))
    return _useful(found)


def equality(bits: int, elements: int, entry: float, profile: str) -> Plan:
    """The cheapest plan for [y == r] on `bits` bits: the last table sees all of its bits set."""
    return _cheapest(_equalities(bits), elements, entry, profile)


@functools.cache
def _windows(low: int, high: int) -> tuple[Plan, ...]:
    found = []
    for widths, groups in _shapes(low, 2):
        for tops in range(max(1, -(-high // WIDEST)), min(high, 3) + 1):
            found.append(_window(widths, groups, low, _even(high, tops)))
    return _useful(found)


def window(low: int, high: int, elements: int, entry: float, profile: str) -> Plan:
    """The cheapest plan that tells where x = y - r stands: its last bits are inside and upper.

    x has `low` bits inside its window and `high` signed ones above: inside (inside set, and upper
    is then [y < r] on the low bits), above the window (upper alone), below it (neither). The last
    2^low values of x's range may count as below: no x may be among them.
    """
    return _cheapest(_windows(low, high), elements, entry, profile)


def _window(widths: Sequence[int], groups: Sequence[int], low: int, tops: Sequence[int]) -> Plan:
    drawing = _Drawing((*widths, *tops), low)
    borrowed = _borrow(drawing, range(len(widths)), groups)
    first, top = len(widths), len(widths) + len(tops) - 1
    upper = range(first, top + 1)
    near = []
    for turned in (False, True):
        same = [drawing.ask(digit, "equal", turned) for digit in upper]
        near.append(
            same[0] if len(same) == 1 else drawing.join(0, same, _truth(len(same), _every))[0]
        )
    # whether y - r is negative, were there no borrow from the low bits
    halves = [drawing.ask(top, "half0"), drawing.ask(top, "half1")]
    if len(tops) == 1:
        sign = halves[0]
    else:
        below = [
            bit
            for place, digit in enumerate(upper[:-1])
            for bit in (drawing.ask(digit, "less"), drawing.ask(digit, "equal"))[: 2 - (place == 0)]
        ]
        table = _truth(len(below) + 2, _borrowing)
        (sign,) = drawing.join(0, [*halves, *below], table)
    inputs = [*near, sign, *borrowed]
    tables = _truth(len(inputs), _inside), _truth(len(inputs), _upper)
    return drawing.plan(drawing.join(len(drawing.nodes), inputs, *tables))


def _borrowing(without: bool, borrowed: bool, *below: bool) -> bool:
    return borrowed if _less(*below) else without


def _inside(near0: bool, near1: bool, sign: bool, *below: bool) -> bool:
    return near1 if _less(*below) else near0


def _upper(near0: bool, near1: bool, sign: bool, *below: bool) -> bool:
    less = _less(*below)
    if near1 if less else near0:
        return less
    return not sign and not (less and near0)


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
