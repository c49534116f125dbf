"""Compile the CPU kernels once, so that no run waits for it: ``python -m mpcache.kernels.warm``."""

from __future__ import annotations

import torch

from mpcache.kernels import bittree, bittree_dealer, dcf, lookup, packing, prg
from mpcache.kernels.bits import bit_product
from mpcache.kernels.ring import prepare, ring_product
from mpcache.kernels.tally import tally

_ROWS = (1, 20, 80, 600)  # one of each way that `choose` may pick
_DTYPES = (torch.int64, torch.int32, torch.int16)
_WIRE = (torch.uint8, torch.int16, torch.int32, torch.int64)


def warm() -> None:
    """Call every kernel on small operands of every dtype and layout; the compiler caches them."""
    for dtype in _DTYPES:
        stored = torch.ones(64, 96, dtype=dtype)
        for weight in (stored, stored.t().contiguous().t()):
            for rows in _ROWS:
                x = torch.ones(rows, 64, dtype=torch.int64)
                assert int(ring_product(x, weight)[0, 0]) == 64
            prepared = prepare(weight)
            assert int(ring_product(torch.ones(2, 64, dtype=torch.int64), prepared)[0, 0]) == 64
        for rows in (1, 40):
            chosen = torch.full((rows, 8), 0xFF, dtype=torch.uint8)
            assert int(bit_product(chosen, stored)[0, 0]) == 64
    batch = torch.ones(2, 64, 96, dtype=torch.int64)
    for weight in (batch, batch.transpose(1, 2).contiguous().transpose(1, 2)):
        assert int(ring_product(torch.ones(2, 1, 64, dtype=torch.int64), weight)[0, 0, 0]) == 64
    table, turns = torch.ones(1, 3, 4, dtype=torch.int64), torch.zeros(1, 3, dtype=torch.int64)
    for dtype in (torch.uint8, torch.int16):
        assert int(tally(table.to(dtype), turns)[0, 0]) == 3
    _warm_tables()
    for payloads in (1, 2):
        r, paid = torch.tensor([5]), torch.ones(1, payloads, dtype=torch.int64)
        roots = torch.tensor([[1, 2]]), torch.tensor([[3, 4]])
        key = dcf.generate(r, paid, 8, *roots)
        points = torch.tensor([[4, 5]])
        shares = [dcf.evaluate(rank, roots[rank], key, points, 8, payloads) for rank in (0, 1)]
        assert (shares[0] + shares[1])[0, :, 0].tolist() == [1, 0]


def _warm_tables() -> None:
    """A comparison of 5 with itself on 15 bits, by one who holds the tables whole."""
    words, mask = torch.zeros(1, dtype=torch.int32), torch.zeros(1, dtype=torch.uint8)
    for dtype in _WIRE:
        y, widths = torch.full((1,), 5, dtype=dtype), [5] if dtype == torch.uint8 else [5, 5, 5]
        below = bittree_dealer.below_words(y, widths, [words] * len(widths))
        sizes = [1] if len(widths) == 1 else [2, 1]
        passed, sent = bittree.first_inputs(y, below, widths, 0, sizes, [mask])
        assert int(bittree.near_inputs(y, below[0], 0, 5, (0,), 0)) == 1
        packed = packing.pack_bits(y, 3)
        assert int(packing.unpack_bits(packed, 3, 1, dtype)) == 5
        assert int(packing.unpack_words(packing.pack_words(y, 2), 2)) == 5
        none, r = torch.zeros((2, 1, 1), dtype=dtype), torch.zeros(1, dtype=torch.int64)
        turned = lookup.turned_tables(torch.tensor([[4, 6]]), r, none)
        assert int(lookup.table_words(turned, y)) == 6
        assert lookup.unit_rows(r, none[:, 0].t()).tolist() == [[1, 0]]
        table = torch.zeros((2, 1, 1), dtype=dtype)
        for shown in (torch.tensor([[[5]], [[3]]]), torch.tensor([[[5]], [[3]], [[3]]])):
            dealt = bittree_dealer.last_table(shown, [0, 1], mask, table)
            assert int(bittree.last_words(dealt, mask, mask)) == 5
            assert int(bittree.last_words(dealt, mask, mask, (y, 0, 1))) == -4
    for size, lowest in ((2, True), (2, False), (3, True), (3, False)):
        own = [torch.zeros(1, dtype=prg.storage(1 << bittree.inputs_of(size, lowest)))]
        bittree_dealer.node_words(mask, size, lowest, own * (2 - lowest))
    less = bittree_dealer.node_words(mask, 2, True, [mask])
    passed, _ = bittree.next_inputs(sent, sent ^ sent, passed, sizes, less, [], [2], [mask])


if __name__ == "__main__":
    warm()
