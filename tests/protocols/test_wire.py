"""Integers of any number of bits on the wire: what is packed comes out again, in as few bytes."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpcache.errors import UsageError
from mpcache.kernels.prg import storage
from mpcache.protocols.wire import Words

SHAPES = [(0,), (1,), (7,), (8,), (63,), (500,), (3, 5, 7), ()]


def low(values: torch.Tensor, bits: int) -> torch.Tensor:
    return values.to(torch.int64) & ((1 << bits) - 1 if bits < 64 else -1)


@pytest.mark.parametrize("bits", range(1, 65))
def test_every_width_comes_out_as_it_went_in(bits: int) -> None:
    """The low bits of any int64, in all shapes, and n bits / 8 bytes for n elements."""
    generator = torch.Generator().manual_seed(bits)
    for shape in SHAPES:
        values = torch.randint(-(2**63), 2**63 - 1, shape, generator=generator)
        words = Words(shape, bits)
        sent = words.pack(values)
        assert sent.dtype == words.spec.dtype and tuple(sent.shape) == words.spec.shape
        count = math.prod(shape)
        assert sent.numel() * sent.element_size() == words.nbytes == -(-count * bits // 8)
        got = words.unpack(sent)
        assert tuple(got.shape) == shape
        assert torch.equal(low(got, bits), low(values, bits))


@pytest.mark.parametrize("bits", range(1, 65))
def test_the_ends_of_every_width(bits: int) -> None:
    ends = [0, 1, (1 << bits) - 1, 1 << (bits - 1), (1 << (bits - 1)) - 1]
    values = torch.tensor([end - (1 << 64) if end >> 63 else end for end in ends * 3])
    words = Words(tuple(values.shape), bits)
    assert torch.equal(low(words.unpack(words.pack(values)), bits), low(values, bits))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_narrow_integers_need_not_be_widened_first(dtype: torch.dtype) -> None:
    width = 8 * dtype.itemsize
    values = torch.arange(-90, 91).to(dtype)
    for bits in range(1, width + 1):
        words = Words((181,), bits)
        assert torch.equal(low(words.unpack(words.pack(values)), bits), low(values, bits))


@given(st.integers(1, 64), st.lists(st.integers(-(2**63), 2**63 - 1), max_size=70))
def test_any_integers(bits: int, values: list[int]) -> None:
    words = Words((len(values),), bits)
    got = words.unpack(words.pack(torch.tensor(values, dtype=torch.int64)))
    modulus = 1 << bits
    assert [value % modulus for value in got.tolist()] == [value % modulus for value in values]


def test_storage_is_the_narrowest_that_holds_them() -> None:
    found = [storage(bits) for bits in (1, 8, 9, 16, 17, 32, 33, 64)]
    assert found == [torch.uint8] * 2 + [torch.int16] * 2 + [torch.int32] * 2 + [torch.int64] * 2


@pytest.mark.parametrize("bits", [0, 65])
def test_no_bits_and_too_many_are_refused(bits: int) -> None:
    with pytest.raises(UsageError, match="1 to 64 bits"):
        _ = Words((3,), bits).nbytes
