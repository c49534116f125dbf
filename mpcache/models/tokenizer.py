"""Text to token ids and back: a checkpoint's own tokenizer, or bytes where there is none.

Text is text: a special token's spelling inside a prompt is encoded as plain characters. Special
tokens enter through the tokenizer's post-processor and the chat template only.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import tokenizers

from mpcache.errors import UsageError

_UNFINISHED = "\ufffd"  # what a decoder writes for bytes that are not, or not yet, UTF-8
CHATML_SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
CHATML_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\n" + CHATML_SYSTEM + "<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
Chat = Callable[["Tokenizer", str], list[int]]


class Codec(Protocol):
    """What a run needs of a tokenizer; `meaningless` marks a stand-in without a vocabulary."""

    meaningless: bool

    def encode(self, text: str) -> list[int]: ...
    def decode(self, ids: Sequence[int]) -> str: ...
    def chat(self, text: str) -> list[int] | None: ...
    def stream(self) -> StreamDecoder: ...

    @property
    def empty(self) -> list[int]:
        """What the empty text encodes to: nothing, or the token that begins every text."""
        ...


class StreamDecoder:
    """Turns tokens into text as they come, and never shows half a character.

    With a byte-level vocabulary the pieces that `push` returns and the one from `flush` add up to
    ``decode`` of all the ids.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode = decode
        self._ids: list[int] = []
        self._shown = ""

    def push(self, token: int) -> str:
        """The text that has become complete with `token`; often empty for emoji and the like."""
        self._ids.append(token)
        text = self._decode(self._ids)
        if text.endswith(_UNFINISHED) or not text.startswith(self._shown):
            return ""
        return self._show(text)

    def flush(self) -> str:
        """The rest, once no token will follow; bytes that never became a character included."""
        text = self._decode(self._ids)
        return self._show(text) if text.startswith(self._shown) else ""

    def _show(self, text: str) -> str:
        new, self._shown = text[len(self._shown) :], text
        return new


class Tokenizer:
    """A checkpoint's tokenizer.

    Args:
        inner: the tokenizer with its own normaliser, splitting and post-processor.
        chat: turns a user's message into the ids of a whole chat prompt; None if unknown.
    """

    meaningless = False

    def __init__(self, inner: tokenizers.Tokenizer, chat: Chat | None = None) -> None:
        inner.no_padding()
        inner.no_truncation()
        inner.encode_special_tokens = True
        self.inner, self._chat = inner, chat

    def encode(self, text: str) -> list[int]:
        """Token ids, with the begin token where the model wants one.

        Bytes that the vocabulary has no token for are dropped, as the model was trained.
        """
        return list(self.inner.encode(text).ids)

    def encode_bare(self, text: str) -> list[int]:
        """Token ids of the text alone."""
        return list(self.inner.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of `ids` without special tokens."""
        return str(self.inner.decode(list(ids), skip_special_tokens=True))

    def chat(self, text: str) -> list[int] | None:
        """The ids of a chat that opens with the user's `text`; None if the format is unknown."""
        return None if self._chat is None else self._chat(self, text)

    def stream(self) -> StreamDecoder:
        return StreamDecoder(self.decode)

    @cached_property
    def empty(self) -> list[int]:
        return self.encode("")

    def special(self, token: str) -> int:
        """The id of a special token.

        Raises:
            UsageError: the vocabulary has none of that spelling.
        """
        found = self.inner.token_to_id(token)
        if found is None:
            raise UsageError(f"the tokenizer has no token {token}; expected a chat vocabulary")
        return int(found)


class ByteTokenizer:
    """A stand-in for models without a tokenizer: one token a byte. What it decodes means nothing.

    Token = (byte + OFFSET) mod vocab, so the first ids, which models reserve, stay free. Tokens
    that are no byte decode to their number. Below 256 tokens of vocabulary bytes collide.
    """

    OFFSET = 4
    meaningless = True

    def __init__(self, vocab: int) -> None:
        self.vocab = vocab
        self.empty: list[int] = []

    def encode(self, text: str) -> list[int]:
        return [(byte + self.OFFSET) % self.vocab for byte in text.encode()]

    def decode(self, ids: Sequence[int]) -> str:
        parts = []
        for token in ids:
            byte = (token - self.OFFSET) % self.vocab
            parts.append(bytes([byte]) if byte < 256 else f"<{token}>".encode())
        return b"".join(parts).decode(errors="replace")

    def chat(self, text: str) -> list[int] | None:
        return None

    def stream(self) -> StreamDecoder:
        return StreamDecoder(self.decode)


# --- chat ----------------------------------------------------------------------------------------


def chatml(tokenizer: Tokenizer, text: str, system: str = CHATML_SYSTEM) -> list[int]:
    """The ids of SmolLM2-Instruct's chat: a system line, the user's text, the reply's head."""
    start, end = tokenizer.special("<|im_start|>"), tokenizer.special("<|im_end|>")
    newline = tokenizer.encode_bare("\n")
    ids: list[int] = []
    for role, content in (("system", system), ("user", text)):
        ids += [start, *tokenizer.encode_bare(f"{role}\n{content}"), end, *newline]
    return [*ids, start, *tokenizer.encode_bare("assistant\n")]


def knows_chatml(template: object) -> bool:
    """Whether a Jinja chat template is SmolLM2-Instruct's. Templates are never executed."""
    return isinstance(template, str) and template.strip() == CHATML_TEMPLATE.strip()


# --- from a checkpoint folder --------------------------------------------------------------------


def has_tokenizer(folder: Path) -> bool:
    pair = (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()
    return pair or (folder / "tokenizer.json").is_file()


def tokenizer_from_folder(folder: str | Path) -> Tokenizer:
    """The tokenizer of a checkpoint: `tokenizer.json`, or `vocab.json` with `merges.txt` (OPT).

    Raises:
        UsageError: neither is there, or a file is damaged.
    """
    folder = Path(folder)
    if not has_tokenizer(folder):
        raise UsageError(
            f"{folder}: has no tokenizer; expected tokenizer.json, or vocab.json with merges.txt"
        )
    settings = _settings(folder)
    whole = folder / "tokenizer.json"
    try:
        if whole.is_file():
            inner = tokenizers.Tokenizer.from_file(str(whole))
        else:
            inner = _byte_level(folder, settings)
    except Exception as error:  # the library raises plain Exception for a damaged file
        raise UsageError(
            f"{folder}: its tokenizer cannot be read ({error}); copy or download it again"
        ) from None
    template = settings.get("chat_template")
    if (folder / "chat_template.jinja").is_file():
        template = (folder / "chat_template.jinja").read_text(encoding="utf-8", errors="replace")
    return Tokenizer(inner, chatml if knows_chatml(template) else None)


def _settings(folder: Path) -> dict[str, Any]:
    """`tokenizer_config.json` and whether the model is an OPT, which begins every text."""
    settings: dict[str, Any] = {}
    for name in ("tokenizer_config.json", "config.json"):
        try:
            value = json.loads((folder / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if name == "config.json":
            settings.setdefault("add_bos_token", value.get("model_type") == "opt")
        else:
            settings.update(value)
    return settings


def _byte_level(folder: Path, settings: dict[str, Any]) -> tokenizers.Tokenizer:
    """GPT-2's byte-level BPE as OPT uses it."""
    model = tokenizers.models.BPE.from_file(str(folder / "vocab.json"), str(folder / "merges.txt"))
    inner = tokenizers.Tokenizer(model)
    spaced = bool(settings.get("add_prefix_space", False))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=spaced)
    inner.decoder = tokenizers.decoders.ByteLevel()
    names = {key: _spelling(settings.get(key)) for key in ("bos_token", "eos_token", "pad_token")}
    opt_default = {"bos_token": "</s>", "eos_token": "</s>", "pad_token": "<pad>"}
    specials = {key: name or opt_default[key] for key, name in names.items()}
    present = sorted({name for name in specials.values() if inner.token_to_id(name) is not None})
    inner.add_special_tokens([tokenizers.AddedToken(name, normalized=False) for name in present])
    begin = specials["bos_token"]
    if settings.get("add_bos_token") and begin in present:
        inner.post_processor = tokenizers.processors.TemplateProcessing(
            single=f"{begin} $A", special_tokens=[(begin, inner.token_to_id(begin))]
        )
    return inner


def _spelling(token: object) -> str | None:
    """A special token's text, which configurations write plainly or as a table."""
    if isinstance(token, dict):
        token = token.get("content")
    return token if isinstance(token, str) else None
