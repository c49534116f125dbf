"""Turned tables, dealt and read by compiled kernels, bit for bit what plain torch says."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcache.errors import UsageError
from mpcache.kernels.lookup import table_words, turned_tables, unit_rows
from tests.kernels.operands import operand, seeds

DTYPES = st.sampled_from([torch.uint8, torch.int16, torch.int32, torch.int64])
COUNTS = st.sampled_from([0, 1, 63, 500])


@settings(max_examples=40)
@given(
    bits=st.integers(0, 6),
    tables=st.integers(1, 3),
    count=COUNTS,
    dtype=DTYPES,
    narrow=DTYPES,
    seed=seeds,
)
def test_turned_tables_at_what_is_opened(
    bits: int, tables: int, count: int, dtype: torch.dtype, narrow: torch.dtype, seed: int
) -> None:
    size = 1 << bits
    public = operand((tables, size), torch.int64, seed)
    x, r = operand((count,), torch.int64, seed + 1), operand((count,), torch.int64, seed + 2)
    own = operand((size, tables, count), torch.int64, seed + 3).to(dtype)
    one = turned_tables(public, r, own)
    places = (torch.arange(size)[:, None] - r) & (size - 1)
    assert torch.equal(one, (public[:, places].transpose(0, 1) - own.to(torch.int64)).to(dtype))
    y = (x + r).to(narrow)
    shares = [table_words(share, y) for share in (own, one)]
    assert torch.equal((shares[0] + shares[1]).to(dtype), public[:, x & (size - 1)].to(dtype))


@settings(max_examples=40)
@given(bits=st.integers(0, 6), count=COUNTS, dtype=DTYPES, seed=seeds)
def test_unit_rows(bits: int, count: int, dtype: torch.dtype, seed: int) -> None:
    size = 1 << bits
    r = operand((count,), torch.int64, seed)
    own = operand((count, size), torch.int64, seed + 1).to(dtype)
    one = unit_rows(r, own)
    whole = (one.to(torch.int64) + own.to(torch.int64)).to(dtype)
    place = (-r & (size - 1)).unsqueeze(-1)
    assert torch.equal(whole, torch.zeros_like(own).scatter_(-1, place, 1))


def test_shapes_that_do_not_fit_are_refused() -> None:
    r, own = torch.zeros(5, dtype=torch.int64), torch.zeros((4, 2, 5), dtype=torch.int64)
    with pytest.raises(UsageError, match=r"expected \[4, 3, 5\]"):
        turned_tables(torch.zeros((3, 4), dtype=torch.int64), r, own)
    with pytest.raises(UsageError, match="power of two"):
        unit_rows(r, torch.zeros((5, 3), dtype=torch.int64))
    with pytest.raises(UsageError, match=r"\[4, 2, 3\]"):
        table_words(own, r[:3])
