"""Differences and balances of all pairs, against torch's own selection and sums."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpcache.kernels.pairs import balances, differences


@given(
    rows=st.lists(st.integers(1, 3), max_size=2),
    size=st.integers(1, 9),
    bits=st.integers(1, 63),
    seed=st.integers(0, 99),
)
def test_differences(rows: list[int], size: int, bits: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(-(2**63), 2**63 - 1, (*rows, size), generator=generator)
    first, second = torch.triu_indices(size, size, 1)
    wanted = (x[..., first] - x[..., second]) & ((1 << bits) - 1)
    assert torch.equal(differences(x, bits), wanted)


@given(
    rows=st.lists(st.integers(1, 3), max_size=2),
    size=st.integers(1, 9),
    dtype=st.sampled_from([torch.int16, torch.int32, torch.int64]),
    seed=st.integers(0, 99),
)
def test_balances(rows: list[int], size: int, dtype: torch.dtype, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    pairs = size * (size - 1) // 2
    results = torch.randint(-(2**62), 2**62, (*rows, pairs), generator=generator).to(dtype)
    first, second = torch.triu_indices(size, size, 1)
    empty = torch.zeros((*rows, size), dtype=dtype)
    wanted = empty.index_add(-1, first, results) - empty.index_add(-1, second, results)
    assert torch.equal(balances(results, size), wanted)


@pytest.mark.parametrize("size", [2, 90])
def test_of_parts_of_other_tensors(size: int) -> None:
    """Neither needs its operand in one piece."""
    x = torch.randint(0, 1 << 30, (size, 3)).t()
    assert torch.equal(differences(x, 20), differences(x.contiguous(), 20))
    results = differences(x, 20)[::2]
    assert torch.equal(balances(results, size), balances(results.contiguous(), size))
