"""The fixed reading: what the parties compute, to the rounding, without any parties."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from mpcache.errors import MpcacheError
from mpcache.evaluation.clear import ClearDealer, Matrix, whole
from mpcache.protocols.arithmetic import embed
from mpcache.protocols.ledger import Scopes
from mpcache.protocols.operation import Operation, PlainMachine, SecureMachine, Value
from mpcache.protocols.secret import Secret
from mpcache.protocols.selection import compact
from mpcache.protocols.setting import Setting


class FixedMachine(SecureMachine):
    """Reads the text that the parties of suite `dealer` run, on ring elements in the clear.

    So it rounds, saturates and wraps as they do. Where their protocol leaves no choice, results
    are equal bit for bit; a truncation is off by one unit of theirs at most, and of the exact
    product, since each rounds up or down by its own chance; functions made of tables, truncations
    and products are within their bounds (`clear.ClearDealer`). One seed gives one result.

    Attributes:
        lost: how many values were beyond what the parties' primitives read. None should.
    """

    suite: ClearDealer

    def __init__(self, setting: Setting, seed: int = 0) -> None:
        super().__init__(ClearDealer(setting, seed), Scopes())
        self._plain = PlainMachine(setting)

    @property
    def lost(self) -> int:
        return self.suite.lost

    def seen(self, value: Secret) -> torch.Tensor:
        """`value` as float64 numbers."""
        return self.decode(whole(value), value.frac)

    def perform(self, operation: Operation, *args: Any, **options: Any) -> Any:
        if operation is embed:
            return self._rows(*args)
        if operation is compact:
            return self._compacted(*args)
        return super().perform(operation, *args, **options)

    def _rows(self, tokens: torch.Tensor, table: Secret) -> Secret:
        """Rows of a table: one-hot products are exact, so they need not be worked out."""
        rows = table.ring if isinstance(table, Matrix) else table.share
        return Secret(rows[tokens].to(torch.int64), table.frac)

    def _compacted(self, placed: Secret, x: Secret, k: int) -> Secret:
        """Rows that stay: exact, and its shuffle is between two."""
        kept = compact.plain(self._plain, whole(placed), x.share, k)
        return Secret(kept, x.frac, x.width)

    def tokens(self, ids: Sequence[int] | None, count: int, vocab: int) -> Value:
        if ids is None or len(ids) != count:
            raise MpcacheError(f"expected {count} token ids")
        return torch.tensor(list(ids), dtype=torch.long)
