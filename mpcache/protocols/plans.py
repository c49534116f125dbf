"""What is asked of the digits of a secret r, and which way of asking is cheapest.

A digit of r has a word for each question about it: bit v of the word answers for the public digit
v. Nodes join few bits by a truth table; the last step reads ring elements. A `Plan` says which
digits, questions and nodes; `borrow`, `equality` and `window` find the cheapest one.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

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
