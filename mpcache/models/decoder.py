"""The one decoder text, for the OPT and LLaMA families, read by every machine.

It knows neither parties nor policies: a cache is handed in, and takes queries, keys and values.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import groupby
from typing import Protocol

from mpcache.models.fusing import Fused, Group, fused_groups
from mpcache.models.rotary_tables import rotary_tables
from mpcache.models.spec import ModelSpec
from mpcache.protocols.activation import gated, gelu, relu, silu
from mpcache.protocols.arithmetic import embed, linear, multiply, settled
from mpcache.protocols.norm import norm
from mpcache.protocols.operation import Machine, Value
from mpcache.protocols.rotary import rotary


class KeyValueCache(Protocol):
    """What the decoder asks of a cache."""

    def attend(
        self, machine: Machine, layer: int, queries: Value, keys: Value, values: Value
    ) -> Value:
        """Store keys and values [kv_heads, tokens, head_dim] of new tokens, and attend.

        `queries` is [kv_heads, group, tokens, head_dim]; so is the returned context.
        """
        ...

    def passed(self, machine: Machine, layer: int, x: Value) -> Value:
        """Those of the activations x [tokens, hidden] behind a layer's attention that go on."""
        return x

    def angles(self, layer: int) -> tuple[Value, Value] | None:
        """cos and sin [tokens, head_dim / 2] for a layer whose tokens stand at other positions
        than one after the other; they may be secret. None elsewhere.
        """
        return None


@dataclass(frozen=True)
class Model:
    """A spec and its weights as one machine holds them: tensors, shares or hollow shares."""

    spec: ModelSpec
    weights: Mapping[str, Value]

    def bias(self, name: str) -> Value | None:
        return self.weights.get(f"{name}.bias")


ACTIVATIONS = {"relu": relu, "silu": silu, "gelu": gelu}
ADDED = ("embed.positions",)  # matrices whose rows are added, not multiplied


def load_weights(
    machine: Machine,
    spec: ModelSpec,
    tensors: Mapping[str, Value] | None,
    shares: Mapping[str, Value] | None = None,
) -> Model:
    """Bring the weights into the machine as `models.fusing` makes them, each layer in a scope.

    Args:
        tensors: the weights in the clear by canonical name, at their owner and in the twin; None
            elsewhere and in the cost reading.
        shares: where weights are shared, this party's own of each that `fused_groups` names.
    """
    given = Fused(spec, tensors) if shares is None and tensors is not None else shares
    weights: dict[str, Value] = {}
    for layer, named in groupby(fused_groups(spec).items(), lambda item: item[1].layer):
        with nullcontext() if layer is None else machine.scope(f"layer{layer}"):
            for name, group in named:
                tensor = None if given is None else given[name]
                put = machine.matrix if _multiplies(name, group) else machine.weight
                weights[name] = put(name, tensor, group.shape)
    return Model(spec, weights)


def _multiplies(name: str, group: Group) -> bool:
    """Whether a weight is only used as the right side of a product."""
    return len(group.shape) == 2 and name not in ADDED


def matrices_of(spec: ModelSpec) -> dict[int | None, list[int]]:
    """Layer (None before and behind them) -> its matrices' numbers in `load_weights`."""
    found: dict[int | None, list[int]] = {}
    groups = [group for name, group in fused_groups(spec).items() if _multiplies(name, group)]
    for number, group in enumerate(groups):
        found.setdefault(group.layer, []).append(number)
    return found


def forward(
    machine: Machine, model: Model, tokens: Value, start: int, count: int, cache: KeyValueCache
) -> Value:
    """Logits [1, vocab] after `count` new tokens at positions from `start` on."""
    x = embedded(machine, model, tokens, start, count)
    for layer in range(model.spec.layers):
        x = decoder_layer(machine, model, layer, x, start, cache)
    return logits_of(machine, model, x[-1:])


def embedded(machine: Machine, model: Model, tokens: Value, start: int, count: int) -> Value:
    """What the first layer reads [tokens, hidden], for `count` positions from `start` on."""
    spec, weights = model.spec, model.weights
    with machine.scope("embed"):
        x = embed(machine, tokens, weights["embed.tokens"])
        if "embed.project" in weights:
            x = linear(machine, x, weights["embed.project"])
        if spec.positions == "learned":
            first = start + spec.position_offset
            x = x + weights["embed.positions"][first : first + count]
    return x


def logits_of(machine: Machine, model: Model, x: Value) -> Value:
    """Logits [tokens, vocab] of what the last layer wrote [tokens, hidden], not truncated."""
    spec, weights = model.spec, model.weights
    with machine.scope("head"):
        if spec.final_norm:
            x = _norm(machine, model, "final.norm", x)
        if "final.project" in weights:
            x = linear(machine, x, weights["final.project"])
        return linear(machine, x, weights["head"], weights.get("head.bias"), settled=False)


def decoder_layer(
    machine: Machine, model: Model, layer: int, x: Value, start: int, cache: KeyValueCache
) -> Value:
    """Activations [tokens, hidden] of positions from `start` on, through one layer.

    The cache may hold some of a prompt's tokens back: there are fewer then.
    """
    with machine.scope(f"layer{layer}"):
        x = _attention_block(machine, model, layer, x, start, cache)
        x = cache.passed(machine, layer, x)
        return _ffn_block(machine, model, layer, x)


def _norm(machine: Machine, model: Model, name: str, x: Value) -> Value:
    spec, gain = model.spec, model.weights.get(f"{name}.gain")
    centred = spec.norm == "layer" and gain is not None
    return norm(machine, x, gain, model.bias(name), spec.norm_eps, centred)


def _attention_block(
    machine: Machine, model: Model, layer: int, x: Value, start: int, cache: KeyValueCache
) -> Value:
    spec, name = model.spec, f"layers.{layer}.attention"
    count, heads, width = x.shape[0], spec.kv_heads, spec.head_dim
    with machine.scope("attention"):
        y = _norm(machine, model, f"{name}.norm", x) if spec.norm_first else x
        with machine.scope("input"):
            weight, bias = model.weights[f"{name}.input"], model.bias(f"{name}.input")
            y = linear(machine, y, weight, bias, settled=False, wide=True)
            query_width, key_width = spec.heads * width, heads * width
            # rotated values are settled once more, and kept then
            parts = [y[:, : query_width + key_width], y[:, query_width + key_width :]]
            parts = settled(machine, parts, (spec.positions != "rotary", True))
        queries, keys = parts[0][:, :query_width], parts[0][:, query_width:]
        queries = queries.reshape(count, heads, spec.group, width).permute(1, 2, 0, 3)
        keys = keys.reshape(count, heads, width)
        values = parts[1].reshape(count, heads, width)
        keys, values = keys.transpose(0, 1), values.transpose(0, 1)
        if spec.positions == "rotary":
            angles = cache.angles(layer) or rotary_tables(spec, start, count)
            queries, keys = _rotate(machine, spec, angles, queries, keys)
        context = cache.attend(machine, layer, queries, keys, values)
        context = context.permute(2, 0, 1, 3).reshape(count, query_width)
        with machine.scope("output"):
            y = linear(
                machine, context, model.weights[f"{name}.output"], model.bias(f"{name}.output")
            )
        x = x + y
        return x if spec.norm_first else _norm(machine, model, f"{name}.norm", x)


def _rotate(
    machine: Machine, spec: ModelSpec, angles: tuple[Value, Value], queries: Value, keys: Value
) -> tuple[Value, Value]:
    """Queries and keys rotated together, as heads of one tensor."""
    count = keys.shape[1]
    flat = queries.reshape(spec.heads, count, spec.head_dim)
    both = rotary(machine, machine.cat([flat, keys], 0), *angles)
    return both[: spec.heads].reshape(*queries.shape), both[spec.heads :]


def _ffn_block(machine: Machine, model: Model, layer: int, x: Value) -> Value:
    spec, name = model.spec, f"layers.{layer}.ffn"
    with machine.scope("ffn"):
        y = _norm(machine, model, f"{name}.norm", x) if spec.norm_first else x
        activation = ACTIVATIONS[spec.activation]
        with machine.scope("input"):
            weight, bias = model.weights[f"{name}.input"], model.bias(f"{name}.input")
            # an activation cuts what it reads; a gated one's factor is cut here
            y = linear(machine, y, weight, bias, settled=spec.gated)
        if spec.gated:
            gate, up = y[:, : spec.ffn], y[:, spec.ffn :]
            silu_gated = spec.activation == "silu"
            y = (
                gated(machine, gate, up)
                if silu_gated
                else multiply(machine, relu(machine, gate), up)
            )
        else:
            y = activation(machine, y)
        with machine.scope("output"):
            y = linear(machine, y, model.weights[f"{name}.down"], model.bias(f"{name}.down"))
        x = x + y
        return x if spec.norm_first else _norm(machine, model, f"{name}.norm", x)
