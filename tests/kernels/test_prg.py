"""Keystreams: the standard's vectors, and equal calls give equal elements."""

from __future__ import annotations

import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from mpcache.errors import UsageError
from mpcache.kernels import prg

SEED = bytes.fromhex("2b7e151628aed2a6abf7158809cf4f3c")  # NIST SP 800-38A, F.5.1
COUNTER = bytes.fromhex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff")
PLAIN = bytes.fromhex(
    "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
    "30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710"
)
CIPHERED = bytes.fromhex(
    "874d6191b620e3261bef6864990db6ce9806f66b7970fdff8617187bb9fffdff"
    "5ae4df3edbd5d35e5b4f09020db03eab1e031dda2fbe03d1792170a0f3009cee"
)


def keystream(seed: bytes, block: bytes, count: int) -> bytes:
    """Counter mode by hand from single enciphered blocks."""
    cipher = Cipher(algorithms.AES(seed), modes.ECB()).encryptor()
    first = int.from_bytes(block, "big")
    blocks = ((first + i) % (1 << 128) for i in range(-(-count // 16)))
    return b"".join(cipher.update(b.to_bytes(16, "big")) for b in blocks)[:count]


def test_the_reference_gives_the_standards_vector() -> None:
    stream = keystream(SEED, COUNTER, 64)
    assert bytes(a ^ b for a, b in zip(stream, PLAIN, strict=True)) == CIPHERED


def test_the_stream_is_counter_mode_from_its_number() -> None:
    for number in (0, 5, 2**64 - 1):
        block = number.to_bytes(8, "big") + bytes(8)
        assert prg.Stream(SEED, number).bytes(1000) == keystream(SEED, block, 1000)


def test_the_standards_counter_gives_the_standards_vector(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prg.modes, "CTR", lambda block, real=modes.CTR: real(COUNTER))
    stream = prg.Stream(SEED).bytes(64)
    assert bytes(a ^ b for a, b in zip(stream, PLAIN, strict=True)) == CIPHERED


@given(st.lists(st.integers(0, 70), max_size=8))
def test_pieces_join_to_one_stream(sizes: list[int]) -> None:
    stream = prg.Stream(SEED, 3)
    pieces = b"".join(stream.bytes(size) for size in sizes)
    assert pieces == prg.Stream(SEED, 3).bytes(sum(sizes))
    assert stream.position == sum(sizes)


@pytest.mark.parametrize("extra", [-16, -15, -1, 0, 1, 15, 16, prg._CHUNK + 7])
def test_large_pieces_are_the_same_stream(extra: int) -> None:
    size = prg._CHUNK + extra
    assert prg.Stream(SEED).bytes(size) == keystream(SEED, bytes(16), size)


@given(bits=st.integers(1, 64), count=st.integers(0, 50))
def test_elements_are_the_low_bits_of_little_endian_words(bits: int, count: int) -> None:
    got = prg.expand(SEED, count, bits)
    width = next(width for width in (1, 2, 4, 8) if bits <= 8 * width)
    assert got.dtype == prg.storage(bits) and got.itemsize == width
    stream = keystream(SEED, bytes(16), count * width)
    words = [stream[i : i + width] for i in range(0, len(stream), width)]
    signed = bits == 8 * width and width > 1
    expected = [int.from_bytes(word, "little", signed=signed) for word in words]
    if bits < 8 * width:
        expected = [value % (1 << bits) for value in expected]
    assert got.tolist() == expected


def test_masking_reaches_every_chunk() -> None:
    count = prg._CHUNK + 5
    wide = prg.Stream(SEED).bits(count, 16)
    narrow = prg.Stream(SEED).bits(count, 11)
    assert torch.equal(narrow, wide & 0x7FF)


def test_two_holders_who_make_the_same_calls_agree() -> None:
    one, other = prg.Stream(SEED), prg.Stream(SEED)
    for _ in range(3):
        assert torch.equal(one.ring((3, 5)), other.ring((3, 5)))
        assert one.bytes(7) == other.bytes(7)
        a, b = one.bits((63,), 4, torch.int16), other.bits((63,), 4, torch.int16)
        assert torch.equal(a, b) and a.dtype == torch.int16
    assert one.position == other.position
    assert not torch.equal(one.ring(4), prg.Stream(SEED, 1).ring(4))
    assert not torch.equal(prg.expand(SEED, 4), prg.expand(bytes(16), 4))


def test_what_cannot_be_drawn_is_refused() -> None:
    for call in (
        lambda: prg.Stream(b"short"),
        lambda: prg.Stream(SEED, -1),
        lambda: prg.Stream(SEED, 1 << 64),
        lambda: prg.expand(SEED, 1, 65),
        lambda: prg.expand(SEED, 1, 0),
        lambda: prg.Stream(SEED).bits(3, 20, torch.int16),
        lambda: prg.Stream(SEED).bits(3, 20, torch.float32),
    ):
        with pytest.raises(UsageError) as error:
            call()
        assert SEED.hex() not in str(error.value) and "short" not in str(error.value)


def test_a_stream_shows_its_position_only() -> None:
    stream = prg.Stream(SEED)
    stream.ring(3)
    assert repr(stream) == "Stream(at byte 24)"
