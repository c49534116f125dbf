"""The client's tokens as suite `dealer` takes them: known to the client, a count elsewhere."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mpcache.errors import MpcacheError


class Tokens:
    """`count` tokens of a vocabulary of `vocab`; only an embedding reads them.

    Args:
        ids: at the client; None at every other party and in readings without data.

    Raises:
        MpcacheError: an id is not in the vocabulary.
    """

    __slots__ = ("_ids", "count", "vocab")

    def __init__(self, ids: Sequence[int] | None, count: int, vocab: int) -> None:
        self.count, self.vocab = count, vocab
        self._ids = None if ids is None else torch.tensor(list(ids), dtype=torch.int64)
        if self._ids is not None and not bool(((self._ids >= 0) & (self._ids < vocab)).all()):
            raise MpcacheError(f"a token is not in the vocabulary of {vocab}")

    def known(self) -> torch.Tensor:
        """The ids [count, 1], at the client.

        Raises:
            MpcacheError: this party does not know them.
        """
        if self._ids is None:
            raise MpcacheError("the client has no tokens")
        return self._ids.unsqueeze(1)

    def __repr__(self) -> str:
        return f"Tokens(count={self.count}, vocab={self.vocab})"
