"""The two decoder families: what their Hugging Face configurations mean, and what is refused.

A family is one reader of `config.json`, one table of quirks that mpcache does not compute, and one
table of weight names.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from mpcache.errors import UsageError
from mpcache.models.spec import ModelSpec, RopeScaling

Config = Mapping[str, Any]

# Key of config.json -> the values that mean "this quirk is off". An absent key is off, too.
_QUIRKS: dict[str, tuple[object, ...]] = {
    "quantization_config": (None,),
    "sliding_window": (None,),
    "num_local_experts": (None, 1),
    "num_experts": (None, 1),
    "is_encoder_decoder": (None, False),
    "add_cross_attention": (None, False),
}
_LLAMA_QUIRKS: dict[str, tuple[object, ...]] = {
    "hidden_act": ("silu", "swish"),
    "attention_bias": (None, False),
    "mlp_bias": (None, False),
    "pretraining_tp": (None, 1),
    "partial_rotary_factor": (None, 1.0),
}
_OPT_QUIRKS: dict[str, tuple[object, ...]] = {
    "activation_function": ("relu", "gelu"),
    "enable_bias": (True,),
    "layer_norm_elementwise_affine": (True,),
    "_remove_final_layer_norm": (None, False),
}


class _Reader:
    """Typed access to one configuration; every refusal names the model and the key."""

    def __init__(self, name: str, config: Config) -> None:
        self.name, self.config = name, config

    def refuse(self, key: str, value: object, expected: str) -> NoReturn:
        raise UsageError(
            f"{self.name}: the configuration says {key} = {value!r}, which mpcache does not"
            f" support; expected {expected}. Choose a checkpoint without it"
        )

    def refuse_quirks(self, quirks: Mapping[str, tuple[object, ...]]) -> None:
        for key, allowed in quirks.items():
            value = self.config.get(key, allowed[0])
            if value not in allowed:
                self.refuse(key, value, " or ".join(repr(choice) for choice in allowed))

    def count(self, key: str, default: int | None = None) -> int:
        """A positive integer; required unless `default` is given."""
        value = self.config.get(key)
        value = default if value is None else value
        if value is None:
            raise UsageError(
                f"{self.name}: the configuration has no {key}; expected a positive integer."
                " Is this the config.json of the checkpoint?"
            )
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            self.refuse(key, value, "a positive integer")
        return value

    def number(self, source: Config, key: str, default: float | None = None) -> float:
        """A positive number of `source`; required unless `default` is given."""
        value = source.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
            self.refuse(key, value, "a positive number")
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self.config.get(key, default)
        if not isinstance(value, bool):
            self.refuse(key, value, "true or false")
        return value

    def eos_ids(self) -> tuple[int, ...]:
        value = self.config.get("eos_token_id")
        ids = [] if value is None else value if isinstance(value, list) else [value]
        if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in ids):
            self.refuse("eos_token_id", value, "a token id or a list of them")
        return tuple(ids)

    def heads(self, hidden: int) -> tuple[int, int, int]:
        """(query heads, key/value heads, head_dim), checked against each other."""
        heads = self.count("num_attention_heads")
        kv_heads = self.count("num_key_value_heads", heads)
        if heads % kv_heads:
            self.refuse("num_key_value_heads", kv_heads, f"a divisor of the {heads} query heads")
        if self.config.get("head_dim") is None and hidden % heads:
            self.refuse("num_attention_heads", heads, f"a divisor of hidden_size = {hidden}")
        return heads, kv_heads, self.count("head_dim", hidden // heads)


def _rope(reader: _Reader, context: int) -> tuple[float, RopeScaling | None]:
    """Rotary base and scaling from `rope_parameters` (transformers 5) or the older two keys."""
    config = reader.config
    key = "rope_parameters" if config.get("rope_parameters") else "rope_scaling"
    rope = config.get(key) or {}
    if not isinstance(rope, Mapping):
        reader.refuse(key, rope, "a table")
    base = reader.number(rope, "rope_theta", config.get("rope_theta") or 10_000.0)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if rope.get("partial_rotary_factor", 1.0) != 1.0:
        reader.refuse("partial_rotary_factor", rope["partial_rotary_factor"], "1.0")
    if kind == "default":
        return base, None
    if kind != "llama3":
        reader.refuse(f"{key}.rope_type", kind, "'default' or 'llama3'")
    original = rope.get("original_max_position_embeddings", context)
    if isinstance(original, bool) or not isinstance(original, int) or original < 1:
        reader.refuse("original_max_position_embeddings", original, "a positive integer")
    factors = ("factor", "low_freq_factor", "high_freq_factor")
    factor, low, high = (reader.number(rope, name) for name in factors)
    if not low < high:
        reader.refuse("high_freq_factor", high, f"more than low_freq_factor = {low}")
    return base, RopeScaling(factor, low, high, original)


def _read_llama(reader: _Reader) -> ModelSpec:
    """LLaMA and what is computed exactly like it."""
    reader.refuse_quirks(_LLAMA_QUIRKS)
    hidden, context = reader.count("hidden_size"), reader.count("max_position_embeddings")
    heads, kv_heads, head_dim = reader.heads(hidden)
    if head_dim % 2:
        reader.refuse("head_dim", head_dim, "an even number: rotary positions turn pairs")
    base, scaling = _rope(reader, context)
    return ModelSpec(
        name=reader.name,
        family="llama",
        layers=reader.count("num_hidden_layers"),
        hidden=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        ffn=reader.count("intermediate_size"),
        vocab=reader.count("vocab_size"),
        context=context,
        norm="rms",
        norm_eps=reader.number(reader.config, "rms_norm_eps", 1e-6),
        rope_base=base,
        rope_scaling=scaling,
        tied=reader.flag("tie_word_embeddings", False),
        eos_ids=reader.eos_ids(),
    )


def _read_mistral(reader: _Reader) -> ModelSpec:
    """Mistral without its sliding window is a LLaMA; its default is a window of 4,096 tokens."""
    window = reader.config.get("sliding_window", 4096)
    if window is not None:
        reader.refuse("sliding_window", window, "null")
    return _read_llama(reader)


def _read_opt(reader: _Reader) -> ModelSpec:
    """OPT; with `do_layer_norm_before: false` (opt-350m) there is no norm after the last layer."""
    reader.refuse_quirks(_OPT_QUIRKS)
    hidden = reader.count("hidden_size")
    heads, kv_heads, head_dim = reader.heads(hidden)
    if kv_heads != heads or head_dim * heads != hidden:
        reader.refuse("num_key_value_heads", kv_heads, f"{heads}, as OPT has no grouped queries")
    embed = reader.count("word_embed_proj_dim", hidden)
    norm_first = reader.flag("do_layer_norm_before", True)
    return ModelSpec(
        name=reader.name,
        family="opt",
        layers=reader.count("num_hidden_layers"),
        hidden=hidden,
        heads=heads,
        kv_heads=heads,
        head_dim=head_dim,
        ffn=reader.count("ffn_dim"),
        vocab=reader.count("vocab_size"),
        context=reader.count("max_position_embeddings"),
        norm="layer",
        norm_eps=1e-5,
        norm_first=norm_first,
        final_norm=norm_first,
        positions="learned",
        position_offset=2,
        activation=reader.config.get("activation_function", "relu"),
        gated=False,
        biases=True,
        tied=reader.flag("tie_word_embeddings", True),
        embed=0 if embed == hidden else embed,
        eos_ids=reader.eos_ids(),
    )


READERS: dict[str, Callable[[_Reader], ModelSpec]] = {
    "llama": _read_llama,
    "mistral": _read_mistral,
    "opt": _read_opt,
}


def spec_from_hf_config(name: str, config: Config) -> ModelSpec:
    """The shape that a Hugging Face `config.json` describes.

    Args:
        name: how messages and reports call the model.
        config: the parsed JSON object.

    Raises:
        UsageError: an unknown `model_type`, a missing or impossible size, or a quirk that mpcache
            does not compute; the message names the key.
    """
    kind = config.get("model_type")
    if kind not in READERS:
        supported = ", ".join(READERS)
        raise UsageError(
            f"{name}: the configuration says model_type = {kind!r}, which mpcache does not support;"
            f" expected one of: {supported}"
        )
    reader = _Reader(name, config)
    reader.refuse_quirks(_QUIRKS)
    layer_types = config.get("layer_types") or []
    if any(layer != "full_attention" for layer in layer_types):
        reader.refuse("layer_types", layer_types, "'full_attention' in every layer")
    spec = READERS[kind](reader)
    beyond = [i for i in spec.eos_ids if i >= spec.vocab]
    if beyond:
        reader.refuse("eos_token_id", beyond, f"ids below vocab_size = {spec.vocab}")
    return spec


# --- weight names --------------------------------------------------------------------------------

_LLAMA_LAYER = {
    "attention.norm": "input_layernorm",
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.output": "self_attn.o_proj",
    "ffn.norm": "post_attention_layernorm",
    "ffn.gate": "mlp.gate_proj",
    "ffn.up": "mlp.up_proj",
    "ffn.down": "mlp.down_proj",
}
_OPT_LAYER = {
    "attention.norm": "self_attn_layer_norm",
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.output": "self_attn.out_proj",
    "ffn.norm": "final_layer_norm",
    "ffn.up": "fc1",
    "ffn.down": "fc2",
}
_LLAMA_TOP = {"embed.tokens": "embed_tokens", "final.norm": "norm"}
_OPT_TOP = {
    "embed.tokens": "decoder.embed_tokens",
    "embed.positions": "decoder.embed_positions",
    "embed.project": "decoder.project_in",
    "final.norm": "decoder.final_layer_norm",
    "final.project": "decoder.project_out",
}
LOOKUP_TABLES = ("embed.tokens", "embed.positions")  # stored row by row; every other matrix turns


def hf_name(spec: ModelSpec, name: str) -> str:
    """The Hugging Face name of the canonical weight `name`, without a leading ``model.``."""
    if name == "head":
        return "lm_head.weight"
    module, _, last = name.rpartition(".")
    suffix = {"gain": ".weight", "bias": ".bias"}.get(last)
    if suffix is None:
        module, suffix = name, ".weight"
    opt = spec.family == "opt"
    if not module.startswith("layers."):
        return (_OPT_TOP if opt else _LLAMA_TOP)[module] + suffix
    _, layer, part = module.split(".", 2)
    if opt:
        return f"decoder.layers.{layer}.{_OPT_LAYER[part]}{suffix}"
    return f"layers.{layer}.{_LLAMA_LAYER[part]}{suffix}"


def is_turned(name: str, shape: tuple[int, ...]) -> bool:
    """Whether Hugging Face stores the weight as ``[outputs, inputs]``, the canonical transposed."""
    return len(shape) == 2 and name not in LOOKUP_TABLES
