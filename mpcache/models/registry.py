"""Which model a name means here, and where its weights and tokenizer come from."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Literal, Protocol

import torch

from mpcache.errors import UsageError
from mpcache.models import hub, smollm2
from mpcache.models.checkpoints import Checkpoint, check_folder, read_spec
from mpcache.models.known import KNOWN, known, unknown_model
from mpcache.models.spec import ModelSpec
from mpcache.models.synthetic import synthetic_tensor
from mpcache.models.tokenizer import ByteTokenizer, Codec, has_tokenizer, tokenizer_from_folder

Weights = Literal["auto", "required", "synthetic"]
_REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


class Backend(Protocol):
    """Where weights come from: checked first, then read one by one."""

    def check(self) -> None: ...
    def tensor(self, name: str) -> torch.Tensor: ...
    def tokenizer(self) -> Codec: ...


class _Folder:
    """A Hugging Face checkpoint folder."""

    def __init__(self, folder: Path, spec: ModelSpec) -> None:
        self.folder, self.spec = folder, spec

    @cached_property
    def checkpoint(self) -> Checkpoint:
        return check_folder(self.folder, self.spec)

    @cached_property
    def codec(self) -> Codec:
        return tokenizer_from_folder(self.folder)

    def check(self) -> None:
        _ = self.checkpoint, self.codec

    def tensor(self, name: str) -> torch.Tensor:
        return self.checkpoint.tensor(name)

    def tokenizer(self) -> Codec:
        return self.codec


class _Synthetic:
    """Seeded weights; the model's own tokenizer if one is at hand, else bytes."""

    def __init__(self, spec: ModelSpec, seed: int, folder: Path | None = None) -> None:
        self.spec, self.seed, self.folder = spec, seed, folder

    @cached_property
    def codec(self) -> Codec:
        if self.folder is not None and has_tokenizer(self.folder):
            return tokenizer_from_folder(self.folder)
        if self.spec == smollm2.SPEC and smollm2.installed():
            return smollm2.EmbeddedSmolLM2().tokenizer()
        return ByteTokenizer(self.spec.vocab)

    def check(self) -> None:
        _ = self.codec

    def tensor(self, name: str) -> torch.Tensor:
        return synthetic_tensor(self.spec, name, self.seed)

    def tokenizer(self) -> Codec:
        return self.codec


@dataclass(frozen=True)
class Source:
    """A model that can be run: its public shape, and where its weights come from.

    Attributes:
        kind: ``synthetic`` marks text that means nothing.
        origin: the package, folder, hub repository or seed, for reports.
        notice: a sentence to print loudly when synthetic weights stand in for missing ones.
        folder: the user's own checkpoint folder, where the weights come from one.
    """

    spec: ModelSpec
    kind: Literal["pretrained", "synthetic"]
    origin: str
    notice: str | None
    backend: Backend = field(repr=False, compare=False)
    folder: Path | None = None

    def check(self) -> None:
        """Validate the files without reading all weights; to be called before any party starts.

        Raises:
            UsageError: a file is missing, truncated, damaged, or of another model.
        """
        self.backend.check()

    def tensor(self, name: str) -> torch.Tensor:
        """One weight by canonical name: float32, contiguous, ``[inputs, outputs]``."""
        return self.backend.tensor(name)

    def load(self) -> dict[str, torch.Tensor]:
        """Every weight by canonical name; see `ModelSpec.shapes`."""
        self.check()
        return {name: self.backend.tensor(name) for name in self.spec.shapes()}

    def lazy(self) -> Mapping[str, torch.Tensor]:
        """As `load`, but each weight is read when it is looked up, and not kept."""
        self.check()
        return _Lazy(self)

    def tokenizer(self) -> Codec:
        """The model's tokenizer; a meaningless stand-in where synthetic weights have none."""
        return self.backend.tokenizer()


class _Lazy(Mapping[str, torch.Tensor]):
    """Weights by canonical name, read on every look-up."""

    def __init__(self, source: Source) -> None:
        self._source, self._shapes = source, source.spec.shapes()

    def __getitem__(self, name: str) -> torch.Tensor:
        if name not in self._shapes:
            raise KeyError(name)
        return self._source.tensor(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


def find(model: str, weights: Weights = "auto", seed: int = 0) -> Source:
    """The model that `model` means here.

    Args:
        model: a known name (see `list_models`), a checkpoint folder, or ``owner/name`` on the hub.
        weights: ``auto`` falls back to synthetic weights, with a notice, where a known model's
            own cannot be had; ``required`` makes that an error; ``synthetic`` touches no network.
        seed: of synthetic weights.

    Raises:
        UsageError: an unknown model, or one whose weights cannot be had.
    """
    row, path = known(model), os.path.expanduser(model)
    if row is None and os.path.isdir(path):
        return _from_folder(Path(path), weights, seed)
    if row is None and os.path.exists(path):
        raise UsageError(f"{model}: is a file; expected a folder with a Hugging Face checkpoint")
    if row is None and _REPOSITORY.fullmatch(model):
        return _from_hub(model, weights, seed)
    if row is None and _looks_like_path(model):
        raise UsageError(f"{model}: no such folder; expected one with a Hugging Face checkpoint")
    if row is None:
        raise unknown_model(model)
    if weights == "synthetic":
        return _synthetic(row.spec, seed)
    if row.repo is None:
        origin = f"package {smollm2.PACKAGE} {smollm2.VERSION}"
        smollm2.locate()
        return Source(row.spec, "pretrained", origin, None, smollm2.EmbeddedSmolLM2())
    try:
        return _pretrained(row.repo, row.spec.name)
    except hub.HubUnreachable as error:
        if weights == "required":
            raise
        notice = (
            f"NO WEIGHTS FOR {row.spec.name}: {error}. Synthetic weights (seed {seed}) stand in:"
            " timings and byte counts hold, the text is MEANINGLESS."
        )
        return _synthetic(row.spec, seed, notice)


def at_hand(model: str, seed: int = 0) -> Source | None:
    """The model with its own weights, where they are on this machine already: no network."""
    row = known(model)
    if row is None and not os.path.isdir(os.path.expanduser(model)):
        return None
    if row is not None and not (hub.cached(row.repo) if row.repo else smollm2.installed()):
        return None
    source = find(model, "auto", seed)
    return source if source.kind == "pretrained" else None


def _looks_like_path(model: str) -> bool:
    return "/" in model or "\\" in model or model.startswith((".", "~"))


def _synthetic(
    spec: ModelSpec, seed: int, notice: str | None = None, folder: Path | None = None
) -> Source:
    backend = _Synthetic(spec, seed, folder)
    return Source(spec, "synthetic", f"synthetic, seed {seed}", notice, backend)


def _from_folder(folder: Path, weights: Weights, seed: int) -> Source:
    spec = read_spec(folder)
    if weights == "synthetic":
        return _synthetic(spec, seed, folder=folder)
    return Source(spec, "pretrained", f"folder {folder}", None, _Folder(folder, spec), folder)


def _pretrained(repo: str, name: str) -> Source:
    """A hub checkpoint; its shape is read from its own config.json."""
    folder = hub.fetch_from_hub(repo)
    spec = read_spec(folder, name)
    return Source(spec, "pretrained", f"hub {repo}", None, _Folder(folder, spec))


def _from_hub(repo: str, weights: Weights, seed: int) -> Source:
    """A repository that is in no table: its shape, too, is known to the hub alone."""
    name = repo.rpartition("/")[2]
    if weights == "synthetic":
        folder = hub.cached(repo)
        if folder is None:
            raise UsageError(
                f"{repo}: no such folder, and not in the Hugging Face cache; synthetic weights need"
                f" a shape. Expected a folder or one of: {', '.join(KNOWN)}"
            )
        return _synthetic(read_spec(folder, name), seed, folder=folder)
    try:
        return _pretrained(repo, name)
    except hub.HubUnreachable as error:
        raise UsageError(
            f"{error}. There is no folder of that name here either; known models:"
            f" {', '.join(KNOWN)}"
        ) from None


# --- what can be run here ------------------------------------------------------------------------


@dataclass(frozen=True)
class ModelRow:
    """One line of ``mpcache models``."""

    name: str
    family: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    vocab: int
    parameters: int
    weights: str


def list_models() -> list[ModelRow]:
    """Every known model, and where its weights would come from on this machine; no network."""
    rows = []
    for row in KNOWN.values():
        spec = row.spec
        rows.append(
            ModelRow(
                name=spec.name,
                family=spec.family,
                layers=spec.layers,
                hidden=spec.hidden,
                heads=spec.heads,
                kv_heads=spec.kv_heads,
                vocab=spec.vocab,
                parameters=spec.parameters,
                weights=_whereabouts(row.repo),
            )
        )
    return rows


def _whereabouts(repo: str | None) -> str:
    if repo is None:
        here = smollm2.installed()
        return f"package {smollm2.PACKAGE}" if here else f"missing: {smollm2.INSTALL}"
    return f"cache of hub {repo}" if hub.cached(repo) else f"hub {repo}, else synthetic"


def check_prompt(source: Source, ids: Sequence[int], new_tokens: int) -> None:
    """Refuse a prompt that cannot be run; to be called before any party starts.

    Args:
        ids: the encoded prompt.
        new_tokens: how many tokens shall be generated.

    Raises:
        UsageError: the prompt is empty or holds foreign ids, nothing shall be generated, or both
            together exceed the context length.
    """
    spec = source.spec
    if not ids or list(ids) == source.tokenizer().empty:
        raise UsageError("the prompt is empty; expected at least one token of text")
    foreign = [token for token in ids if not 0 <= token < spec.vocab]
    if foreign:
        raise UsageError(
            f"the prompt has token id {foreign[0]}, but {spec.name} knows ids 0 to"
            f" {spec.vocab - 1}; is this the model's tokenizer?"
        )
    if new_tokens < 1:
        raise UsageError(f"{new_tokens} new tokens were asked for; expected at least 1")
    if len(ids) + new_tokens > spec.context:
        raise UsageError(
            f"the prompt has {len(ids)} tokens, and {new_tokens} more exceed the context of"
            f" {spec.name}, {spec.context} tokens; shorten the prompt or ask for fewer new tokens"
        )
