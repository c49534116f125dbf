"""Models whose shape is known without their files, so that they run with synthetic weights."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, replace
from typing import Any

from mpcache.errors import UsageError
from mpcache.models.families import spec_from_hf_config
from mpcache.models.spec import ModelSpec, RopeScaling


@dataclass(frozen=True)
class Known:
    """A model whose shape is known without its files; `repo` is where the hub keeps them."""

    spec: ModelSpec
    repo: str | None


def _opt(size: str, layers: int, hidden: int, heads: int, embed: int | None = None) -> Known:
    config = {
        "model_type": "opt",
        "vocab_size": 50272,
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "ffn_dim": 4 * hidden,
        "max_position_embeddings": 2048,
        "word_embed_proj_dim": embed,
        "do_layer_norm_before": embed is None,
        "eos_token_id": 2,
    }
    return Known(spec_from_hf_config(f"opt-{size}", config), f"facebook/opt-{size}")


def _llama(name: str, repo: str | None, spec: ModelSpec, **changes: Any) -> Known:
    return Known(replace(spec, name=name, **changes), repo)


_LLAMA_7B = ModelSpec(
    name="llama-7b",
    family="llama",
    layers=32,
    hidden=4096,
    heads=32,
    kv_heads=32,
    head_dim=128,
    ffn=11008,
    vocab=32000,
    context=2048,
    norm="rms",
    norm_eps=1e-6,
    tied=False,
    eos_ids=(2,),
)
_LLAMA_3_8B = replace(
    _LLAMA_7B,
    kv_heads=8,
    ffn=14336,
    vocab=128_256,
    context=8192,
    norm_eps=1e-5,
    rope_base=500_000.0,
    eos_ids=(128_001,),
)
_LLAMA_32_1B: dict[str, Any] = {
    "layers": 16,
    "hidden": 2048,
    "head_dim": 64,
    "ffn": 8192,
    "context": 131_072,
    "rope_scaling": RopeScaling(32.0, 1.0, 4.0, 8192),
    "tied": True,
}
_SMOLLM2: dict[str, Any] = {
    "layers": 30,
    "hidden": 576,
    "heads": 9,
    "kv_heads": 3,
    "head_dim": 64,
    "ffn": 1536,
    "vocab": 49_152,
    "context": 8192,
    "norm_eps": 1e-5,
    "rope_base": 100_000.0,
    "tied": True,
}
_META = "meta-llama"
_ROWS: tuple[Known, ...] = (
    _llama("smollm2", None, _LLAMA_7B, **_SMOLLM2),
    _opt("125m", 12, 768, 12),
    _opt("350m", 24, 1024, 16, embed=512),
    _opt("1.3b", 24, 2048, 32),
    _opt("2.7b", 32, 2560, 32),
    _opt("6.7b", 32, 4096, 32),
    _opt("13b", 40, 5120, 40),
    _llama("llama-7b", "huggyllama/llama-7b", _LLAMA_7B),
    _llama("llama-2-7b", f"{_META}/Llama-2-7b-hf", _LLAMA_7B, context=4096, norm_eps=1e-5),
    _llama("llama-3-8b", f"{_META}/Meta-Llama-3-8B", _LLAMA_3_8B),
    _llama("llama-3.2-1b", f"{_META}/Llama-3.2-1B", _LLAMA_3_8B, **_LLAMA_32_1B),
)
KNOWN: dict[str, Known] = {row.spec.name: row for row in _ROWS}
ALIASES: dict[str, str] = {
    "default": "smollm2",
    "smollm2-135m": "smollm2",
    "smollm2-135m-instruct": "smollm2",
    **{row.repo.lower(): row.spec.name for row in _ROWS if row.repo},
}


def known(model: str) -> Known | None:
    """The known model of this name, alias or hub repository, whatever its case; None if unknown."""
    name = model.lower()
    return KNOWN.get(ALIASES.get(name, name))


def unknown_model(model: str) -> UsageError:
    """An error that names the nearest known model, and what is possible."""
    names = [*KNOWN, *ALIASES]
    near = difflib.get_close_matches(model.lower(), names, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]}?" if near else ""
    return UsageError(
        f"unknown model {model!r}.{hint} Expected one of: {', '.join(KNOWN)};"
        " a folder with a Hugging Face checkpoint; or a hub repository as owner/name"
    )
