"""Tables turned by public amounts and summed, against a loop over elements."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpcache.kernels.tally import tally


def slowly(table: torch.Tensor, turns: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    rows, count, cells = table.shape
    out = torch.zeros(cells, rows, dtype=torch.int64)
    for cell in range(cells):
        for row in range(rows):
            for i in range(count):
                entry = table[row, i, (cell - int(turns[row, i])) % cells]
                out[cell, row] += int(weights[row, i]) * int(entry)
    return out.to(table.dtype).to(torch.int64)


@given(
    bits=st.integers(0, 5),
    rows=st.integers(1, 4),
    count=st.integers(0, 7),
    dtype=st.sampled_from([torch.uint8, torch.int16, torch.int64]),
    seed=st.integers(0, 99),
)
def test_equals_a_loop(bits: int, rows: int, count: int, dtype: torch.dtype, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    cells, low = 1 << bits, 0 if dtype == torch.uint8 else -120
    table = torch.randint(low, 120, (rows, count, cells), generator=generator).to(dtype)
    turns = torch.randint(0, cells, (rows, count), generator=generator)
    weights = torch.randint(0, 2, (rows, count), generator=generator)
    assert torch.equal(tally(table, turns, weights), slowly(table, turns, weights))
    ones = torch.ones_like(weights)
    assert torch.equal(tally(table, turns), slowly(table, turns, ones))


def test_leading_dimensions_and_masks_that_broadcast() -> None:
    generator = torch.Generator().manual_seed(3)
    table = torch.randint(-9, 9, (2, 3, 5, 8), generator=generator)
    turns = torch.randint(0, 8, (2, 3, 5), generator=generator)
    mask = torch.tensor([1, 0, 1, 1, 0])
    got = tally(table, turns, mask)
    assert got.shape == (8, 2, 3)
    flat = tally(table.reshape(6, 5, 8), turns.reshape(6, 5), mask.expand(6, 5))
    assert torch.equal(got.reshape(8, 6), flat)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("rows", [1, 3])
def test_batches_that_are_parts_of_larger_ones(rows: int, transposed: bool) -> None:
    """What a cache with room for more tokens hands to a product."""
    from mpcache.kernels.ring import ring_product

    generator = torch.Generator().manual_seed(4)
    room = torch.randint(-(2**62), 2**62, (3, 11, 6), generator=generator)
    part = room[:, :7]
    part = part.transpose(1, 2) if transposed else part
    x = torch.randint(-(2**62), 2**62, (3, rows, part.shape[1]), generator=generator)
    assert torch.equal(ring_product(x, part), x @ part)
