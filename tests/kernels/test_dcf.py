"""Distributed comparisons: right at every point, alike with and without AES-NI, and hiding r."""

from __future__ import annotations

import secrets
from unittest import mock

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcache.errors import UsageError
from mpcache.kernels import aes_hash, dcf
from mpcache.kernels.processor import has_aes

WORD = 2**64


def words(*shape: int) -> torch.Tensor:
    count = int(np.prod(shape))
    return torch.from_numpy(np.frombuffer(secrets.token_bytes(8 * count), np.int64).copy()).view(
        shape
    )


def signed(value: int) -> int:
    return value - WORD if value >= WORD // 2 else value


def shares(
    r: torch.Tensor, payload: torch.Tensor, bits: int, points: torch.Tensor
) -> list[torch.Tensor]:
    roots = [words(len(r), 2) for _ in range(2)]
    key = dcf.generate(r, payload, bits, *roots)
    assert tuple(key.shape) == (len(r), dcf.key_words(bits, payload.shape[1]))
    return [dcf.evaluate(rank, roots[rank], key, points, bits, payload.shape[1]) for rank in (0, 1)]


@pytest.mark.parametrize("payloads", [1, 2, 3])
@pytest.mark.parametrize("bits", range(1, 7))
def test_every_point_of_every_comparison(bits: int, payloads: int) -> None:
    r, points = torch.arange(1 << bits), torch.arange(1 << bits).repeat(1 << bits, 1)
    payload = words(1 << bits, payloads)
    zero, one = shares(r, payload, bits, points)
    wanted = (points < r.unsqueeze(1)).long().unsqueeze(-1) * payload.unsqueeze(1)
    assert torch.equal(zero + one, wanted)


@settings(max_examples=20, deadline=None)
@given(
    bits=st.sampled_from([17, 24, 46, 63, 64]),
    drawn=st.lists(st.tuples(st.integers(0), st.integers(0)), min_size=1, max_size=40),
    data=st.data(),
)
def test_wide_comparisons(bits: int, drawn: list[tuple[int, int]], data: st.DataObject) -> None:
    top = (1 << bits) - 1
    pairs = [(a & top, b & top) for a, b in drawn]
    pairs += [(0, 0), (top, top), (top, 0), (0, top), (top, top - 1), (1 << (bits - 1), top >> 1)]
    near = data.draw(st.integers(0, top))
    pairs += [(near, near), (near, max(near - 1, 0))]
    r = torch.tensor([signed(a) for a, _ in pairs])
    points = torch.tensor([[signed(b)] for _, b in pairs])
    payload = words(len(pairs), 2)
    zero, one = shares(r, payload, bits, points)
    below = torch.tensor([[b < a] for a, b in pairs]).long().unsqueeze(-1)
    assert torch.equal(zero + one, below * payload.unsqueeze(1))


@pytest.mark.skipif(not has_aes(), reason="this processor has no instructions for AES")
@pytest.mark.parametrize("bits", [1, 5, 63, 64])
@pytest.mark.parametrize("payloads", [1, 2, 3])
def test_equal_with_and_without_instructions(bits: int, payloads: int) -> None:
    count, each = 67, 5
    r, payload = words(count), words(count, payloads)
    points, roots = words(count, each), [words(count, 2) for _ in range(2)]
    key = dcf.generate(r, payload, bits, *roots)
    fast = [dcf.evaluate(rank, roots[rank], key, points, bits, payloads) for rank in (0, 1)]
    with mock.patch.object(dcf, "has_aes", lambda: False):
        assert torch.equal(dcf.generate(r, payload, bits, *roots), key)
        for rank in (0, 1):
            slow = dcf.evaluate(rank, roots[rank], key, points, bits, payloads)
            assert torch.equal(slow, fast[rank])


def test_the_hash_is_aes_under_the_public_key() -> None:
    """One block by hand: sigma(s) xor number, enciphered, and added to itself."""
    low, high, number = 0x0123456789ABCDEF, 0xFEDCBA9876543210, 7
    x = (high ^ number).to_bytes(8, "little") + (low ^ high).to_bytes(8, "little")
    cipher = Cipher(algorithms.AES(aes_hash.KEY), modes.ECB()).encryptor()
    wanted = bytes(a ^ b for a, b in zip(cipher.update(x), x, strict=True))
    got = aes_hash.hash_blocks(np.array([low, high], dtype=np.uint64), number)
    assert got.tobytes() == wanted


def test_round_keys_of_the_standard() -> None:
    """FIPS 197, appendix A.1."""
    keys = aes_hash.round_keys(bytes.fromhex("2b7e151628aed2a6abf7158809cf4f3c"))
    assert keys[1].hex() == "a0fafe1788542cb123a339392a6c7605"
    assert keys[10].hex() == "d014f9a8c9ee2589e13f0cc8b6630ca6"


def test_what_one_party_sees_is_balanced() -> None:
    """Key words and one party's results have as many ones as zeros, for r = 0 as for any."""
    count = 4000
    for value in (0, (1 << 63) - 1):
        r, payload = torch.full((count,), value), torch.ones(count, 2, dtype=torch.int64)
        roots = [words(count, 2) for _ in range(2)]
        key = dcf.generate(r, payload, 63, *roots)
        points = torch.zeros(count, 1, dtype=torch.int64)
        for seen in (key, dcf.evaluate(0, roots[0], key, points, 63, 2)):
            rows = seen.reshape(count, -1).numpy().view(np.uint8)
            ones = np.unpackbits(rows).mean()
            bits = 8 * rows.size
            assert abs(ones - 0.5) < 6 * 0.5 / bits**0.5 + 2.0 / rows.shape[1]


def test_a_flipped_bit_shows() -> None:
    r, payload = torch.tensor([1000]), torch.tensor([[1]])
    roots = [words(1, 2) for _ in range(2)]
    key = dcf.generate(r, payload, 16, *roots)
    points = torch.arange(0, 65536, 97).unsqueeze(0)
    good = sum(dcf.evaluate(rank, roots[rank], key, points, 16, 1) for rank in (0, 1))
    key[0, 0] ^= 1 << 20
    bad = sum(dcf.evaluate(rank, roots[rank], key, points, 16, 1) for rank in (0, 1))
    assert not torch.equal(good, bad)


def test_refusals() -> None:
    with pytest.raises(UsageError, match="1 to 64 bits"):
        dcf.key_words(65, 1)
    with pytest.raises(UsageError, match=r"expected torch\.int64"):
        dcf.generate(
            torch.zeros(3, dtype=torch.int32),
            torch.zeros(3, 1, dtype=torch.int64),
            8,
            torch.zeros(3, 2, dtype=torch.int64),
            torch.zeros(3, 2, dtype=torch.int64),
        )
    with pytest.raises(UsageError, match="expected 0 or 1"):
        dcf.evaluate(2, words(1, 2), words(1, dcf.key_words(8, 1)), words(1, 1), 8, 1)
