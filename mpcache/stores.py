"""Stores of correlations that are dealt ahead of time: deal one, check one before a run."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.markup import escape

from mpcache import __version__
from mpcache.config import RunConfig, refuse_gpu
from mpcache.costing import quick
from mpcache.errors import MpcacheError, UsageError
from mpcache.kernels.prg import SEED_BYTES, Stream
from mpcache.models.registry import find
from mpcache.models.spec import ModelSpec
from mpcache.parties.dealing import Sender, to_file
from mpcache.parties.store import Store
from mpcache.parties.store_files import party_folder
from mpcache.parties.store_writer import PARTIES, StoreWriter, check_target
from mpcache.program import deal
from mpcache.report.tables import in_bytes, in_seconds

_SPARE = 64 << 20  # bytes of the disk that are left free, for headers and for others
_REST = 4096  # bytes that a session takes beside its corrections


def terms_of(config: RunConfig, spec: ModelSpec, prompt_tokens: int | None) -> dict[str, Any]:
    """Everything public that decides which correlations a run needs, as plain values.

    Args:
        prompt_tokens: None leaves it out, where only the client knows it yet.
    """
    terms: dict[str, Any] = {
        "version": __version__,
        "protocol": config.protocol,
        "parties": config.parties,
        "owner": config.owner,
        "sharing": config.sharing,
        "client": config.client,
        "ring": config.ring.model_dump(mode="json"),
        "truncation": config.truncation,
        "profile": config.profile,
        "model": spec.name,
        "model_digest": spec.digest(),
        "cache": config.cache.model_dump(mode="json"),
        "new_tokens": config.max_new_tokens,
        "temperature": config.temperature,
    }
    return terms if prompt_tokens is None else terms | {"prompt_tokens": prompt_tokens}


# --- dealing -------------------------------------------------------------------------------------


def deal_ahead(config: RunConfig, prompt_tokens: int, sessions: int, console: Console) -> int:
    """Deal `sessions` sessions for prompts of `prompt_tokens` tokens into `config.store`.

    Returns:
        The exit code 0.

    Raises:
        UsageError: a mistake in the input, or too little room; nothing was written.
        MpcacheError: the disk is full or cannot be written; nothing was kept.
    """
    assert config.store is not None
    folder = Path(config.store).absolute()
    refuse_gpu(config)
    if config.protocol != "dealer":
        raise UsageError(f"protocol {config.protocol} has no dealer; set protocol: dealer")
    spec = find(config.model, "synthetic", config.seed).spec
    _check_length(config, spec, prompt_tokens)
    check_target(folder)
    torch.set_num_threads(config.threads or os.cpu_count() or 1)
    with console.status("counting"):
        phases = quick(config, spec, prompt_tokens).phases()
    size = sum(phase["dealt_bytes"][1] for phase in phases.values())
    _announce(console, config, spec, folder, prompt_tokens, sessions, size)
    began = time.perf_counter()
    with StoreWriter(folder, terms_of(config, spec, prompt_tokens)) as writer:
        for number in range(sessions):
            which = f"{number + 1}/{sessions}"
            _deal_session(config, spec, prompt_tokens, writer, console, which, size)
        written = writer.finish()
    seconds = time.perf_counter() - began
    held = ", ".join(f"{in_bytes(size)} for party {rank}" for rank, size in enumerate(written))
    console.print(
        f"dealt {_sessions(sessions)} in {in_seconds(seconds)}: {held}\nmove"
        f" {escape(str(party_folder(folder, 0)))} to party 0's host and"
        f" {escape(str(party_folder(folder, 1)))} to party 1's, and keep no copy",
        soft_wrap=True,
    )
    return 0


def _sessions(count: int) -> str:
    return f"{count} session{'s' * (count != 1)}"


def _check_length(config: RunConfig, spec: ModelSpec, prompt_tokens: int) -> None:
    if prompt_tokens + config.max_new_tokens > spec.context:
        raise UsageError(
            f"{prompt_tokens} prompt tokens and {config.max_new_tokens} new ones exceed the"
            f" context of {spec.name}, {spec.context} tokens; ask for fewer"
        )


def _announce(
    console: Console,
    config: RunConfig,
    spec: ModelSpec,
    folder: Path,
    prompt_tokens: int,
    sessions: int,
    size: int,
) -> None:
    """Say what will be written before anything is, and refuse what does not fit."""
    wanted = sessions * (size + _REST) + _SPARE
    free = shutil.disk_usage(folder.parent).free
    console.print(
        f"{escape(spec.name)}, {prompt_tokens} prompt tokens, {config.max_new_tokens} new ones,"
        f" cache {config.cache.policy}: {_sessions(sessions)} of {in_bytes(size)} for party 1 and"
        f" {SEED_BYTES} B for party 0; {in_bytes(free)} free at {escape(str(folder.parent))}",
        soft_wrap=True,
    )
    if wanted > free:
        raise UsageError(
            f"{_sessions(sessions)} take {in_bytes(wanted)}, and {folder.parent} has"
            f" {in_bytes(free)} free; deal fewer, or choose another folder with --store"
        )


def _deal_session(
    config: RunConfig,
    spec: ModelSpec,
    prompt_tokens: int,
    writer: StoreWriter,
    console: Console,
    which: str,
    size: int,
) -> None:
    """One session of `size` bytes, with seeds of its own; the same dealing as for a live run."""
    seeds = secrets.token_bytes(SEED_BYTES), secrets.token_bytes(SEED_BYTES)
    written = 0
    began = time.perf_counter()
    with (
        console.status(f"session {which}") as status,
        writer.session(seeds) as write,
        torch.inference_mode(),
    ):

        def counted(data: memoryview) -> None:
            nonlocal written
            write(data)
            written += len(data)
            status.update(f"session {which}: {in_bytes(written)} of {in_bytes(size)}")

        sender = Sender(to_file(counted))
        streams = Stream(seeds[0]), Stream(seeds[1])
        dealt = deal(config, spec, prompt_tokens, streams, sender.emit)
        sender.finish()
    if not written == dealt == size:
        raise MpcacheError(
            f"{size} bytes were predicted, {dealt} dealt and {written} written: no store was made"
        )
    seconds = in_seconds(time.perf_counter() - began)
    console.print(f"[dim]session {which}: {in_bytes(written)} in {seconds}[/]")


# --- before a run --------------------------------------------------------------------------------


@contextlib.contextmanager
def opened(
    config: RunConfig, rank: int, spec: ModelSpec, prompt_tokens: int | None, trusted: bool = False
) -> Iterator[Store]:
    """The store of party `rank`, `config.store`, locked and fit for this run.

    Args:
        prompt_tokens: None at a party that does not know the prompt's length yet.
        trusted: the checksums of files were compared just now, and are not again.

    Raises:
        UsageError: it cannot be used, or not for this run; the message says why.
    """
    assert config.store is not None
    with contextlib.closing(Store(Path(config.store), rank, trusted)) as store:
        store.check_terms(terms_of(config, spec, prompt_tokens))
        yield store


def check_both(config: RunConfig, spec: ModelSpec, prompt_tokens: int) -> str:
    """For `launch`: refuse what the parties would refuse, before any of them is started.

    Returns:
        One line on which session is next.

    Raises:
        UsageError: a store cannot be used for this run.
    """
    with contextlib.ExitStack() as stack:
        stores = [
            stack.enter_context(opened(_at_party(config, rank), rank, spec, prompt_tokens))
            for rank in range(PARTIES)
        ]
        names = {store.header.store for store in stores}
        if len(names) > 1:
            raise UsageError(
                f"party-0 and party-1 of {config.store} are of two different stores; give the"
                " folder that one `mpcache deal` wrote"
            )
        total, number = len(stores[0].header.sessions), max(store.next for store in stores)
        for store in stores:
            store.verify(number)
    return f"session {number + 1} of {total} from the store {config.store}, dealt ahead"


def _at_party(config: RunConfig, rank: int) -> RunConfig:
    assert config.store is not None
    return config.model_copy(update={"store": str(party_folder(config.store, rank))})
