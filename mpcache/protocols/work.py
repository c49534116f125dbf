"""What a program asks of a party's processor, counted without data: seconds are predicted from it.

A call is one use of a primitive, named after its correlation or its message, with the bytes that a
party handles for it. A product is one matrix product with its shape, since kernels differ by shape.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

import torch

# How the parties take a product: with a weight that its owner has in the clear, one ring product a
# party; of two shared operands, two; as torch multiplies integers.
Kind = Literal["owned", "shared", "torch"]


class Call(NamedTuple):
    """One use of a primitive; `size` in bytes."""

    name: str
    size: int


class Product(NamedTuple):
    """`batch` products [rows, inputs] @ [inputs, outputs] of 64-bit integers.

    `by_outputs` says that the right side lies in memory output by output.
    """

    kind: Kind
    batch: int
    rows: int
    inputs: int
    outputs: int
    by_outputs: bool

    @staticmethod
    def of(kind: Kind, left: torch.Tensor, right: torch.Tensor) -> Product:
        """Of matrices [.., rows, inputs] and [.., inputs, outputs]; no data is read."""
        batch = math.prod(torch.broadcast_shapes(left.shape[:-2], right.shape[:-2]))
        by_outputs = not right.is_contiguous() and right.stride(-2) == 1
        rows, (inputs, outputs) = left.shape[-2], right.shape[-2:]
        return Product(kind, batch, rows, inputs, outputs, by_outputs)

    @property
    def operands(self) -> int:
        """Elements of the right side, which are read once each."""
        return self.batch * self.inputs * self.outputs

    @property
    def multiply_adds(self) -> int:
        return self.rows * self.operands


class Cut(NamedTuple):
    """A local truncation: `bits` dropped of values with `frac` fractional bits."""

    frac: int
    bits: int


@dataclass
class Work:
    """How often each call and each product was made, and how many values were cut locally."""

    calls: Counter[Call] = field(default_factory=Counter)
    products: Counter[Product] = field(default_factory=Counter)
    cuts: Counter[Cut] = field(default_factory=Counter)

    def add(self, other: Work) -> None:
        self.calls.update(other.calls)
        self.products.update(other.products)
        self.cuts.update(other.cuts)

    def copy(self) -> Work:
        return Work(self.calls.copy(), self.products.copy(), self.cuts.copy())

    @property
    def multiply_adds(self) -> int:
        """Of all products."""
        return sum(times * product.multiply_adds for product, times in self.products.items())


class Held(Protocol):
    """A tensor of `bits` bits an element, in words of 8 bytes unless it stays narrow."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    @property
    def bits(self) -> int: ...
    @property
    def narrow(self) -> bool: ...


def held_bytes(pieces: Iterable[Held]) -> int:
    """Bytes of a correlation's pieces as a party works with them."""
    return sum(
        math.prod(piece.shape) * (-(-piece.bits // 8) if piece.narrow else 8) for piece in pieces
    )


def worked(work: Mapping[str, Work], prefix: str = "") -> Work:
    """Sum over the scope `prefix` and everything inside it; over all scopes for ``""``."""
    total = Work()
    for path, part in work.items():
        if not prefix or path == prefix or path.startswith(prefix + "/"):
            total.add(part)
    return total
