"""Elements of few bits on the wire, against Python's integers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpcache.errors import UsageError
from mpcache.kernels.packing import pack_bits, pack_words, packed_size, unpack_bits, unpack_words
from mpcache.kernels.prg import storage
from tests.kernels.operands import operand, seeds

DTYPES = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def slowly(values: torch.Tensor, bits: int) -> list[int]:
    """All elements as one little-endian integer, cut into bytes."""
    whole = sum((value % (1 << bits)) << (i * bits) for i, value in enumerate(values.tolist()))
    return list(whole.to_bytes(packed_size(len(values), bits), "little"))


@given(
    count=st.one_of(st.integers(0, 40), st.sampled_from([63, 64, 500])),
    bits=st.integers(1, 64),
    dtype=st.sampled_from(DTYPES),
    seed=seeds,
)
def test_the_bits_of_every_element_in_order(
    count: int, bits: int, dtype: torch.dtype, seed: int
) -> None:
    values = operand((count,), torch.int64, seed).to(dtype)
    packed = pack_bits(values, bits)
    assert packed.tolist() == slowly(values, bits)
    whole = values.to(torch.int64)
    wanted = whole & ((1 << bits) - 1) if bits < 64 else whole
    assert torch.equal(unpack_bits(packed, bits, count), wanted.to(storage(bits)))
    assert torch.equal(unpack_bits(packed, bits, count, torch.int64), wanted)
    signed = wanted << (64 - bits) >> (64 - bits)
    assert torch.equal(unpack_bits(packed, bits, count, torch.int64, signed=True), signed)


@pytest.mark.parametrize("octets", range(1, 9))
@pytest.mark.parametrize("count", [1, 63, 500])
def test_whole_bytes(octets: int, count: int) -> None:
    values = operand((count,), torch.int64, octets)
    packed = pack_words(values, octets)
    stored = values.view(torch.uint8).reshape(count, 8)[:, :octets]
    assert torch.equal(packed, stored.reshape(-1))
    free = 64 - 8 * octets
    assert torch.equal(unpack_words(packed, octets), values << free >> free)
    unsigned = values & ((1 << (64 - free)) - 1) if free else values
    assert torch.equal(unpack_words(packed, octets, signed=False), unsigned)


def test_any_shape_and_stride() -> None:
    values = operand((7, 5), torch.int64, 1).to(torch.uint8)
    assert torch.equal(pack_bits(values.t(), 3), pack_bits(values.t().contiguous().view(-1), 3))
    packed = pack_bits(values, 3).repeat_interleave(2)[::2]
    assert torch.equal(unpack_bits(packed, 3, 35), values.reshape(-1) & 7)


def test_what_is_no_packed_element_is_refused() -> None:
    with pytest.raises(UsageError, match="1 to 64"):
        pack_bits(torch.zeros(3, dtype=torch.uint8), 65)
    with pytest.raises(UsageError, match="1 to 64"):
        unpack_words(torch.zeros(9, dtype=torch.uint8), 9)
    with pytest.raises(UsageError, match="float32"):
        pack_bits(torch.zeros(3), 3)
    with pytest.raises(UsageError, match=r"expected torch.uint8 \[2\]"):
        unpack_bits(torch.zeros(3, dtype=torch.uint8), 3, 5)
    with pytest.raises(UsageError, match=r"expected torch.uint8 \[6\]"):
        unpack_words(torch.zeros(7, dtype=torch.uint8), 3)
