"""Checkpoint folders against transformers, and every way in which a folder can be wrong."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from mpcache.errors import UsageError
from mpcache.models.checkpoints import check_folder, load_folder, read_spec

from . import reference
from .conftest import Save, llama_config, opt_config

IDS = [2, 17, 96, 5, 5, 41, 0, 63, 8, 30, 77]
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 10_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
CONFIGS = {
    "llama-untied": lambda: llama_config(),
    "llama-tied": lambda: llama_config(tie_word_embeddings=True),
    "llama-one-kv-head": lambda: llama_config(num_key_value_heads=1, rms_norm_eps=1e-3),
    "llama-wide-heads": lambda: llama_config(head_dim=10),
    "llama-3-scaling": lambda: llama_config(rope_parameters=LLAMA3),
    "opt": lambda: opt_config(),
    "opt-untied": lambda: opt_config(tie_word_embeddings=False),
    "opt-norm-after": lambda: opt_config(do_layer_norm_before=False),
    "opt-gelu": lambda: opt_config(activation_function="gelu"),
    "opt-350m-like": lambda: opt_config(do_layer_norm_before=False, word_embed_proj_dim=20),
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS.keys())
def test_logits_equal_those_of_transformers(config: Any, save: Save) -> None:
    folder, model = save(config())
    spec = read_spec(folder)
    weights = load_folder(folder)
    assert {name: tuple(w.shape) for name, w in weights.items()} == spec.shapes()
    assert all(w.dtype == torch.float32 and w.is_contiguous() for w in weights.values())
    assert spec.parameters == sum(p.numel() for p in model.parameters())
    with torch.no_grad():
        expected = model(torch.tensor([IDS])).logits[0]
    assert expected.std() > 0.3  # a comparison of zeros would prove nothing
    torch.testing.assert_close(reference.logits(spec, weights, IDS), expected, atol=1e-4, rtol=0)


def test_llama3_scaling_changes_some_frequencies_only(save: Save) -> None:
    folder, model = save(llama_config(rope_parameters=LLAMA3))
    spec = read_spec(folder)
    torch.testing.assert_close(reference.frequencies(spec), model.model.rotary_emb.inv_freq)
    plain = spec.rope_base ** -(torch.arange(0, spec.head_dim, 2) / spec.head_dim)
    same = reference.frequencies(spec) == plain
    assert bool(same.any()) and not bool(same.all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_becomes_float32(dtype: torch.dtype, save: Save) -> None:
    folder, model = save(llama_config())
    model.to(dtype).save_pretrained(folder)
    weights = load_folder(folder)
    query = model.model.layers[1].self_attn.q_proj.weight
    assert torch.equal(weights["layers.1.attention.query"], query.float().t())


def test_shards_and_bin_give_the_same_weights(save: Save, tmp_path: Path) -> None:
    folder, model = save(opt_config(word_embed_proj_dim=20))
    whole = load_folder(folder)
    model.save_pretrained(tmp_path / "shards", max_shard_size="30KB")
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    one, two = tmp_path / "bin", tmp_path / "bins"
    _as_bin(folder, one, shards=1)
    _as_bin(folder, two, shards=2)
    for other in (tmp_path / "shards", one, two):
        again = load_folder(other)
        assert whole.keys() == again.keys()
        assert all(torch.equal(whole[name], again[name]) for name in whole)


def _as_bin(folder: Path, target: Path, shards: int) -> None:
    """Rewrite a safetensors folder as `pytorch_model.bin`, in one file or more."""
    target.mkdir()
    (target / "config.json").write_bytes((folder / "config.json").read_bytes())
    state = load_file(folder / "model.safetensors")
    if shards == 1:
        torch.save(state, target / "pytorch_model.bin")
        return
    weight_map = {}
    for shard in range(shards):
        file = f"pytorch_model-{shard}.bin"
        part = {name: w for i, (name, w) in enumerate(state.items()) if i % shards == shard}
        torch.save(part, target / file)
        weight_map.update(dict.fromkeys(part, file))
    (target / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))


def test_checking_reads_no_weights(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, _ = save(llama_config())
    monkeypatch.setattr("mpcache.models.checkpoints._open", lambda file: pytest.fail("read"))
    check_folder(folder)


def _edit(folder: Path, **changes: torch.Tensor | None) -> None:
    file = folder / "model.safetensors"
    state = {**load_file(file), **changes}
    save_file({name: value for name, value in state.items() if value is not None}, file)


NORM, QUERY = "model.norm.weight", "model.layers.1.self_attn.q_proj.weight"


def test_known_buffers_and_a_tied_copy_are_ignored(save: Save) -> None:
    folder, model = save(llama_config(tie_word_embeddings=True))
    table = model.model.embed_tokens.weight.detach().clone()
    buffer = "model.layers.0.self_attn.rotary_emb.inv_freq"
    _edit(folder, **{buffer: torch.ones(4), "lm_head.weight": table})
    load_folder(folder)
    _edit(folder, **{"lm_head.weight": table + 1})
    with pytest.raises(UsageError, match="tie_word_embeddings"):
        load_folder(folder)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({NORM: None}, ["norm.weight", "missing", "[48]"]),
        ({NORM: torch.ones(47)}, [NORM, "[47]", "[48]"]),
        ({QUERY: torch.ones(48, 47)}, [QUERY, "[48, 47]", "[48, 48]"]),
        ({QUERY: torch.ones(48, 48, dtype=torch.int8)}, [QUERY, "quantised"]),
        ({"model.layers.0.self_attn.q_proj.bias": torch.ones(48)}, ["unexpected", "q_proj.bias"]),
        ({"model.layers.3.mlp.up_proj.weight": torch.ones(1)}, ["unexpected", "layers.3"]),
    ],
)
def test_wrong_tensors(changes: dict[str, Any], words: list[str], save: Save) -> None:
    folder, _ = save(llama_config())
    _edit(folder, **changes)
    with pytest.raises(UsageError) as caught:
        check_folder(folder)
    assert all(word in str(caught.value) for word in words), caught.value


def test_a_nan_is_found_when_loading(save: Save) -> None:
    folder, _ = save(llama_config())
    weight = torch.ones(48)
    weight[5] = float("nan")
    _edit(folder, **{NORM: weight})
    with pytest.raises(UsageError, match=r"norm\.weight holds NaN"):
        load_folder(folder)


@pytest.mark.parametrize("keep", [0, 7, 8, 200, 0.5, -1])
def test_truncated_safetensors(keep: float, save: Save) -> None:
    folder, _ = save(llama_config())
    file = folder / "model.safetensors"
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(UsageError, match=r"model\.safetensors.*truncated"):
        check_folder(folder)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"\x04" + bytes(7) + b"{]}]", "damaged"),
        (b"\x0e" + bytes(7) + b'{"a": [1, 2]} ', "damaged"),
        (b"\x02" + bytes(7) + b"{}xx", "damaged"),
    ],
)
def test_other_files_under_that_name(content: bytes, word: str, save: Save) -> None:
    folder, _ = save(llama_config())
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(UsageError, match=word):
        check_folder(folder)


def test_missing_files(save: Save, tmp_path: Path) -> None:
    folder, model = save(llama_config())
    with pytest.raises(UsageError, match="no such folder"):
        check_folder(tmp_path / "nowhere")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UsageError, match=r"no weights; expected model\.safetensors"):
        check_folder(folder)
    model.save_pretrained(folder, max_shard_size="30KB")
    gone = sorted(folder.glob("*.safetensors"))[1]
    gone.unlink()
    with pytest.raises(UsageError, match=f"{gone.name}: is missing"):
        check_folder(folder)
    (folder / "config.json").unlink()
    with pytest.raises(UsageError, match=r"no config\.json"):
        check_folder(folder)


def test_index_that_does_not_fit(save: Save) -> None:
    folder, model = save(llama_config())
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="30KB")
    index = folder / "model.safetensors.index.json"
    table = json.loads(index.read_text())
    for name, word in (("../x.safetensors", "same folder"), (table["weight_map"][NORM], "lacks")):
        weight_map = {**table["weight_map"], "model.ghost": name}
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(UsageError, match=word):
            check_folder(folder)
    index.write_text("{}")
    with pytest.raises(UsageError, match="no weight_map"):
        check_folder(folder)


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("code of a checkpoint was run",))


def test_bin_runs_no_code_and_is_checked(save: Save, tmp_path: Path) -> None:
    folder, _ = save(llama_config())
    target = tmp_path / "bin"
    _as_bin(folder, target, shards=1)
    file = target / "pytorch_model.bin"
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    with pytest.raises(UsageError, match=r"pytorch_model\.bin.*truncated"):
        check_folder(target)
    torch.save({NORM: _Evil()}, file)
    with pytest.raises(UsageError, match="never run"):
        check_folder(target)
    file.write_bytes(pickle.dumps(_Evil()))
    with pytest.raises(UsageError, match="not a PyTorch zip file"):
        check_folder(target)


@pytest.mark.parametrize("content", [b"{", b"[1]", b"\xff\xfe"])
def test_damaged_configuration(content: bytes, save: Save) -> None:
    folder, _ = save(llama_config())
    (folder / "config.json").write_bytes(content)
    with pytest.raises(UsageError, match=r"config\.json"):
        check_folder(folder)


def test_end_tokens_come_from_generation_config_too(save: Save) -> None:
    folder, _ = save(llama_config(eos_token_id=2))
    (folder / "generation_config.json").write_text('{"eos_token_id": [2, 9]}')
    assert read_spec(folder).eos_ids == (2, 9)
