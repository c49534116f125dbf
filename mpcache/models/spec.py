"""What a decoder is, apart from its weights: everything here is public.

Canonical weight names, matrices stored input-major (``[inputs, outputs]``, so that ``x @ w``):

    embed.tokens [vocab, embed]        embed.positions [context + 2, hidden]  (learned positions)
    embed.project [embed, hidden]      (only where embed != hidden)
    layers.N.attention.norm.gain [hidden]   .norm.bias [hidden]
    layers.N.attention.query  [hidden, heads * head_dim]     .query.bias
    layers.N.attention.key    [hidden, kv_heads * head_dim]  .key.bias
    layers.N.attention.value  [hidden, kv_heads * head_dim]  .value.bias
    layers.N.attention.output [heads * head_dim, hidden]     .output.bias
    layers.N.ffn.norm.gain [hidden]    .norm.bias [hidden]
    layers.N.ffn.gate [hidden, ffn]    (gated only)
    layers.N.ffn.up [hidden, ffn]      .up.bias
    layers.N.ffn.down [ffn, hidden]    .down.bias
    final.norm.gain [hidden]           final.norm.bias [hidden]
    final.project [hidden, embed]      (only where embed != hidden)
    head [embed, vocab]                (only where the head is not tied to embed.tokens)
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Literal


@dataclass(frozen=True)
class RopeScaling:
    """The llama-3 rescaling of rotary frequencies (Hugging Face ``rope_type: llama3``)."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_context: int


@dataclass(frozen=True)
class ModelSpec:
    """The public shape of a decoder. Sizes are counts; `context` is in tokens."""

    name: str
    family: Literal["llama", "opt"]
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    context: int
    norm: Literal["rms", "layer"]
    norm_eps: float
    norm_first: bool = True  # False: LayerNorm after the residual sum (opt-350m)
    final_norm: bool = True
    positions: Literal["rotary", "learned"] = "rotary"
    position_offset: int = 0  # learned positions start at this row (OPT: 2)
    rope_base: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    activation: Literal["silu", "relu", "gelu"] = "silu"
    gated: bool = True
    biases: bool = False
    tied: bool = True
    embed: int = 0  # width of the token table; 0 means hidden
    eos_ids: tuple[int, ...] = ()

    @property
    def embed_dim(self) -> int:
        return self.embed or self.hidden

    @property
    def group(self) -> int:
        """Query heads for each key/value head."""
        return self.heads // self.kv_heads

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Canonical name -> shape of every weight."""
        hidden, embed = self.hidden, self.embed_dim
        shapes: dict[str, tuple[int, ...]] = {"embed.tokens": (self.vocab, embed)}
        if self.positions == "learned":
            shapes["embed.positions"] = (self.context + self.position_offset, hidden)
        if embed != hidden:
            shapes["embed.project"] = (embed, hidden)
        for layer in range(self.layers):
            shapes.update(self._layer_shapes(f"layers.{layer}"))
        if self.final_norm:
            shapes.update(self._norm_shapes("final.norm"))
        if embed != hidden:
            shapes["final.project"] = (hidden, embed)
        if not self.tied:
            shapes["head"] = (embed, self.vocab)
        return shapes

    def _norm_shapes(self, name: str) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {f"{name}.gain": (self.hidden,)}
        if self.norm == "layer":
            shapes[f"{name}.bias"] = (self.hidden,)
        return shapes

    def _layer_shapes(self, layer: str) -> dict[str, tuple[int, ...]]:
        hidden, queries, keys = (
            self.hidden,
            self.heads * self.head_dim,
            self.kv_heads * self.head_dim,
        )
        shapes = self._norm_shapes(f"{layer}.attention.norm")
        matrices = {
            f"{layer}.attention.query": (hidden, queries),
            f"{layer}.attention.key": (hidden, keys),
            f"{layer}.attention.value": (hidden, keys),
            f"{layer}.attention.output": (queries, hidden),
            f"{layer}.ffn.up": (hidden, self.ffn),
            f"{layer}.ffn.down": (self.ffn, hidden),
        }
        if self.gated:
            matrices[f"{layer}.ffn.gate"] = (hidden, self.ffn)
        for name, shape in matrices.items():
            shapes[name] = shape
            if self.biases:
                shapes[f"{name}.bias"] = (shape[1],)
        shapes.update(self._norm_shapes(f"{layer}.ffn.norm"))
        return shapes

    @property
    def parameters(self) -> int:
        """Number of weights, a tied head counted once."""
        total = 0
        for shape in self.shapes().values():
            size = 1
            for side in shape:
                size *= side
            total += size
        return total

    def digest(self) -> str:
        """SHA-256 of the public shape, so that parties agree on what they run.

        The name is left out: a folder may be called otherwise on another host.
        """
        shape = {key: value for key, value in asdict(self).items() if key != "name"}
        return hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()
