"""Small random checkpoints in Hugging Face format, and SmolLM2 loaded once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mpcache.models import registry

Save = Callable[..., tuple[Path, Any]]


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test of this room asks the real hub."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def llama_config(**changes: Any) -> Any:
    from transformers import LlamaConfig

    settings: dict[str, Any] = {
        "vocab_size": 97,
        "hidden_size": 48,
        "intermediate_size": 80,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "initializer_range": 0.2,
        "tie_word_embeddings": False,
    }
    return LlamaConfig(**{**settings, **changes})


def opt_config(**changes: Any) -> Any:
    from transformers import OPTConfig

    settings: dict[str, Any] = {
        "vocab_size": 97,
        "hidden_size": 48,
        "ffn_dim": 96,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "max_position_embeddings": 64,
        "init_std": 0.2,
    }
    return OPTConfig(**{**settings, **changes})


def _random_model(config: Any) -> Any:
    """A model whose every parameter is random: gains and biases would hide mistakes at 1 and 0."""
    from transformers import LlamaForCausalLM, OPTForCausalLM

    torch.manual_seed(7)
    family = LlamaForCausalLM if config.model_type == "llama" else OPTForCausalLM
    model = family(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                parameter.normal_(1.0 if "norm" in name and "weight" in name else 0.0, 0.3)
    return model


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Save a random model of a configuration; returns (folder, model)."""

    def build(config: Any, **options: Any) -> tuple[Path, Any]:
        model = _random_model(config)
        folder = tmp_path / "model"
        model.save_pretrained(folder, **options)
        return folder, model

    return build


@pytest.fixture(scope="session")
def smollm2_source() -> registry.Source:
    source = registry.find("smollm2", weights="required")
    source.check()
    return source


@pytest.fixture(scope="session")
def smollm2_weights(smollm2_source: registry.Source) -> dict[str, torch.Tensor]:
    return smollm2_source.load()
