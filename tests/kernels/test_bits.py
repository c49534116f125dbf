"""Products with matrices of bits, bit for bit, by both ways, at any shape."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpcache.errors import UsageError
from mpcache.kernels import bits as kernel
from mpcache.kernels.bits import bit_product, packed_bytes

from .operands import WEIGHTS, dtypes, operand, reference, seeds


def packed(dense: torch.Tensor) -> torch.Tensor:
    """0/1 [rows, inputs] as bits, with ones in the bits past the inputs, which must not count."""
    short = -dense.shape[1] % 8
    padded = torch.cat([dense, torch.ones(dense.shape[0], short, dtype=dense.dtype)], 1)
    return torch.from_numpy(
        np.packbits(padded.to(torch.uint8).numpy(), axis=1, bitorder="little").copy()
    )


def ones_and_zeros(rows: int, inputs: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 2, (rows, inputs), generator=generator)


@given(
    rows=st.integers(0, 5),
    inputs=st.integers(0, 150),
    outputs=st.integers(0, 9),
    dtype=dtypes,
    seed=seeds,
)
def test_equals_integers(
    rows: int, inputs: int, outputs: int, dtype: torch.dtype, seed: int
) -> None:
    dense, w = ones_and_zeros(rows, inputs, seed), operand((inputs, outputs), dtype, seed)
    assert torch.equal(bit_product(packed(dense), w), reference(dense, w))


@pytest.mark.parametrize("dtype", WEIGHTS)
@pytest.mark.parametrize("rows", [1, 31, 32, 33, 80])
@pytest.mark.parametrize(
    ("inputs", "outputs"), [(63, 3), (500, 641), (1000, 63), (32, 1), (257, 40)]
)
def test_both_ways_equal_torch(inputs: int, outputs: int, rows: int, dtype: torch.dtype) -> None:
    """From 32 rows on 64-bit words go by tables, the inputs past a multiple of 32 one by one."""
    dense, w = ones_and_zeros(rows, inputs, rows), operand((inputs, outputs), dtype, inputs)
    assert torch.equal(bit_product(packed(dense), w), dense @ w.to(torch.int64))


def test_the_tables_are_used_from_their_crossover_on(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = []
    inner = kernel._add_by_tables
    monkeypatch.setattr(
        kernel, "_add_by_tables", lambda *given: (taken.append(given[3]), inner(*given))
    )
    w = operand((100, 7), torch.int64, 1)
    for rows in (31, 32):
        bit_product(packed(ones_and_zeros(rows, 100, 2)), w)
    bit_product(packed(ones_and_zeros(32, 100, 2)), w.to(torch.int32))
    assert taken == [96]


def test_a_part_of_a_larger_matrix_and_bits_that_are_not_contiguous() -> None:
    room, dense = operand((40, 30), torch.int64, 3), ones_and_zeros(6, 40, 4)
    bits = packed(dense)
    assert torch.equal(bit_product(bits, room[:, 5:25]), dense @ room[:, 5:25])
    assert torch.equal(bit_product(bits[::2], room), dense[::2] @ room)


def test_bytes_that_bits_take() -> None:
    assert [packed_bytes(count) for count in (0, 1, 8, 9, 49_153)] == [0, 1, 1, 2, 6_145]


@pytest.mark.parametrize(
    ("bits", "w", "message"),
    [
        (torch.zeros(1, 2), torch.zeros(16, 3, dtype=torch.int64), "torch.float32"),
        (torch.zeros(1, 2, dtype=torch.uint8), torch.zeros(16, 3), "torch.float32"),
        (
            torch.zeros(1, 2, dtype=torch.uint8),
            torch.zeros(17, 3, dtype=torch.int64),
            "a bit for each input",
        ),
        (torch.zeros(2, dtype=torch.uint8), torch.zeros(16, 3, dtype=torch.int64), "rows, bytes"),
    ],
)
def test_operands_that_do_not_fit(bits: torch.Tensor, w: torch.Tensor, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        bit_product(bits, w)
