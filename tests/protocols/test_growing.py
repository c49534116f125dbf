"""Appending with room for more equals joining, for tensors, shares and masked shares."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from mpcache.protocols import secret
from mpcache.protocols.growing import LEAST_ROOM, Growing
from mpcache.protocols.operation import Value
from mpcache.protocols.secret import Kept, Secret


def numbers(count: int, start: int) -> torch.Tensor:
    return torch.arange(start, start + 2 * count * 3).reshape(2, count, 3)


KINDS: dict[str, Callable[[int, int], Value]] = {
    "tensor": numbers,
    "secret": lambda count, start: Secret(numbers(count, start), 16),
    "kept": lambda count, start: Kept(numbers(count, start), numbers(count, start + 9), 16, 0),
    "counted": lambda count, start: Kept(numbers(count, start).to("meta"), None, 16, -1),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("sizes", [[1] * 40, [3, LEAST_ROOM, 1, 2 * LEAST_ROOM, 1]])
def test_appending_is_joining(kind: str, sizes: list[int]) -> None:
    make = KINDS[kind]
    whole = make(5, 0)
    growing = Growing(whole)
    for number, size in enumerate(sizes):
        fresh = make(size, 1000 * number)
        if isinstance(whole, torch.Tensor):
            whole = torch.cat([whole, fresh], 1)
            assert torch.equal(growing.add(fresh), whole)
            continue
        whole = secret.cat([whole, fresh], 1)
        got = growing.add(fresh)
        assert type(got) is type(whole) and got.shape == whole.shape and got.frac == 16
        if not whole.share.is_meta:
            assert torch.equal(got.share, whole.share)


def test_what_is_shared_with_others_stays_as_it_was() -> None:
    """Two caches may start from the same tokens."""
    begun = numbers(4, 0)
    first, second = Growing(begun), Growing(begun)
    a, b = first.add(numbers(1, 50)), second.add(numbers(1, 80))
    assert torch.equal(begun, numbers(4, 0))
    assert torch.equal(a[:, 4:], numbers(1, 50)) and torch.equal(b[:, 4:], numbers(1, 80))


def test_kinds_do_not_mix() -> None:
    with pytest.raises(TypeError, match="another kind"):
        Growing(numbers(2, 0)).add(Secret(numbers(1, 0), 16))
