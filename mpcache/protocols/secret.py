"""A secret-shared tensor, as one party holds it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch

from mpcache.errors import MpcacheError
from mpcache.kernels.pairs import balances

Index = Any  # int, slice, None, Ellipsis, or a tuple of those


class Secret:
    """One party's additive share of a tensor over Z/2^64 with `frac` fractional bits.

    The value is ``sum of all parties' shares / 2^frac`` in two's complement; where `width` is less
    than 64, shares count modulo 2^width only, and what lies above is no part of the value. Linear
    operations are local and return a Secret; anything that would turn the value into a number
    raises. Only ``Machine.open`` opens. In the cost reading the share is a tensor without data
    (device meta).
    """

    __slots__ = ("frac", "share", "width")

    def __init__(self, share: torch.Tensor, frac: int, width: int = 64) -> None:
        if share.dtype != torch.int64:
            raise TypeError(f"a share is int64, not {share.dtype}")
        self.share = share
        self.frac = frac
        self.width = width

    # --- shape ---------------------------------------------------------------------------------

    @property
    def shape(self) -> torch.Size:
        return self.share.shape

    @property
    def ndim(self) -> int:
        return len(self.shape)

    def _map(self, linear: Callable[[torch.Tensor], torch.Tensor], frac: int = 0) -> Secret:
        """What a linear map of shares makes of this secret, with `frac` more fractional bits."""
        return Secret(linear(self.share), self.frac + frac, self.width)

    def modulo(self, width: int) -> Secret:
        """The same shares, counted modulo 2^width at most: free."""
        return Secret(self.share, self.frac, min(width, self.width))

    def _alike(self, linear: Callable[[torch.Tensor], torch.Tensor], frac: int = 0) -> Secret:
        """As `_map`, of a map that keeps the shape: without data there is nothing to do."""
        return self._map(lambda t: t if t.is_meta else linear(t), frac)

    @property
    def is_hollow(self) -> bool:
        """Whether only the shape counts."""
        return self.share.is_meta

    def reshape(self, *shape: int) -> Secret:
        return self._map(lambda t: t.reshape(*shape))

    def transpose(self, first: int, second: int) -> Secret:
        return self._map(lambda t: t.transpose(first, second))

    def permute(self, *dims: int) -> Secret:
        return self._map(lambda t: t.permute(*dims))

    def unsqueeze(self, dim: int) -> Secret:
        return self._map(lambda t: t.unsqueeze(dim))

    def squeeze(self, dim: int) -> Secret:
        return self._map(lambda t: t.squeeze(dim))

    def expand(self, *shape: int) -> Secret:
        return self._map(lambda t: t.expand(*shape))

    def flatten(self, start_dim: int = 0, end_dim: int = -1) -> Secret:
        return self._map(lambda t: t.flatten(start_dim, end_dim))

    def contiguous(self) -> Secret:
        return self._map(lambda t: t.contiguous())

    def __getitem__(self, index: Index) -> Secret:
        """Public positions only: integers, slices, None, Ellipsis."""
        parts = index if isinstance(index, tuple) else (index,)
        for part in parts:
            if not (part is None or part is ... or isinstance(part, int | slice)):
                raise TypeError("a Secret takes public integers and slices as positions only")
        return self._map(lambda t: t[index])

    # --- linear, local -------------------------------------------------------------------------

    def _match(self, other: Secret) -> None:
        if not isinstance(other, Secret):
            raise TypeError(
                f"cannot combine a Secret with {type(other).__name__}: use Machine.shift for a"
                " public addend and Machine.scale for a public factor"
            )
        if other.frac != self.frac:
            raise MpcacheError(f"fractional bits differ: {self.frac} and {other.frac}")

    def __add__(self, other: Secret) -> Secret:
        self._match(other)
        width = min(self.width, other.width)
        if self.is_hollow:
            return Secret(_both(self.share, other.share), self.frac, width)
        return Secret(self.share + other.share, self.frac, width)

    def __sub__(self, other: Secret) -> Secret:
        self._match(other)
        width = min(self.width, other.width)
        if self.is_hollow:
            return Secret(_both(self.share, other.share), self.frac, width)
        return Secret(self.share - other.share, self.frac, width)

    def __neg__(self) -> Secret:
        return self._alike(torch.neg)

    def times(self, integers: torch.Tensor | int, frac: int = 0) -> Secret:
        """Multiply by public ring elements that stand for integers / 2^frac. Exact."""

        def times(t: torch.Tensor) -> torch.Tensor:
            if not isinstance(integers, torch.Tensor):
                return t if t.is_meta else t * integers
            return _both(t, integers) if t.is_meta else t * integers.to(t.device)

        return self._map(times, frac)

    def halved(self, times: int) -> Secret:
        """The value divided by 2^times, exactly: only the position of the point moves."""
        return self._map(lambda t: t, times)

    def sum(self, dim: int, keepdim: bool = False) -> Secret:
        def total(t: torch.Tensor) -> torch.Tensor:
            if not t.is_meta:
                return t.sum(dim, keepdim=keepdim)
            shape, place = list(t.shape), dim % t.ndim
            shape[place : place + 1] = [1] * keepdim
            return _without_data(shape)

        return self._map(total)

    def cumsum(self, dim: int) -> Secret:
        return self._alike(lambda t: t.cumsum(dim))

    def take(self, indices: torch.Tensor, dim: int = -1) -> Secret:
        """The elements at public positions `indices` [n] along `dim`."""

        def taken(t: torch.Tensor) -> torch.Tensor:
            if not t.is_meta:
                return t.index_select(dim, indices.to(t.device))
            shape = list(t.shape)
            shape[dim] = len(indices)
            return _without_data(shape)

        return self._map(taken)

    def pour(self, indices: torch.Tensor, size: int) -> Secret:
        """Sum the last dimension [n] into `size` bins; element i goes to bin ``indices[i]``."""

        def poured(t: torch.Tensor) -> torch.Tensor:
            if t.is_meta:
                return _without_data((*t.shape[:-1], size))
            bins = t.new_zeros(*t.shape[:-1], size)
            return bins.index_add_(-1, indices.to(t.device), t)

        return self._map(poured)

    def balance(self, size: int) -> Secret:
        """Of all pairs i < j below `size` [.., pairs]: each i's sum, less that where it is j."""
        return self._map(
            lambda t: _without_data((*t.shape[:-1], size)) if t.is_meta else balances(t, size)
        )

    # --- refusals ------------------------------------------------------------------------------

    def _refuse(self, *_: object) -> NoReturn:
        raise TypeError("a Secret has no value here: only Machine.open(value, to, why) opens one")

    __bool__ = __int__ = __float__ = __index__ = __complex__ = _refuse  # type: ignore[assignment]
    __iter__ = __contains__ = __len__ = __reduce__ = __array__ = _refuse  # type: ignore[assignment]
    __lt__ = __le__ = __gt__ = __ge__ = _refuse  # type: ignore[assignment]
    __mul__ = __rmul__ = __matmul__ = __truediv__ = _refuse  # type: ignore[assignment]

    def __eq__(self, other: object) -> bool:
        self._refuse()

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Secret(shape={list(self.shape)}, frac={self.frac})"


class Kept(Secret):
    """A secret that stays: masked once, so that its products open the other operand alone.

    `opened` is x - B, known to both parties (without data in hollow readings); `mask` is this
    party's share of B, all of B at the dealer, None where costs are counted. Linear maps of
    shape keep it so. A party's share is x - B + its mask at party 0 and its mask at party 1.
    """

    __slots__ = ("mask", "opened", "rank")

    def __init__(
        self,
        opened: torch.Tensor,
        mask: torch.Tensor | None,
        frac: int,
        rank: int,
        width: int = 64,
    ) -> None:
        self.opened, self.mask, self.frac = opened, mask, frac
        self.rank, self.width = rank, width

    @property
    def share(self) -> torch.Tensor:  # type: ignore[override]
        if self.opened.is_meta or self.mask is None:
            return self.opened
        return self.opened + self.mask if self.rank == 0 else self.mask

    @property
    def shape(self) -> torch.Size:
        return self.opened.shape

    def _map(self, linear: Callable[[torch.Tensor], torch.Tensor], frac: int = 0) -> Kept:
        mask = None if self.mask is None else linear(self.mask)
        return Kept(linear(self.opened), mask, self.frac + frac, self.rank, self.width)

    def modulo(self, width: int) -> Kept:
        return Kept(self.opened, self.mask, self.frac, self.rank, min(width, self.width))


class SharedWeight(Kept):
    """A weight matrix that nobody knows, masked once in setup.

    `opened` is W - B. `mask`, made by `whole`, is this party's share of B and all of B at the
    dealer; `first` makes party 0's share of B at the dealer, and is not for others.
    """

    __slots__ = ("first", "whole")

    def __init__(
        self,
        opened: torch.Tensor,
        frac: int,
        rank: int,
        whole: Callable[[], torch.Tensor | None],
        first: Callable[[], torch.Tensor],
    ) -> None:
        self.opened, self.frac, self.rank, self.width = opened, frac, rank, 64
        self.whole, self.first = whole, first

    @property
    def mask(self) -> torch.Tensor | None:  # type: ignore[override]
        return self.whole()


def _without_data(shape: Sequence[int]) -> torch.Tensor:
    return torch.empty(tuple(shape), dtype=torch.int64, device="meta")


def _both(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """What an elementwise operation makes of two tensors, the first without data."""
    if left.shape == right.shape:
        return left
    return _without_data(torch.broadcast_shapes(left.shape, right.shape))


def _joined(
    parts: Sequence[Secret], join: Callable[[Sequence[torch.Tensor]], torch.Tensor]
) -> Secret:
    for part in parts[1:]:
        parts[0]._match(part)
    first, width = parts[0], min(part.width for part in parts)
    if all(isinstance(part, Kept) for part in parts):
        assert isinstance(first, Kept)
        kept = [part for part in parts if isinstance(part, Kept)]
        masks = [part.mask for part in kept if part.mask is not None]
        opened = join([part.opened for part in kept])
        return Kept(opened, join(masks) if masks else None, first.frac, first.rank, width)
    return Secret(join([part.share for part in parts]), first.frac, width)


def lifted(value: Secret, frac: int) -> Secret:
    """The same value with more fractional bits. Exact."""
    more = frac - value.frac
    return Secret(value.share << more, frac, min(64, value.width + more))


def cat(parts: Sequence[Secret], dim: int) -> Secret:
    """Join secrets along `dim`; all have the same number of fractional bits."""
    return _joined(parts, lambda tensors: torch.cat(list(tensors), dim))


def stack(parts: Sequence[Secret], dim: int = 0) -> Secret:
    """Stack secrets along a new dimension `dim`; all have the same number of fractional bits."""
    return _joined(parts, lambda tensors: torch.stack(list(tensors), dim))
