"""Configurations: what is read, and that every quirk is refused by its name."""

from __future__ import annotations

from typing import Any

import pytest

from mpcache.errors import UsageError
from mpcache.models.families import spec_from_hf_config
from mpcache.models.known import KNOWN, known, unknown_model
from mpcache.models.spec import RopeScaling

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "vocab_size": 96,
    "hidden_size": 48,
    "intermediate_size": 80,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "eos_token_id": 2,
}
OPT: dict[str, Any] = {
    "model_type": "opt",
    "vocab_size": 96,
    "hidden_size": 48,
    "ffn_dim": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "max_position_embeddings": 64,
}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}


@pytest.mark.parametrize(
    ("base", "changes", "quirk"),
    [
        (LLAMA, {"attention_bias": True}, "attention_bias"),
        (LLAMA, {"mlp_bias": True}, "mlp_bias"),
        (LLAMA, {"hidden_act": "gelu"}, "hidden_act"),
        (LLAMA, {"pretraining_tp": 2}, "pretraining_tp"),
        (LLAMA, {"sliding_window": 4096}, "sliding_window"),
        (LLAMA, {"quantization_config": {"bits": 4}}, "quantization_config"),
        (LLAMA, {"num_local_experts": 8}, "num_local_experts"),
        (LLAMA, {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
        (LLAMA, {"rope_scaling": {"type": "linear", "factor": 2.0}}, "linear"),
        (LLAMA, {"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "yarn"),
        (LLAMA, {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, "dynamic"),
        (LLAMA, {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        (LLAMA, {"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
        (LLAMA, {"num_key_value_heads": 4}, "num_key_value_heads"),
        (LLAMA, {"head_dim": 7}, "head_dim"),
        (LLAMA, {"hidden_size": None}, "hidden_size"),
        (LLAMA, {"num_hidden_layers": 0}, "num_hidden_layers"),
        (LLAMA, {"vocab_size": "96"}, "vocab_size"),
        (LLAMA, {"eos_token_id": 96}, "eos_token_id"),
        (LLAMA, {"model_type": "mistral"}, "sliding_window"),
        (LLAMA, {"model_type": "mixtral"}, "mixtral"),
        (LLAMA, {"model_type": None}, "model_type"),
        (OPT, {"activation_function": "gelu_new"}, "activation_function"),
        (OPT, {"enable_bias": False}, "enable_bias"),
        (OPT, {"layer_norm_elementwise_affine": False}, "layer_norm_elementwise_affine"),
        (OPT, {"_remove_final_layer_norm": True}, "_remove_final_layer_norm"),
        (OPT, {"num_attention_heads": 7}, "num_attention_heads"),
        (OPT, {"ffn_dim": None}, "ffn_dim"),
    ],
)
def test_unsupported_is_refused_by_name(
    base: dict[str, Any], changes: dict[str, Any], quirk: str
) -> None:
    with pytest.raises(UsageError, match=quirk) as caught:
        spec_from_hf_config("some-model", {**base, **changes})
    assert "some-model" in str(caught.value) and "expected" in str(caught.value)


@pytest.mark.parametrize("base", [LLAMA, OPT])
def test_harmless_keys_pass(base: dict[str, Any]) -> None:
    harmless = {"layerdrop": 0.1, "dropout": 0.1, "sliding_window": None, "use_cache": False}
    assert spec_from_hf_config("m", {**base, **harmless}) == spec_from_hf_config("m", base)


def test_both_spellings_of_rope_scaling_agree() -> None:
    old = {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3}}
    new = {"rope_parameters": {"rope_theta": 5e5, "rope_type": "llama3", **LLAMA3}}
    first, second = (spec_from_hf_config("m", {**LLAMA, **rope}) for rope in (old, new))
    assert first == second
    assert first.rope_base == 5e5 and first.rope_scaling == RopeScaling(8.0, 1.0, 4.0, 64)


def test_mistral_without_a_window_is_a_llama() -> None:
    mistral = {**LLAMA, "model_type": "mistral", "sliding_window": None}
    assert spec_from_hf_config("m", mistral) == spec_from_hf_config("m", LLAMA)


@pytest.mark.parametrize(
    ("ends", "ids"), [(None, ()), (2, (2,)), ([3, 5], (3, 5))], ids=["none", "one", "list"]
)
def test_end_tokens(ends: object, ids: tuple[int, ...]) -> None:
    assert spec_from_hf_config("m", {**LLAMA, "eos_token_id": ends}).eos_ids == ids


def test_opt_350m_has_norms_after_and_a_narrow_table() -> None:
    spec = KNOWN["opt-350m"].spec
    assert not spec.norm_first and not spec.final_norm and spec.embed_dim == 512
    assert spec.shapes()["embed.project"] == (512, 1024)
    assert spec.shapes()["embed.positions"] == (2050, 1024)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [  # as counted from the published checkpoints
        ("smollm2", 134_515_008),
        ("opt-125m", 125_239_296),
        ("opt-350m", 331_196_416),
        ("opt-1.3b", 1_315_758_080),
        ("opt-2.7b", 2_651_596_800),
        ("opt-6.7b", 6_658_473_984),
        ("opt-13b", 12_853_473_280),
        ("llama-7b", 6_738_415_616),
        ("llama-2-7b", 6_738_415_616),
        ("llama-3-8b", 8_030_261_248),
        ("llama-3.2-1b", 1_235_814_400),
    ],
)
def test_known_shapes_have_the_published_size(name: str, parameters: int) -> None:
    assert KNOWN[name].spec.parameters == parameters
    assert KNOWN[name].spec.name == name


def test_known_by_alias_and_repository() -> None:
    assert known("default") is known("SmolLM2-135M-Instruct") is KNOWN["smollm2"]
    assert known("facebook/opt-125m") is KNOWN["opt-125m"]
    assert known("meta-llama/Llama-3.2-1B") is KNOWN["llama-3.2-1b"]
    assert known("gpt2") is None


def test_unknown_model_names_the_nearest() -> None:
    message = str(unknown_model("opt-1.3bb"))
    assert "Did you mean opt-1.3b?" in message and "llama-3-8b" in message and "folder" in message
