"""A secret-shared tensor, as one party holds it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch

from mpcache.errors import MpcacheError

Index = Any  # int, slice, None, Ellipsis, or a tuple of those


class Secret:
    """One party's additive share of a tensor over Z/2^64 with `frac` fractional bits.

    The value is ``sum of all parties' shares / 2^frac`` in two's complement. Linear operations
    are local and return a Secret; anything that would turn the value into a number raises. Only
    ``Machine.open`` opens. In the cost reading the share is a tensor without data (device meta).
    """

    __slots__ = ("frac", "share")

    def __init__(self, share: torch.Tensor, frac: int) -> None:
        if share.dtype != torch.int64:
            raise TypeError(f"a share is int64, not {share.dtype}")
        self.share = share
        self.frac = frac

    # --- shape ---------------------------------------------------------------------------------

    @property
    def shape(self) -> torch.Size:
        return self.share.shape

    @property
    def ndim(self) -> int:
        return self.share.ndim

    def _like(self, share: torch.Tensor) -> Secret:
        return Secret(share, self.frac)

    def reshape(self, *shape: int) -> Secret:
        return self._like(self.share.reshape(*shape))

    def transpose(self, first: int, second: int) -> Secret:
        return self._like(self.share.transpose(first, second))

    def permute(self, *dims: int) -> Secret:
        return self._like(self.share.permute(*dims))

    def unsqueeze(self, dim: int) -> Secret:
        return self._like(self.share.unsqueeze(dim))

    def squeeze(self, dim: int) -> Secret:
        return self._like(self.share.squeeze(dim))

    def expand(self, *shape: int) -> Secret:
        return self._like(self.share.expand(*shape))

    def flatten(self, start_dim: int = 0, end_dim: int = -1) -> Secret:
        return self._like(self.share.flatten(start_dim, end_dim))

    def contiguous(self) -> Secret:
        return self._like(self.share.contiguous())

    def __getitem__(self, index: Index) -> Secret:
        """Public positions only: integers, slices, None, Ellipsis."""
        parts = index if isinstance(index, tuple) else (index,)
        for part in parts:
            if not (part is None or part is ... or isinstance(part, int | slice)):
                raise TypeError("a Secret takes public integers and slices as positions only")
        return self._like(self.share[index])

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
        return self._like(self.share + other.share)

    def __sub__(self, other: Secret) -> Secret:
        self._match(other)
        return self._like(self.share - other.share)

    def __neg__(self) -> Secret:
        return self._like(-self.share)

    def times(self, integers: torch.Tensor | int, frac: int = 0) -> Secret:
        """Multiply by public ring elements that stand for integers / 2^frac. Exact."""
        if isinstance(integers, torch.Tensor):
            integers = integers.to(self.share.device)
        return Secret(self.share * integers, self.frac + frac)

    def halved(self, times: int) -> Secret:
        """The value divided by 2^times, exactly: only the position of the point moves."""
        return Secret(self.share, self.frac + times)

    def sum(self, dim: int, keepdim: bool = False) -> Secret:
        return self._like(self.share.sum(dim, keepdim=keepdim))

    def cumsum(self, dim: int) -> Secret:
        return self._like(self.share.cumsum(dim))

    def take(self, indices: torch.Tensor, dim: int = -1) -> Secret:
        """The elements at public positions `indices` [n] along `dim`."""
        return self._like(self.share.index_select(dim, indices.to(self.share.device)))

    def pour(self, indices: torch.Tensor, size: int) -> Secret:
        """Sum the last dimension [n] into `size` bins; element i goes to bin ``indices[i]``."""
        bins = self.share.new_zeros(*self.shape[:-1], size)
        return self._like(bins.index_add_(-1, indices.to(self.share.device), self.share))

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


def cat(parts: Sequence[Secret], dim: int) -> Secret:
    """Join secrets along `dim`; all have the same number of fractional bits."""
    for part in parts[1:]:
        parts[0]._match(part)
    return Secret(torch.cat([part.share for part in parts], dim), parts[0].frac)


def stack(parts: Sequence[Secret], dim: int = 0) -> Secret:
    """Stack secrets along a new dimension `dim`; all have the same number of fractional bits."""
    for part in parts[1:]:
        parts[0]._match(part)
    return Secret(torch.stack([part.share for part in parts], dim), parts[0].frac)
