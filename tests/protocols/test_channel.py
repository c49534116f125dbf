"""Frames: what is packed is unpacked, sizes are what they say, and limits hold."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpcache.errors import MpcacheError
from mpcache.protocols import channel
from mpcache.protocols.channel import DTYPES, Header, Spec, frame_bytes, pack_header

specs = st.builds(
    Spec,
    st.lists(st.integers(0, 2**32 - 1), max_size=channel.MAX_DIMS)
    .filter(lambda sizes: math.prod(sizes) <= channel.MAX_ELEMENTS)
    .map(tuple),
    st.sampled_from(DTYPES),
)
headers = st.builds(
    Header,
    st.integers(0, 2**32 - 1),
    st.floats(allow_nan=False),
    st.text(max_size=200).filter(lambda label: len(label.encode()) <= channel.MAX_LABEL),
    st.lists(specs, max_size=5).map(tuple),
    st.booleans(),
)


def unpack(data: bytes) -> tuple[Header, bytes]:
    """The header at the beginning of `data`, and what is left."""
    fixed = channel.unpack_fixed(data[: channel.FIXED_BYTES])
    rest = data[channel.FIXED_BYTES :]
    label, rest = rest[: fixed.label_bytes].decode(), rest[fixed.label_bytes :]
    found = []
    for _ in range(fixed.tensors):
        dtype, dims = channel.unpack_spec(rest[: channel.SPEC_BYTES])
        rest = rest[channel.SPEC_BYTES :]
        shape = channel.unpack_dims(rest[: dims * channel.DIM_BYTES])
        rest = rest[dims * channel.DIM_BYTES :]
        found.append(Spec(shape, DTYPES[dtype]))
    return Header(fixed.step, fixed.clock, label, tuple(found), fixed.abort), rest


@given(header=headers, payload=st.binary(max_size=9))
def test_headers_round_trip(header: Header, payload: bytes) -> None:
    assert unpack(pack_header(header) + payload) == (header, payload)


@given(header=headers)
def test_sizes_are_what_is_packed(header: Header) -> None:
    packed = len(pack_header(header))
    payload = sum(math.prod(spec.shape) * spec.dtype.itemsize for spec in header.specs)
    assert channel.header_bytes(header.label, header.specs) == packed
    assert frame_bytes(header.label, header.specs) == packed + payload


def test_one_frame_byte_by_byte() -> None:
    header = Header(258, 0.5, "a:b", (Spec((1, 500), torch.int16),))
    assert pack_header(header).hex() == (
        "706d" "01" "00" "02010000" "000000000000e03f" "0300" "01"  # 2 + 1 + 1 + 4 + 8 + 2 + 1
        "613a62" "02" "02" "01000000" "f4010000"
    )  # fmt: skip
    assert frame_bytes("a:b", header.specs) == 19 + 3 + 2 + 8 + 1000
    clock = pack_header(header)[channel.CLOCK_AT :][: channel.CLOCK.size]
    assert channel.CLOCK.unpack(clock) == (0.5,)


def test_a_label_that_is_too_long() -> None:
    assert len(pack_header(Header(0, 0.0, "x" * 200, ()))) == 219
    with pytest.raises(MpcacheError, match="label of 201 bytes; at most 200"):
        pack_header(Header(0, 0.0, "x" * 199 + "ä", ()))


def fixed(**changes: int) -> bytes:
    parts = {"magic": channel.MAGIC, "version": channel.VERSION, "label": 3, **changes}
    return channel._FIXED.pack(parts["magic"], parts["version"], 0, 0, 0.0, parts["label"], 1)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (fixed(magic=0x4854), "does not speak"),
        (fixed(version=2), "frame version 2, this party 1"),
        (fixed(label=201), "201 bytes was announced; the limit is 200"),
    ],
)
def test_bytes_that_are_no_frame(data: bytes, message: str) -> None:
    with pytest.raises(MpcacheError, match=message):
        channel.unpack_fixed(data)


@pytest.mark.parametrize(("dtype", "dims"), [(len(DTYPES), 1), (255, 1), (0, 9), (0, 255)])
def test_tensors_that_do_not_fit(dtype: int, dims: int) -> None:
    with pytest.raises(MpcacheError, match=f"dtype {dtype} or {dims} dimensions"):
        channel.unpack_spec(bytes([dtype, dims]))


def test_a_tensor_that_is_too_large() -> None:
    assert channel.unpack_dims(channel._DIM.pack(2**17) * 2) == (2**17, 2**17)
    with pytest.raises(MpcacheError, match="too large"):
        channel.unpack_dims(channel._DIM.pack(2**17) * 2 + channel._DIM.pack(2))


def test_a_spec_tells_dtype_and_shape() -> None:
    spec = Spec.of(torch.zeros(3, 0, 5, dtype=torch.int32))
    assert (str(spec), spec.elements, spec.nbytes) == ("int32[3, 0, 5]", 0, 0)
    assert Spec(()).elements == 1 and Spec((63,)).nbytes == 504
