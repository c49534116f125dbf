"""Pieces of a correlation: what they hold, and where they lie in what is drawn and dealt."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch

from mpcache.kernels.prg import storage
from mpcache.protocols.wire import Words, as_words

Shape = tuple[int, ...]
Pieces = dict[str, torch.Tensor]


class Randomness(Protocol):
    """A party's seed, expanded: equal calls give equal tensors to all that know the seed."""

    def ring(self, shape: Sequence[int]) -> torch.Tensor:
        """Uniform int64 [shape]."""
        ...

    def bits(self, shape: Sequence[int], bits: int) -> torch.Tensor:
        """Uniform on `bits` bits, integers of any width [shape]."""
        ...

    def branch(self, number: int) -> Randomness:
        """Other randomness of the same seed, which can be had again by its number, 1 or more."""
        ...


@dataclass(frozen=True)
class Piece:
    """A tensor of a correlation.

    Args:
        bits: elements are uniform on so many low bits, and count modulo 2^bits.
        holder: the one party that holds it, or None where both hold a share.
        corrected: party 1's share comes from the dealer.
        exclusive: shares join by XOR instead of by addition.
        given: nobody draws it; party 1 receives it whole, and may pass it on.
        narrow: stays in the integers that hold it; else a party works with int64.
    """

    name: str
    shape: Shape
    bits: int = 64
    holder: int | None = None
    corrected: bool = False
    exclusive: bool = False
    given: bool = False
    narrow: bool = False

    @property
    def dealt(self) -> bool:
        """Whether party 1 receives it from the dealer."""
        return self.corrected or self.given

    def held(self, value: torch.Tensor) -> torch.Tensor:
        """As a party works with it."""
        wanted = storage(self.bits) if self.narrow else torch.int64
        return value if value.dtype == wanted else value.to(wanted)


class _Place:
    """Where a piece lies in a run of bytes, and how it is read there."""

    __slots__ = ("at", "end", "mask", "name", "piece", "words")

    def __init__(self, piece: Piece, words: Words, at: int) -> None:
        self.piece, self.name, self.words = piece, piece.name, words
        self.at, self.end = at, at + words.nbytes
        spare = piece.bits < 8 * words.spec.dtype.itemsize
        self.mask = (1 << piece.bits) - 1 if spare else 0

    def of(self, buffer: torch.Tensor) -> torch.Tensor:
        spec = self.words.spec
        return buffer[self.at : self.end].view(spec.dtype).view(spec.shape)


def _laid(pieces: Sequence[Piece], drawn: bool) -> tuple[list[_Place], int]:
    """Pieces one behind the other, the widest words first, and how many bytes they are."""
    formed = [
        (piece, as_words(piece.shape, 8 * storage(piece.bits).itemsize if drawn else piece.bits))
        for piece in pieces
    ]
    found, at = [], 0
    for piece, form in sorted(formed, key=lambda pair: -pair[1].spec.dtype.itemsize):
        found.append(_Place(piece, form, at))
        at += form.nbytes
    return found, at


class _Run:
    """Pieces of one kind of words that lie next to each other where they are drawn."""

    def __init__(self, places: Sequence[_Place]) -> None:
        self.begin, self.end = places[0].at, places[-1].end
        self.dtype, self.mask = places[0].words.spec.dtype, places[0].mask
        self.places = places
        self.sizes = [place.words.spec.elements for place in places]

    def read(self, buffer: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
        """Each piece's name and words, from bytes that nobody else reads."""
        words = buffer[self.begin : self.end].view(self.dtype)
        if self.mask:
            words &= self.mask
        parts = words.split_with_sizes(self.sizes)
        for place, part in zip(self.places, parts, strict=True):
            yield place.name, place.piece.held(part.view(place.piece.shape))


def _runs(pieces: Sequence[Piece]) -> tuple[list[_Run], int]:
    """Where pieces lie that are drawn, and how many bytes they are."""
    places, size = _laid(pieces, True)
    alike = itertools.groupby(places, lambda place: (place.words.spec.dtype, place.mask))
    return [_Run(list(group)) for _, group in alike], size


class Form:
    """The pieces of a correlation, and where they lie in what is drawn and in what is dealt."""

    def __init__(self, pieces: Sequence[Piece]) -> None:
        self.pieces = tuple(pieces)
        own = [
            [
                piece
                for piece in pieces
                if piece.holder in (None, rank)
                and not piece.given
                and not (rank == 1 and piece.corrected)
            ]
            for rank in (0, 1)
        ]
        self.drawn = [_runs(held) for held in own]
        self.dealt, self.dealt_bytes = _laid([piece for piece in pieces if piece.dealt], False)
