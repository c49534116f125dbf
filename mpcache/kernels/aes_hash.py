"""A hash of 128-bit seeds from AES-128 (FIPS 197) under one public key.

H(s, number) = AES(x) xor x, where x = sigma(s) xor number and sigma(high, low) = (high xor low,
high): Guo, Katz, Wang and Yu, "Efficient and Secure Multiparty Computation from Fixed-Key Block
Ciphers", IEEE S&P 2020, whose hash is circular correlation robust with AES as a random permutation.
Numbers separate the uses of one seed; a seed is two words, the low one first, and so is its hash.
"""

from __future__ import annotations

import functools
import operator
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

KEY = bytes.fromhex("243f6a8885a308d313198a2e03707344")  # the first 128 bits of pi's fraction
_ROUNDS = 10
_WORD = ir.IntType(64)
_BLOCK = ir.VectorType(_WORD, 2)


@functools.cache
def _substitutions() -> bytes:
    """The S-box of FIPS 197, section 5.1.1, from powers of 3, a generator of the field's units."""
    powers, power = [], 1
    for _ in range(255):
        powers.append(power)
        doubled = power << 1
        power ^= (doubled ^ 0x11B) if doubled > 255 else doubled
    inverses = {value: powers[-i % 255] for i, value in enumerate(powers)} | {0: 0}
    box = bytearray(256)
    for value, inverse in inverses.items():
        spread = functools.reduce(operator.xor, (inverse << shift for shift in range(5)))
        box[value] = (spread & 255) ^ (spread >> 8) ^ 0x63
    return bytes(box)


def round_keys(key: bytes) -> list[bytes]:
    """The 11 round keys of a 16-byte key: FIPS 197, section 5.2."""
    box, constant = _substitutions(), 1
    words = [key[at : at + 4] for at in range(0, 16, 4)]
    while len(words) < 4 * (_ROUNDS + 1):
        word = words[-1]
        if len(words) % 4 == 0:
            word = bytes(box[byte] for byte in word[1:] + word[:1])
            word = bytes([word[0] ^ constant]) + word[1:]
            constant = (constant << 1) ^ (0x11B if constant & 0x80 else 0)
        words.append(bytes(a ^ b for a, b in zip(words[-4], word, strict=True)))
    return [b"".join(words[at : at + 4]) for at in range(0, len(words), 4)]


def _constant(block: bytes) -> ir.Constant:
    return ir.Constant(_BLOCK, [int.from_bytes(half, "little") for half in (block[:8], block[8:])])


def _generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
    """The hash in instructions of AES-NI (Intel SDM volume 1, section 12.13)."""
    low, high, number = values
    shape = ir.FunctionType(_BLOCK, [_BLOCK, _BLOCK])
    middle, last = (
        cgutils.get_or_insert_function(builder.module, shape, f"llvm.x86.aesni.{name}")
        for name in ("aesenc", "aesenclast")
    )
    first, second = ir.IntType(32)(0), ir.IntType(32)(1)
    x = builder.insert_element(ir.Constant(_BLOCK, ir.Undefined), builder.xor(high, number), first)
    x = builder.insert_element(x, builder.xor(high, low), second)
    keys = [_constant(key) for key in round_keys(KEY)]
    state = builder.xor(x, keys[0])
    for key in keys[1:-1]:
        state = builder.call(middle, [state, key])
    state = builder.xor(builder.call(last, [state, keys[-1]]), x)
    words = [builder.extract_element(state, place) for place in (first, second)]
    return context.make_tuple(builder, signature.return_type, words)


@intrinsic
def hash_words(typing: Any, low: Any, high: Any, number: Any) -> Any:
    """H((low, high), number) for numba kernels: three uint64 in, two out.

    Call `processor.has_aes` before compiling a kernel that uses it.
    """
    return types.UniTuple(types.uint64, 2)(types.uint64, types.uint64, types.uint64), _generate


def hash_blocks(seeds: np.ndarray, number: np.ndarray | int) -> np.ndarray:
    """H of many seeds, on any processor.

    Args:
        seeds: uint64 [..., 2].
        number: which hash of each seed, one for all or uint64 [...].

    Returns:
        uint64 [..., 2].
    """
    x = np.empty(seeds.shape, dtype="<u8")
    x[..., 0] = seeds[..., 1] ^ np.asarray(number, dtype=np.uint64)
    x[..., 1] = seeds[..., 0] ^ seeds[..., 1]
    cipher = Cipher(algorithms.AES(KEY), modes.ECB()).encryptor()
    out = np.frombuffer(cipher.update(x.tobytes()), dtype="<u8").reshape(x.shape)
    return (out ^ x).astype(np.uint64, copy=False)
