"""A secret refuses to act as a number, and its local arithmetic is exact in the ring."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpcache.errors import MpcacheError
from mpcache.protocols import secret
from mpcache.protocols.secret import Secret

NO_VALUE = "a Secret has no value here"
ring = st.integers(-(2**63), 2**63 - 1)


def make(*shape: int, frac: int = 16) -> Secret:
    return Secret(torch.arange(1, 1 + torch.Size(shape).numel()).reshape(shape), frac)


@pytest.mark.parametrize(
    "use",
    [
        bool,
        int,
        float,
        complex,
        len,
        list,
        pickle.dumps,
        copy.deepcopy,
        numpy.asarray,
        lambda x: [10][x],
        lambda x: 1 in x,
        lambda x: x == x,
        lambda x: x != x,
        lambda x: x == 0,
        lambda x: x < x,
        lambda x: x <= 0,
        lambda x: x > 0,
        lambda x: x >= x,
        lambda x: x * 2,
        lambda x: 2 * x,
        lambda x: x * x,
        lambda x: x @ x,
        lambda x: x / 2,
        lambda x: x if x else None,
        lambda x: next(iter(x)),
    ],
)
def test_a_secret_is_no_number(use: Callable[[Secret], Any]) -> None:
    for value in (make(1), make(3), make(2, 2)):
        with pytest.raises(TypeError, match=NO_VALUE):
            use(value)


def test_a_secret_is_no_key() -> None:
    with pytest.raises(TypeError, match="unhashable"):
        {make(1): 1}


def test_repr_shows_the_shape_only() -> None:
    value = Secret(torch.tensor([[123456789, 987654321]]), 20)
    for text in (repr(value), str(value), f"{value}", f"{[value]}"):
        assert "Secret(shape=[1, 2], frac=20)" in text
        assert "123456789" not in text and "987654321" not in text


def test_no_attribute_can_be_added() -> None:
    with pytest.raises(AttributeError):
        make(1).value = 3  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "index",
    [torch.tensor([0]), [0, 1], numpy.array([0]), "0", 0.0, (0, [1]), torch.tensor([True] * 3)],
)
def test_positions_are_public(index: Any) -> None:
    with pytest.raises(TypeError, match="public integers and slices"):
        make(3, 3)[index]
    with pytest.raises(TypeError, match="public integers and slices"):
        make(3, 3)[make(1)]


def test_public_positions() -> None:
    value = make(3, 4)
    assert value[1, ::2].share.tolist() == [5, 7]
    assert value[..., None, -1].share.tolist() == [[4], [8], [12]]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int32, torch.bool])
def test_a_share_is_a_ring_element(dtype: torch.dtype) -> None:
    with pytest.raises(TypeError, match="a share is int64"):
        Secret(torch.ones(3, dtype=dtype), 16)
    with pytest.raises(TypeError, match="a share is int64"):
        make(3).times(0.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("addend", [1, 1.0, torch.ones(3), torch.ones(3, dtype=torch.int64), None])
def test_public_addends_are_refused(addend: Any) -> None:
    for use in (lambda x: x + addend, lambda x: x - addend):
        with pytest.raises(TypeError, match=r"Machine\.shift"):
            use(make(3))
    with pytest.raises(TypeError):
        addend + make(3)


def test_fractional_bits_must_agree() -> None:
    for use in (
        lambda x, y: x + y,
        lambda x, y: x - y,
        lambda x, y: secret.cat([x, y], 0),
        lambda x, y: secret.stack([x, y]),
    ):
        with pytest.raises(MpcacheError, match="fractional bits differ: 16 and 20"):
            use(make(3), make(3, frac=20))


@given(x=st.lists(ring, min_size=2, max_size=2), y=st.lists(ring, min_size=2, max_size=2), k=ring)
def test_linear_arithmetic_is_that_of_the_ring(x: list[int], y: list[int], k: int) -> None:
    a, b = Secret(torch.tensor(x), 16), Secret(torch.tensor(y), 16)
    cases = [
        (a + b, [p + q for p, q in zip(x, y, strict=True)]),
        (a - b, [p - q for p, q in zip(x, y, strict=True)]),
        (-a, [-p for p in x]),
        (a.times(k), [p * k for p in x]),
        (a.sum(0, keepdim=True), [x[0] + x[1]]),
        (a.cumsum(0), [x[0], x[0] + x[1]]),
        (a.take(torch.tensor([1, 0, 1])), [x[1], x[0], x[1]]),
        (a.pour(torch.tensor([2, 2]), 3), [0, 0, x[0] + x[1]]),
    ]
    for got, want in cases:
        assert [value % 2**64 for value in got.share.tolist()] == [v % 2**64 for v in want]
        assert got.frac == 16


def test_the_point_moves() -> None:
    value = make(3)
    assert value.halved(3).frac == 19 and value.halved(3).share is value.share
    assert value.times(torch.tensor([2, 3, 4]), 5).frac == 21


def test_shapes_follow_torch() -> None:
    value = make(2, 3, 4)
    assert tuple(value.reshape(6, 4).shape) == (6, 4)
    assert tuple(value.transpose(0, 2).shape) == (4, 3, 2)
    assert tuple(value.permute(1, 2, 0).shape) == (3, 4, 2)
    assert tuple(value.unsqueeze(1).squeeze(1).flatten(1).shape) == (2, 12)
    assert tuple(value[:, :1].expand(2, 5, 4).contiguous().shape) == (2, 5, 4)
    assert value.ndim == 3
    assert tuple(secret.stack([value, value], 1).shape) == (2, 2, 3, 4)
    assert tuple(secret.cat([value, value], 1).shape) == (2, 6, 4)
