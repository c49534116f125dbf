"""Compile the CPU kernels once, so that no run waits for it: ``python -m mpcache.kernels.warm``."""

from __future__ import annotations

import numpy as np
import torch

from mpcache.kernels import dcf, packing, questions
from mpcache.kernels.bits import bit_product
from mpcache.kernels.pairs import balances, differences
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
    for dtype in (torch.int16, torch.int64):
        assert balances(differences(turns, 8).to(dtype), 3).tolist() == [[0, 0, 0]]
    _warm_tables()
    for payloads in (1, 2):
        r, paid = torch.tensor([5]), torch.ones(1, payloads, dtype=torch.int64)
        roots = torch.tensor([[1, 2]]), torch.tensor([[3, 4]])
        key = dcf.generate(r, paid, 8, *roots)
        points = torch.tensor([[4, 5]])
        shares = [dcf.evaluate(rank, roots[rank], key, points, 8, payloads) for rank in (0, 1)]
        assert (shares[0] + shares[1])[0, :, 0].tolist() == [1, 0]


def _warm_tables() -> None:
    """Packing, and a question, a node and its output by one who holds the tables whole."""
    for dtype in _WIRE:
        y = torch.full((1,), 5, dtype=dtype)
        assert int(packing.unpack_bits(packing.pack_bits(y, 3), 3, 1, dtype)) == 5
        assert int(packing.unpack_words(packing.pack_words(y, 2), 2)) == 5
    place = torch.tensor([1])
    asked = np.array([(0, 3, -1, 1, 0), (0, 3, 3, 1, 1)], dtype=np.int64)
    words = [torch.tensor([2], dtype=torch.uint8)] * 2
    bits, none = torch.zeros((3, 1), dtype=torch.uint8), torch.zeros(1, dtype=torch.uint8)
    questions.answers(place, asked, words, 0, bits)
    assert int(bits[0]) == 1
    one = np.array([1], dtype=np.int64)
    opened = questions.joined(bits, np.array([0], dtype=np.int64), one, [none])
    questions.outputs(opened, one - 1, one, words[:1], bits[2:])
    assert int(bits[2]) == 1


if __name__ == "__main__":
    warm()
