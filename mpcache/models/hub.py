"""Checkpoints from the Hugging Face hub: the local cache first, the network only if it answers."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mpcache.errors import UsageError
from mpcache.models.checkpoints import is_whole

PROBE_SECONDS = 10.0  # the longest that an unreachable hub may hold up a run
_SMALL_FILES = ["*.json", "merges.txt"]


class HubUnreachable(UsageError):
    """The checkpoint is neither in the local cache nor to be had from the hub."""


def is_offline() -> bool:
    """Whether HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE forbids the network."""
    names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
    return any(os.environ.get(name, "").upper() in {"1", "ON", "YES", "TRUE"} for name in names)


def cached(repo_id: str) -> Path | None:
    """The folder of `repo_id` in the local Hugging Face cache if it is whole; no network."""
    try:
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(repo_id, local_files_only=True))
    except Exception:  # not installed, not cached, or not a repository name
        return None
    return folder if is_whole(folder) else None


def fetch_from_hub(repo_id: str, probe_seconds: float = PROBE_SECONDS) -> Path:
    """The local folder of the checkpoint `repo_id`, downloaded if it is not in the cache.

    Args:
        repo_id: ``owner/name``.
        probe_seconds: how long the hub may take to answer at all; a download may take longer.

    Raises:
        HubUnreachable: not in the cache, and offline, unreachable, unknown there, or not
            permitted; the message says which.
    """
    folder = cached(repo_id)
    if folder is not None:
        return folder
    if is_offline():
        raise HubUnreachable(
            f"{repo_id}: is not in the local Hugging Face cache, and HF_HUB_OFFLINE is set;"
            " unset it, or give a local folder"
        )
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise HubUnreachable(
            f"{repo_id}: huggingface_hub is not installed; pip install huggingface_hub, or give a"
            " local folder"
        ) from None
    files = _within(probe_seconds, lambda: _list_files(repo_id, probe_seconds), repo_id)
    weights = "*.safetensors" if any(f.endswith(".safetensors") for f in files) else "*.bin"
    try:
        return Path(
            snapshot_download(
                repo_id, allow_patterns=[*_SMALL_FILES, weights], ignore_patterns=["*/*"]
            )
        )
    except Exception as error:
        raise _refusal(repo_id, error) from None


def _list_files(repo_id: str, seconds: float) -> list[str]:
    """Names of the repository's files; asking for them is the probe."""
    from huggingface_hub import HfApi

    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT") or None)
    siblings = api.model_info(repo_id, timeout=seconds).siblings or []
    return [sibling.rfilename for sibling in siblings]


def _within(seconds: float, call: Callable[[], list[str]], repo_id: str) -> list[str]:
    """The result of `call`, or an error after `seconds`: a resolver ignores HTTP timeouts."""
    done: list[Any] = []

    def work() -> None:
        try:
            done.append(call())
        except Exception as error:
            done.append(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(seconds)
    if not done:
        raise HubUnreachable(
            f"{repo_id}: the Hugging Face hub did not answer within {seconds:g} s; check the"
            " network, or give a local folder"
        )
    if isinstance(done[0], Exception):
        raise _refusal(repo_id, done[0])
    return list(done[0])


def _refusal(repo_id: str, error: Exception) -> HubUnreachable:
    """Say in our words why the hub gave nothing; its own messages run over many lines."""
    kind = type(error).__name__
    reason = {
        "GatedRepoError": "its owner asks for consent: accept on its page, then run hf auth login",
        "RepositoryNotFoundError": "the hub has no such repository, or it is private",
        "HFValidationError": "this is not a repository name; expected owner/name",
    }.get(kind, f"the Hugging Face hub cannot be reached ({kind})")
    return HubUnreachable(f"{repo_id}: {reason}. A local folder works without the hub")
