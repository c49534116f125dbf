"""A tiny LLaMA checkpoint with random weights, of which every answer is lower-case letters."""

from __future__ import annotations

import json
import math
import string
from pathlib import Path

import tokenizers
import torch
from safetensors.torch import save_file

LAYERS, HIDDEN, FFN, VOCAB = 3, 32, 48, 300
HEADS, KV_HEADS = 4, 2
CONTEXT = 400


def save_tiny(folder: Path, hidden: int = HIDDEN) -> Path:
    """Write config.json, model.safetensors and tokenizer.json (a byte a token, merges of pairs)."""
    folder.mkdir(parents=True)
    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": VOCAB,
        "hidden_size": hidden,
        "intermediate_size": FFN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": False,
        "hidden_act": "silu",
    }
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = _tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    save_file(_weights(hidden, tokenizer), folder / "model.safetensors")
    return folder


def _tokenizer() -> tokenizers.Tokenizer:
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    pairs = [(a, b) for a in string.ascii_lowercase for b in "aeiou"][: VOCAB - len(alphabet)]
    vocabulary = {token: number for number, token in enumerate([*alphabet, *map("".join, pairs)])}
    inner = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=pairs))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = tokenizers.decoders.ByteLevel()
    return inner


def _weights(hidden: int, tokenizer: tokenizers.Tokenizer) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) / math.sqrt(shape[-1])

    head_dim = hidden // HEADS
    weights = {
        "model.embed_tokens.weight": random(VOCAB, hidden) * math.sqrt(hidden),
        "model.norm.weight": torch.ones(hidden),
        "lm_head.weight": 4 * random(VOCAB, hidden),
    }
    letters = {tokenizer.token_to_id(letter) for letter in string.ascii_lowercase}
    silent = [number for number in range(VOCAB) if number not in letters]
    weights["lm_head.weight"][silent] = 0.0
    for layer in range(LAYERS):
        attention, ffn = (f"model.layers.{layer}.{part}" for part in ("self_attn", "mlp"))
        weights[f"model.layers.{layer}.input_layernorm.weight"] = torch.ones(hidden)
        weights[f"model.layers.{layer}.post_attention_layernorm.weight"] = torch.ones(hidden)
        weights[f"{attention}.q_proj.weight"] = random(hidden, hidden)
        weights[f"{attention}.k_proj.weight"] = random(KV_HEADS * head_dim, hidden)
        weights[f"{attention}.v_proj.weight"] = random(KV_HEADS * head_dim, hidden)
        weights[f"{attention}.o_proj.weight"] = random(hidden, hidden)
        weights[f"{ffn}.gate_proj.weight"] = random(FFN, hidden)
        weights[f"{ffn}.up_proj.weight"] = random(FFN, hidden)
        weights[f"{ffn}.down_proj.weight"] = random(hidden, FFN)
    return weights
