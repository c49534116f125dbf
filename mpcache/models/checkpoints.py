"""Hugging Face checkpoint folders: an inventory without reading weights, then weight by weight.

Safetensors or `pytorch_model.bin` (read with `weights_only`, so that no code in it runs), in one
file or in shards with an index.
"""

from __future__ import annotations

import json
import math
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mpcache.errors import UsageError
from mpcache.models.families import hf_name, is_turned, spec_from_hf_config
from mpcache.models.spec import ModelSpec

SAFETENSORS, BIN = "model.safetensors", "pytorch_model.bin"
WEIGHT_FILES = (SAFETENSORS, f"{SAFETENSORS}.index.json", BIN, f"{BIN}.index.json")
MAX_HEADER_BYTES = 100_000_000
_WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_AGAIN = "copy or download the file again"


@dataclass(frozen=True)
class Entry:
    """One tensor of a checkpoint: where it lies, its own name there, and its shape."""

    file: Path
    name: str
    shape: tuple[int, ...]
    is_float: bool


Fetch = Callable[[str], torch.Tensor]


@dataclass
class Checkpoint:
    """A checked folder. Reading is lazy: `tensor` reads one weight, `load` all of them."""

    folder: Path
    spec: ModelSpec
    entries: dict[str, Entry]  # by Hugging Face name without a leading "model."
    _opened: dict[Path, Fetch] = field(default_factory=dict, repr=False)

    def tensor(self, name: str) -> torch.Tensor:
        """The canonical weight `name`: float32, contiguous, matrices ``[inputs, outputs]``.

        Raises:
            UsageError: the weight holds NaN or infinity, or a tied head differs from the table.
        """
        shape = self.spec.shapes()[name]
        entry = self.entries[hf_name(self.spec, name)]
        stored = self._read(entry)
        if name == "embed.tokens" and self.spec.tied:
            self._check_tied(entry, stored)
        weight = torch.empty(shape, dtype=torch.float32)
        weight.copy_(stored.t() if is_turned(name, shape) else stored)
        if not bool(torch.isfinite(weight).all()):
            raise UsageError(f"{entry.file}: tensor {entry.name} holds NaN or infinity; {_AGAIN}")
        return weight

    def load(self) -> dict[str, torch.Tensor]:
        """Every weight by canonical name."""
        return {name: self.tensor(name) for name in self.spec.shapes()}

    def _read(self, entry: Entry) -> torch.Tensor:
        if entry.file not in self._opened:
            self._opened[entry.file] = _open(entry.file)
        return self._opened[entry.file](entry.name)

    def _check_tied(self, table: Entry, stored: torch.Tensor) -> None:
        head = self.entries.get("lm_head.weight")
        if head is not None and not torch.equal(self._read(head), stored):
            raise UsageError(
                f"{head.file}: tensor {head.name} differs from {table.name}, but config.json says"
                " tie_word_embeddings = true; set it to false if the head is meant to be its own"
            )


# --- configuration -------------------------------------------------------------------------------


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`.

    Raises:
        UsageError: no such file, or its content is not a JSON object in UTF-8.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror}); expected a file") from None
    except ValueError as error:
        raise UsageError(f"{path}: is not valid JSON ({error}); {_AGAIN}") from None
    if not isinstance(value, dict):
        raise UsageError(f"{path}: expected a JSON object, found {type(value).__name__}")
    return value


def read_spec(folder: str | Path, name: str | None = None) -> ModelSpec:
    """The shape of the checkpoint in `folder`, which needs `config.json` only.

    Args:
        folder: the checkpoint folder.
        name: how to call the model; the folder's own name by default.

    Raises:
        UsageError: the file is missing or damaged, or describes an unsupported model.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder; expected a Hugging Face checkpoint folder")
    if not (folder / "config.json").is_file():
        raise UsageError(
            f"{folder}: has no config.json; expected a Hugging Face checkpoint folder"
            f" (config.json, tokenizer.json, {SAFETENSORS})"
        )
    config = read_json(folder / "config.json")
    if (folder / "generation_config.json").is_file():
        generation = read_json(folder / "generation_config.json")
        ends = [*_as_list(config.get("eos_token_id")), *_as_list(generation.get("eos_token_id"))]
        config["eos_token_id"] = list(dict.fromkeys(ends))
    return spec_from_hf_config(name or folder.resolve().name, config)


def _as_list(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


# --- inventory -----------------------------------------------------------------------------------


def check_folder(path: str | Path, spec: ModelSpec | None = None) -> Checkpoint:
    """Validate a checkpoint folder without reading its weights.

    Args:
        path: the folder.
        spec: the expected shape; read from the folder's config.json by default.

    Raises:
        UsageError: a missing, truncated or damaged file, a missing, unexpected or quantised
            tensor, or one of another shape. The message names the file and the tensor.
    """
    folder = Path(path)
    spec = read_spec(folder) if spec is None else spec
    entries = {_plain(entry.name): entry for entry in _inventory(folder)}
    needed = {hf_name(spec, name): (name, shape) for name, shape in spec.shapes().items()}
    for name, (canonical, shape) in needed.items():
        expected = tuple(reversed(shape)) if is_turned(canonical, shape) else shape
        _check_entry(folder, name, entries.get(name), expected)
    extra = [e for name, e in entries.items() if name not in needed and not _ignored(name, spec)]
    if extra:
        names = ", ".join(entry.name for entry in extra[:3])
        more = f" and {len(extra) - 3} more" if len(extra) > 3 else ""
        raise UsageError(
            f"{extra[0].file}: unexpected tensors {names}{more}; a {spec.family} model as in"
            " config.json has none of that name. Does config.json belong to these weights?"
        )
    return Checkpoint(folder, spec, entries)


def load_folder(path: str | Path, spec: ModelSpec | None = None) -> dict[str, torch.Tensor]:
    """Every weight of the folder by canonical name: float32, contiguous, ``[inputs, outputs]``.

    Raises:
        UsageError: as `check_folder`, or a weight holds NaN or infinity.
    """
    return check_folder(path, spec).load()


def _check_entry(folder: Path, name: str, entry: Entry | None, shape: tuple[int, ...]) -> None:
    if entry is None:
        raise UsageError(
            f"{folder}: tensor {name} is missing; expected shape {list(shape)}."
            " Is a file of the checkpoint missing, or config.json of another model?"
        )
    if entry.shape != shape:
        raise UsageError(
            f"{entry.file}: tensor {entry.name} has shape {list(entry.shape)}, but config.json"
            f" asks for {list(shape)}; use the config.json that belongs to these weights"
        )
    if not entry.is_float:
        raise UsageError(
            f"{entry.file}: tensor {entry.name} is not a float64/32/16 or bfloat16 tensor;"
            " quantised checkpoints are not supported, use the original one"
        )


def _plain(name: str) -> str:
    return name.removeprefix("model.")


def _ignored(name: str, spec: ModelSpec) -> bool:
    """Buffers that old checkpoints carry, and the second copy of a tied head."""
    tied_copy = spec.tied and name == "lm_head.weight"
    return tied_copy or name.endswith("rotary_emb.inv_freq") or name == "decoder.version"


def _inventory(folder: Path) -> list[Entry]:
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            if name.endswith(".index.json"):
                return _sharded(folder, name)
            return _describe(folder / name)
    raise UsageError(
        f"{folder}: has no weights; expected {SAFETENSORS} or {BIN}, or their .index.json with"
        " the shards"
    )


def _sharded(folder: Path, index: str) -> list[Entry]:
    """The tensors that the index lists; each must be in the shard that it names."""
    weight_map = read_json(folder / index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise UsageError(f"{folder / index}: has no weight_map; {_AGAIN}")
    shards: dict[str, dict[str, Entry]] = {}
    for name in sorted({str(file) for file in weight_map.values()}):
        if Path(name).name != name:
            raise UsageError(f"{folder / index}: names {name!r}; shards lie in the same folder")
        if not (folder / name).is_file():
            raise UsageError(f"{folder / name}: is missing, but {index} lists it; {_AGAIN}")
        shards[name] = {entry.name: entry for entry in _describe(folder / name)}
    for tensor, name in weight_map.items():
        if tensor not in shards[str(name)]:
            raise UsageError(f"{folder / str(name)}: lacks tensor {tensor}, which {index} lists")
    return [shards[str(name)][tensor] for tensor, name in weight_map.items()]


def is_whole(folder: Path) -> bool:
    """Whether config.json and every file of weights are there; their content is not looked at."""
    if not (folder / "config.json").is_file():
        return False
    for name in WEIGHT_FILES:
        if (folder / name).is_file():
            if not name.endswith(".index.json"):
                return True
            shards = read_json(folder / name).get("weight_map", {}).values()
            return all((folder / str(shard)).is_file() for shard in shards)
    return False


def _describe(file: Path) -> list[Entry]:
    return _describe_safetensors(file) if file.suffix == ".safetensors" else _describe_bin(file)


def _open(file: Path) -> Fetch:
    if file.suffix == ".safetensors":
        from safetensors import safe_open

        return safe_open(str(file), framework="pt", device="cpu").get_tensor
    return _open_bin(file).__getitem__


# --- the two formats -----------------------------------------------------------------------------


def _describe_safetensors(file: Path) -> list[Entry]:
    """Read the header, and hold its offsets against the size of the file."""
    size = file.stat().st_size
    with file.open("rb") as handle:
        start = handle.read(8)
        if start == b"version ":
            raise UsageError(f"{file}: is a Git LFS pointer, not the weights; run git lfs pull")
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > min(MAX_HEADER_BYTES, size - 8):
            raise UsageError(
                f"{file}: has {size} bytes and no whole safetensors header: truncated or not"
                f" safetensors; {_AGAIN}"
            )
        try:
            header = json.loads(handle.read(length))
            entries, end = _parse_header(file, header)
        except (ValueError, TypeError, KeyError, AttributeError):
            raise UsageError(f"{file}: its safetensors header is damaged; {_AGAIN}") from None
    if size != 8 + length + end:
        how = "truncated" if size < 8 + length + end else "damaged"
        raise UsageError(
            f"{file}: has {size} bytes, but its header describes {8 + length + end}: the file is"
            f" {how}; {_AGAIN}"
        )
    return entries


def _parse_header(file: Path, header: Mapping[str, Any]) -> tuple[list[Entry], int]:
    """The header's tensors, and the number of bytes that their data takes."""
    entries, end = [], 0
    for name, row in header.items():
        if name == "__metadata__":
            continue
        shape = tuple(int(side) for side in row["shape"])
        first, last = (int(offset) for offset in row["data_offsets"])
        width = _WIDTHS.get(row["dtype"])
        if width is not None and last - first != width * math.prod(shape):
            raise ValueError(name)
        entries.append(Entry(file, name, shape, width is not None))
        end = max(end, last)
    return entries, end


def _open_bin(file: Path) -> dict[str, torch.Tensor]:
    """The tensors of a `.bin`, mapped rather than read; nothing but tensors is unpickled."""
    if not zipfile.is_zipfile(file):
        raise UsageError(
            f"{file}: is not a PyTorch zip file: truncated, or from before torch 1.6; {_AGAIN} or"
            " save it again as safetensors"
        )
    try:
        state = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except Exception as error:  # torch raises its own, pickle's and zip's errors here
        raise UsageError(
            f"{file}: cannot be read as tensors only ({type(error).__name__}): damaged, or it"
            " holds code, which is never run; use a safetensors checkpoint"
        ) from None
    if not isinstance(state, dict):
        raise UsageError(f"{file}: expected a table of tensors, found {type(state).__name__}")
    return {name: value for name, value in state.items() if isinstance(value, torch.Tensor)}


def _describe_bin(file: Path) -> list[Entry]:
    return [
        Entry(file, name, tuple(value.shape), value.dtype in _FLOATS)
        for name, value in _open_bin(file).items()
    ]
