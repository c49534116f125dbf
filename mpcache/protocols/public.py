"""Products of a secret with a public table."""

from __future__ import annotations

import torch

from mpcache.kernels.ring import ring_product
from mpcache.protocols.operation import Operation, PlainMachine, SecureMachine, Value
from mpcache.protocols.secret import Secret


class Read(Operation):
    """What a public table [n, width] says at secret places: one-hot rows [k, n] times the table.

    Local: nothing is sent. Exact but for rounding the table: half a unit.
    """

    name = "read"

    def plain(self, machine: PlainMachine, rows: Value, table: torch.Tensor) -> Value:
        return rows @ table.to(rows)

    def run(self, machine: SecureMachine, rows: Secret, table: torch.Tensor) -> Secret:
        frac = rows.frac + machine.setting.frac
        if rows.share.is_meta:
            shape = (rows.shape[0], table.shape[1])
            return Secret(torch.empty(shape, dtype=torch.int64, device="meta"), frac)
        return Secret(ring_product(rows.share.contiguous(), machine.encode(table)), frac)


read = Read()
