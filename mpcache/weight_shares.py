"""A party's share of weights that nobody knows: its folder, as `mpcache split` writes it.

``party-0`` holds a tensor of ring elements in a file of its own for each weight that a machine
takes (`models.fusing`); ``party-1`` holds a seed of 16 bytes, from which as many are expanded. Each
is uniform without the other. The header is public, and the same but for rank and files.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from safetensors import SafetensorError, safe_open

from mpcache.config import RunConfig
from mpcache.errors import MpcacheError, UsageError
from mpcache.kernels.prg import SEED_BYTES, Stream
from mpcache.models.folding import FOLDING
from mpcache.models.fusing import fused_groups
from mpcache.models.spec import ModelSpec
from mpcache.parties.store_files import Part, digest_of, party_folder, sha256_of, too_open

FORMAT = FOLDING  # shares are of folded weights
HEADER, SEED, KEY = "shares.json", "seed", "share"
PARTIES = 2
_AGAIN = "split the model again with `mpcache split`"
_MAX_TEXT = 1 << 24  # bytes of a header

Shapes = dict[str, tuple[int, ...]]


def tensor_file(number: int) -> str:
    """The file of party 0's share of weight `number`, from 1 on."""
    return f"{number:05}.safetensors"


def expanded(seed: bytes, number: int, shape: tuple[int, ...]) -> torch.Tensor:
    """Party 1's share of weight `number`, from 1 on: int64 [shape]."""
    return Stream(seed, number).ring(shape)


@dataclass(frozen=True)
class Header:
    """What a folder holds; all of it is public.

    Attributes:
        split: a random name, the same at both parties.
        weights: ``synthetic`` marks text that means nothing; `seed` is theirs, and public.
        frac: fractional bits of the ring elements.
        shapes: of the weights, in their order. files: name -> its `Part`.
    """

    version: str
    split: str
    rank: int
    model: str
    model_digest: str
    weights: Literal["pretrained", "synthetic"]
    seed: int | None
    frac: int
    shapes: Shapes
    files: dict[str, Part]

    def to_json(self) -> str:
        values = {
            "format": FORMAT,
            **{key: value for key, value in vars(self).items() if key not in ("shapes", "files")},
            "shapes": {name: list(shape) for name, shape in self.shapes.items()},
            "files": {name: [part.nbytes, part.sha256] for name, part in self.files.items()},
        }
        return json.dumps({**values, "check": digest_of(values)}, indent=1) + "\n"

    @staticmethod
    def from_json(text: str) -> Header:
        """Raises ValueError, KeyError, TypeError or AttributeError on anything else."""
        values = json.loads(text)
        if values.pop("check") != digest_of(values):
            raise ValueError("its checksum differs")
        if values["format"] != FORMAT:
            raise ValueError(f"it has format {values['format']}, and this version reads {FORMAT}")
        return Header(
            version=str(values["version"]),
            split=str(values["split"]),
            rank=int(values["rank"]),
            model=str(values["model"]),
            model_digest=str(values["model_digest"]),
            weights="synthetic" if values["weights"] == "synthetic" else "pretrained",
            seed=values["seed"],
            frac=int(values["frac"]),
            shapes={name: tuple(map(int, shape)) for name, shape in values["shapes"].items()},
            files={
                name: Part(int(nbytes), str(sha256))
                for name, (nbytes, sha256) in values["files"].items()
            },
        )


class WeightShares(Mapping[str, torch.Tensor]):
    """Party `rank`'s share of every weight that a machine takes, each made when it is asked for.

    Args:
        folder: ``party-R``, or the folder that holds it.
        spec: of the model that shall be run.
        frac: fractional bits of the run.
        trusted: another process compared the checksums just now, and they are not again.

    Raises:
        UsageError: it holds no share, another party's or another model's, is damaged, or others may
            read it.
    """

    def __init__(
        self, folder: Path, rank: int, spec: ModelSpec, frac: int, trusted: bool = False
    ) -> None:
        inside = party_folder(folder, rank)
        self.folder = inside if not (folder / HEADER).exists() and inside.is_dir() else folder
        self._check_mode(self.folder)
        self.header = self._read_header()
        self._check_run(rank, spec, frac)
        self._check_files(trusted)
        self._numbers = {name: number for number, name in enumerate(self.header.shapes, 1)}
        self._seed = (self.folder / SEED).read_bytes() if rank == 1 else b""

    def __iter__(self) -> Iterator[str]:
        return iter(self.header.shapes)

    def __len__(self) -> int:
        return len(self.header.shapes)

    def __repr__(self) -> str:
        return f"WeightShares({self.folder}, split {self.header.split})"

    def __getitem__(self, name: str) -> torch.Tensor:
        """int64, of the weight's shape."""
        number, shape = self._numbers[name], self.header.shapes[name]
        if self.header.rank == 1:
            return expanded(self._seed, number, shape)
        path = self.folder / tensor_file(number)
        try:
            with safe_open(path, framework="pt") as file:
                share = file.get_tensor(KEY)
        except (OSError, SafetensorError) as error:
            raise MpcacheError(f"the share {path} cannot be read: {error}; {_AGAIN}") from None
        if tuple(share.shape) != shape or share.dtype != torch.int64:
            raise MpcacheError(f"the share {path} is not int64 {list(shape)}; {_AGAIN}")
        return share

    # --- checks --------------------------------------------------------------------------------

    def _refuse(self, why: str) -> NoReturn:
        raise UsageError(f"the folder of shares {self.folder} {why}")

    def _check_mode(self, path: Path) -> os.stat_result:
        """Refuse what others may read or write, or what is not there."""
        what = "shares" if path == self.folder else path.name
        try:
            found = path.lstat()
        except FileNotFoundError:
            if path == self.folder:
                self._refuse("does not exist; give one that `mpcache split` wrote")
            self._refuse(f"has no {path.name}: it holds no party's share, or is damaged; {_AGAIN}")
        except OSError as error:
            self._refuse(f"cannot be read: {error.strerror}")
        folder = path == self.folder
        if not (stat.S_ISDIR if folder else stat.S_ISREG)(found.st_mode):
            self._refuse(f"is no folder; {_AGAIN}" if folder else f"has no file {what}; {_AGAIN}")
        if why := too_open(self.folder, path, found):
            self._refuse(why)
        return found

    def _read_header(self) -> Header:
        path = self.folder / HEADER
        self._check_mode(path)
        try:
            with path.open(encoding="utf-8") as file:
                return Header.from_json(file.read(_MAX_TEXT))
        except OSError as error:
            self._refuse(f"has a {HEADER} that cannot be read: {error.strerror}; {_AGAIN}")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            self._refuse(f"has a damaged {HEADER} ({error}); {_AGAIN}")

    def _check_run(self, rank: int, spec: ModelSpec, frac: int) -> None:
        header = self.header
        if header.rank != rank:
            self._refuse(
                f"is of party {header.rank}, and this is party {rank}; give the folder party-{rank}"
            )
        wanted = {name: group.shape for name, group in fused_groups(spec).items()}
        if header.model_digest != spec.digest() or header.shapes != wanted:
            self._refuse(
                f"is a share of {header.model}, and this run's model {spec.name} has another"
                " shape; set --model to what was split, or split this one"
            )
        if header.frac != frac:
            self._refuse(f"has {header.frac} fractional bits, and this run {frac}; {_AGAIN}")
        if list(header.shapes) != list(wanted):
            self._refuse(f"has its weights in another order than this version; {_AGAIN}")

    def _check_files(self, trusted: bool) -> None:
        files = range(1, len(self.header.shapes) + 1)
        wanted = {SEED} if self.header.rank == 1 else {tensor_file(number) for number in files}
        if set(self.header.files) != wanted:
            self._refuse(f"lists other files than this version writes; {_AGAIN}")
        for name, part in self.header.files.items():
            path = self.folder / name
            found = self._check_mode(path)
            sound = found.st_size == part.nbytes and (trusted or sha256_of(path) == part.sha256)
            if not sound or (name == SEED and part.nbytes != SEED_BYTES):
                self._refuse(f"has a damaged {name}: size or checksum differs; {_AGAIN}")


def shares_of(
    config: RunConfig, rank: int, spec: ModelSpec, trusted: bool = False
) -> WeightShares | None:
    """Party `rank`'s share of the weights as `config.shares` says; None where they are not shared.

    Raises:
        UsageError: they are to be shared, and there is no fit share.
    """
    if config.sharing != "shared":
        return None
    if config.shares is None:
        raise UsageError(
            "sharing: shared needs this party's share of the weights: the owner makes them with"
            f" `mpcache split`; then give --shares FOLDER/party-{rank}"
        )
    return WeightShares(Path(config.shares), rank, spec, config.ring.frac, trusted)


def told(header: Header) -> dict[str, Any]:
    """What both parties' headers must agree in."""
    values = dict(vars(header))
    del values["rank"], values["files"]
    return values
