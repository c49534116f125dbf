"""`mpcache split`: weights into two shares, each uniform without the other; and `launch`'s own."""

from __future__ import annotations

import contextlib
import math
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape
from safetensors.torch import save_file

from mpcache import __version__
from mpcache.config import RunConfig
from mpcache.errors import MpcacheError, UsageError
from mpcache.kernels.prg import SEED_BYTES
from mpcache.models.fusing import Fused, fused_groups
from mpcache.models.registry import Source, find
from mpcache.models.spec import ModelSpec
from mpcache.parties.store_files import Part, party_folder, sha256_of, sync_folder, write_file
from mpcache.protocols.operation import encoded
from mpcache.report.tables import in_bytes
from mpcache.weight_shares import (
    HEADER,
    KEY,
    PARTIES,
    SEED,
    Header,
    WeightShares,
    expanded,
    tensor_file,
    told,
)

_SPARE = 64 << 20  # bytes of the disk that are left free, for headers and for others


def split_size(spec: ModelSpec) -> int:
    """Bytes of party 0's share, 8 a weight; a tied head is counted for itself."""
    return sum(8 * math.prod(group.shape) for group in fused_groups(spec).values())


def split_main(config: RunConfig, folder: Path, console: Console) -> int:
    """Split `config.model` into the new folder `folder`.

    Returns:
        The exit code 0.

    Raises:
        UsageError: a mistake in the input, or too little room; nothing was written.
        MpcacheError: the disk is full or cannot be written; nothing was kept.
    """
    folder = folder.absolute()
    check_target(folder)
    source = find(config.model, config.weights, config.seed)
    source.check()
    check_room(source.spec, folder.parent)
    if source.notice:
        console.print(f"[bold]{escape(source.notice)}[/]", soft_wrap=True)
    split(source, config.ring.frac, folder, console, config.seed)
    size = in_bytes(split_size(source.spec))
    console.print(
        f"split {escape(source.spec.name)} ({source.kind}, {escape(source.origin)}): {size} for"
        f" party 0, {SEED_BYTES} B for party 1\nmove {escape(str(party_folder(folder, 0)))} to"
        f" party 0's host and {escape(str(party_folder(folder, 1)))} to party 1's, and keep no"
        " copy: both together are the weights",
        soft_wrap=True,
    )
    return 0


def check_target(folder: Path) -> None:
    """Refuse a folder that exists, or cannot be made where it is asked for.

    Raises:
        UsageError: says which.
    """
    if os.path.lexists(folder):
        raise UsageError(f"{folder} exists; shares go into a new folder: choose another with --out")
    if not folder.parent.is_dir() or not os.access(folder.parent, os.W_OK | os.X_OK):
        raise UsageError(
            f"{folder.parent} is not a writable folder, so that {folder} cannot be made; choose"
            " another with --out"
        )


def check_room(spec: ModelSpec, parent: Path) -> None:
    """Refuse a disk that the shares do not fit on.

    Raises:
        UsageError: says how much there is.
    """
    wanted, free = split_size(spec) + _SPARE, shutil.disk_usage(parent).free
    if wanted > free:
        raise UsageError(
            f"the shares of {spec.name} take {in_bytes(wanted)}, and {parent} has {in_bytes(free)}"
            " free; choose another disk"
        )


def split(source: Source, frac: int, folder: Path, console: Console, seed: int = 0) -> str:
    """Write ``party-0`` and ``party-1`` of a new `folder`, whole or not at all.

    Weights are read, encoded and written one by one. The folder has another, hidden name until all
    of it is durable, and headers come last.

    Args:
        frac: fractional bits of the ring elements.
        seed: of synthetic weights, for the header.

    Returns:
        The random name of the split.

    Raises:
        UsageError: `folder` exists.
        MpcacheError: the disk is full or cannot be written.
    """
    check_target(folder)
    aside = folder.parent / f".{folder.name}.partial-{secrets.token_hex(4)}"
    header = Header(
        version=__version__,
        split=secrets.token_hex(16),
        rank=0,
        model=source.spec.name,
        model_digest=source.spec.digest(),
        weights=source.kind,
        seed=seed if source.kind == "synthetic" else None,
        frac=frac,
        shapes={name: group.shape for name, group in fused_groups(source.spec).items()},
        files={},
    )
    try:
        with console.status("splitting") as status:
            _write(source, header, aside, status.update)
        if os.path.lexists(folder):
            raise UsageError(f"{folder} exists by now; choose another with --out")
        os.rename(aside, folder)
        sync_folder(folder.parent)
    except OSError as error:
        raise MpcacheError(
            f"the shares {folder} cannot be written: {error.strerror or error}; nothing was kept"
        ) from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return header.split


def _write(source: Source, header: Header, aside: Path, tell: Callable[[str], None]) -> None:
    folders = [party_folder(aside, rank) for rank in range(PARTIES)]
    for path in (aside, *folders):
        path.mkdir(mode=0o700)
        path.chmod(0o700)
    seed = secrets.token_bytes(SEED_BYTES)
    write_file(folders[1] / SEED, seed)
    weights, total = Fused(source.spec, source.lazy()), len(header.shapes)
    files: tuple[dict[str, Part], ...] = ({}, {SEED: _part(folders[1] / SEED)})
    for number, (name, shape) in enumerate(header.shapes.items(), 1):
        tell(f"splitting: weight {number} of {total}")
        share = encoded(weights[name], header.frac)
        if tuple(share.shape) != shape:
            raise MpcacheError(f"weight {name}: expected {list(shape)}, not {list(share.shape)}")
        share -= expanded(seed, number, shape)
        path = folders[0] / tensor_file(number)
        save_file({KEY: share}, path)
        files[0][path.name] = _part(path)
    for rank, folder in enumerate(folders):
        own = Header(**{**vars(header), "rank": rank, "files": files[rank]})
        write_file(folder / HEADER, own.to_json().encode())
        sync_folder(folder)
    sync_folder(aside)


def _part(path: Path) -> Part:
    """Make a file private and durable, and tell its length and SHA-256."""
    path.chmod(0o600)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return Part(path.stat().st_size, sha256_of(path))


# --- for `launch` --------------------------------------------------------------------------------


def check_shares(config: RunConfig, source: Source) -> None:
    """Refuse what the parties would refuse, and shares of other weights than the twin's.

    Raises:
        UsageError: says why, and what to do.
    """
    if config.sharing != "shared":
        return
    if config.shares is None:
        check_room(source.spec, Path(tempfile.gettempdir()))
        return
    both = [
        WeightShares(Path(config.shares), rank, source.spec, config.ring.frac)
        for rank in range(PARTIES)
    ]
    first, second = (told(shares.header) for shares in both)
    if first != second:
        raise UsageError(
            f"party-0 and party-1 of {config.shares} are of two different splits; give the folder"
            " that one `mpcache split` wrote"
        )
    header = both[0].header
    seed = config.seed if source.kind == "synthetic" else None
    if (header.weights, header.seed) != (source.kind, seed):
        raise UsageError(
            f"the shares {config.shares} are of {_origin(header.weights, header.seed)}, and"
            f" launch's own check, the plaintext twin, has {_origin(source.kind, seed)}; give"
            " launch the weights that were split (--model, --weights, --set seed), or run the"
            f" parties with `mpcache party`, which need none{'. ' * bool(source.notice)}"
            f"{source.notice or ''}"
        )
    name = min(header.shapes, key=lambda name: math.prod(header.shapes[name]))
    weight = encoded(Fused(source.spec, source.lazy())[name], config.ring.frac)
    if not torch.equal(both[0][name] + both[1][name], weight):
        raise UsageError(
            f"the shares {config.shares} are of other weights than {source.spec.name}"
            f" ({source.origin}), which the plaintext twin reads; give launch the model that was"
            " split"
        )


def _origin(kind: str, seed: int | None) -> str:
    return f"{kind} weights" + (f" (seed {seed})" if seed is not None else "")


@contextlib.contextmanager
def ready(config: RunConfig, source: Source, console: Console) -> Iterator[RunConfig]:
    """`config` with shares that the parties can read: those it names, or new ones, removed after.

    Raises:
        MpcacheError: the disk is full or cannot be written.
    """
    if config.sharing != "shared" or config.shares is not None:
        yield config
        return
    with tempfile.TemporaryDirectory(prefix="mpcache-shares-") as scratch:
        folder = Path(scratch) / "shares"
        console.print(
            "sharing: launch itself splits the weights into a temporary folder, so that this host"
            " sees them; with `mpcache split` and --shares their owner does that elsewhere",
            soft_wrap=True,
        )
        split(source, config.ring.frac, folder, console, config.seed)
        yield config.model_copy(update={"shares": str(folder)})
