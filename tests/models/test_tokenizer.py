"""Tokenizers: round trips, streaming, and folders with either kind of file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcache.errors import UsageError
from mpcache.models import registry
from mpcache.models.tokenizer import (
    CHATML_TEMPLATE,
    ByteTokenizer,
    Codec,
    StreamDecoder,
    Tokenizer,
    tokenizer_from_folder,
)

SMOLLM2: list[Codec] = []
STAND_INS = [ByteTokenizer(256), ByteTokenizer(50_272)]


@pytest.fixture(scope="module", autouse=True)
def _smollm2(smollm2_source: registry.Source) -> None:
    SMOLLM2[:] = [smollm2_source.tokenizer()]  # hypothesis and fixtures do not mix


def streamed(codec: Codec, ids: list[int]) -> str:
    stream = codec.stream()
    return "".join(stream.push(token) for token in ids) + stream.flush()


# SmolLM2's vocabulary lacks these bytes of UTF-8, and its tokenizer has always dropped them.
LACKING = "\x04\x06\x13\x14\x16\x1d"  # and 0xf1, 0xf2, which begin U+40000 to U+BFFFF
CHARACTERS = st.characters(
    max_codepoint=0x3FFFF, exclude_categories=["Cs"], exclude_characters=LACKING
)


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.text(CHARACTERS), st.from_regex(r"[ \na-zé0-9<|>_😀]{0,40}", fullmatch=True)))
def test_text_survives(text: str) -> None:
    ids = SMOLLM2[0].encode(text)
    assert SMOLLM2[0].decode(ids) == text
    assert streamed(SMOLLM2[0], ids) == text


@settings(max_examples=150, deadline=None)
@given(st.text())
def test_text_survives_as_bytes(text: str) -> None:
    for codec in STAND_INS:
        ids = codec.encode(text)
        assert codec.decode(ids) == text
        assert streamed(codec, ids) == text


def test_bytes_without_a_token_are_dropped() -> None:
    assert SMOLLM2[0].decode(SMOLLM2[0].encode(f"a{LACKING}b")) == "ab"


@settings(max_examples=150, deadline=None)
@given(st.lists(st.integers(0, 49_151), max_size=12))
def test_streaming_any_tokens_adds_up(ids: list[int]) -> None:
    for codec in [*SMOLLM2, STAND_INS[1]]:
        assert streamed(codec, ids) == codec.decode(ids)


def test_half_a_character_is_never_shown() -> None:
    codec = SMOLLM2[0]
    ids = codec.encode("a🦜b")
    stream = codec.stream()
    pieces = [stream.push(token) for token in ids]
    assert len(ids) > 3 and "" in pieces and [p for p in pieces if p] == ["a", "🦜", "b"]


def test_an_unfinished_character_comes_with_the_flush() -> None:
    stream = ByteTokenizer(300).stream()
    assert stream.push(ByteTokenizer(300).encode("é")[0]) == ""
    assert stream.flush() == "\ufffd" and stream.flush() == ""


def test_a_decoder_that_takes_text_back_never_repeats_itself() -> None:
    stream = StreamDecoder(lambda ids: {1: "ab", 2: "a", 3: "abc"}[len(ids)])
    assert [stream.push(0), stream.push(0), stream.push(0)] == ["ab", "", "c"]


def test_stand_in() -> None:
    codec = ByteTokenizer(50_272)
    assert codec.encode("A") == [69] and codec.decode([40_000]) == "<40000>"
    assert codec.meaningless and codec.chat("x") is None and codec.empty == []
    assert max(ByteTokenizer(100).encode("\xff" * 3)) < 100


# --- folders -------------------------------------------------------------------------------------


def _opt_like(folder: Path, settings: dict[str, object] | None) -> None:
    """`vocab.json` and `merges.txt` as in OPT: special tokens first, then bytes, then merges."""
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    tokens = ["<s>", "<pad>", "</s>", "<unk>", *letters, "he", "Ġhe"]
    (folder / "vocab.json").write_text(json.dumps({t: i for i, t in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\nh e\nĠ he\n")
    (folder / "config.json").write_text('{"model_type": "opt"}')
    if settings is not None:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))


@pytest.mark.parametrize(
    "options",
    [
        None,
        {"add_bos_token": True, "bos_token": {"content": "</s>", "normalized": True}},
        {"add_bos_token": True, "bos_token": "</s>", "add_prefix_space": False},
    ],
)
def test_opt_pair_of_files(options: dict[str, object] | None, tmp_path: Path) -> None:
    _opt_like(tmp_path, options)
    codec = tokenizer_from_folder(tmp_path)
    ids = codec.encode("he he</s>")
    assert ids[0] == 2 and ids.count(2) == 1, "one </s> begins the text; the spelled one is text"
    assert [codec.inner.id_to_token(token) for token in ids[1:3]] == ["he", "Ġhe"]
    assert codec.decode(ids) == "he he</s>" and codec.empty == [2]
    assert codec.chat("he") is None


def test_opt_pair_equals_transformers(tmp_path: Path) -> None:
    from transformers import GPT2Tokenizer

    _opt_like(tmp_path, {"add_bos_token": True, "bos_token": "</s>", "unk_token": "</s>"})
    theirs = GPT2Tokenizer(
        vocab=str(tmp_path / "vocab.json"), merges=str(tmp_path / "merges.txt"), bos_token="</s>"
    )
    text = "he said: hehe, 42 — naïve 🦜\n\n  he"
    expected = theirs.encode(text, add_special_tokens=False)
    assert tokenizer_from_folder(tmp_path).encode_bare(text) == expected


def test_bos_can_be_declined(tmp_path: Path) -> None:
    _opt_like(tmp_path, {"add_bos_token": False})
    assert tokenizer_from_folder(tmp_path).empty == []


def test_tokenizer_json_keeps_its_own_post_processor(tmp_path: Path) -> None:
    _opt_like(tmp_path, None)
    inner = tokenizer_from_folder(tmp_path).inner
    inner.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 0)]
    )
    inner.enable_padding(length=20)
    inner.enable_truncation(3)
    inner.save(str(tmp_path / "tokenizer.json"))
    codec = tokenizer_from_folder(tmp_path)
    assert codec.encode("hehehe")[0] == 0
    assert len(codec.encode("hehehe")) == 4, "neither padded nor cut"


def test_chat_of_a_folder(tmp_path: Path) -> None:
    inner = SMOLLM2[0].inner  # type: ignore[attr-defined]
    inner.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": CHATML_TEMPLATE}))
    assert tokenizer_from_folder(tmp_path).chat("Hi") == SMOLLM2[0].chat("Hi")
    (tmp_path / "chat_template.jinja").write_text("{{ another }}")
    assert tokenizer_from_folder(tmp_path).chat("Hi") is None


def test_chat_needs_its_tokens(tmp_path: Path) -> None:
    _opt_like(tmp_path, {"chat_template": CHATML_TEMPLATE})
    codec = tokenizer_from_folder(tmp_path)
    assert isinstance(codec, Tokenizer)
    with pytest.raises(UsageError, match="im_start"):
        codec.chat("Hi")


def test_missing_and_damaged(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"no tokenizer; expected tokenizer\.json"):
        tokenizer_from_folder(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(UsageError, match="cannot be read"):
        tokenizer_from_folder(tmp_path)
