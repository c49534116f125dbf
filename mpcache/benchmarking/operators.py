"""Single operators at the shapes in which others were measured: OPT-1.3B's, one decode step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from mpcache.benchmarking.job import Job, Side
from mpcache.eviction.base import causal_mask
from mpcache.eviction.oblivious import top
from mpcache.protocols.activation import relu, silu
from mpcache.protocols.arithmetic import linear, product
from mpcache.protocols.comparison import maximum, negative
from mpcache.protocols.functions import decay
from mpcache.protocols.greatest import argmax
from mpcache.protocols.norm import norm
from mpcache.protocols.operation import Machine, Operation, PlainMachine, SecureMachine, Value
from mpcache.protocols.selection import best
from mpcache.protocols.softmax import attention, softmax

Shape = tuple[int, ...]
Run = Callable[[Machine, list[Value]], Any]


class _OneHotRows(Operation):
    """Whole numbers as one-hot rows of 2^bits; suite dealer alone has it as a primitive."""

    name = "one-hot"

    def plain(self, machine: PlainMachine, x: Value, bits: int) -> Value:
        places = torch.arange(1 << bits).reshape(-1, *([1] * x.ndim))
        return (places == x.round()).to(x.dtype)

    def run(self, machine: SecureMachine, x: Value, bits: int) -> Value:
        suite: Any = machine.suite
        return suite.one_hot(x, 0, bits)


_one_hot = _OneHotRows()


@dataclass(frozen=True)
class Operator:
    """One operator: the shapes of its inputs, and what is done with them.

    Args:
        kept: which inputs stay from step to step and are masked once, as keys and values are.
        matrices: which inputs are weights of the owner.
        suites: which suites have it.
    """

    name: str
    shapes: tuple[Shape, ...]
    run: Run
    kept: tuple[int, ...] = ()
    matrices: tuple[int, ...] = ()
    scale: float = 1.0
    suites: tuple[str, ...] = ("dealer", "crypten")


def _attention(tokens: int) -> Operator:
    return Operator(
        f"attention, 32 heads, T={tokens}, full",
        ((32, 1, 1, 64), (32, tokens, 64), (32, tokens, 64)),
        lambda machine, v: attention(machine, v[0], v[1], v[2], None, 0)[0],
        kept=(1, 2),
    )


def _linear(rows: int) -> Operator:
    return Operator(
        f"linear {rows}x2048x2048",
        ((rows, 2048), (2048, 2048)),
        lambda machine, v: linear(machine, v[0], v[1]),
        matrices=(1,),
    )


def _best(k: int, n: int) -> Operator:
    return Operator(
        f"top {k} of {n}, 32 rows",
        ((32, n),),
        lambda machine, v: best(machine, v[0], k, magnitude=8, keep=10),
        # crypten's four million comparisons on 64 bits take gigabytes
        suites=("dealer", "crypten") if n < 512 else ("dealer",),
    )


def _evict(heads: int, tokens: int = 1024, kept: int = 717) -> Operator:
    """Keep the most important tokens of a prompt, 4 and 16 at its ends; both widths are 64."""
    return Operator(
        f"evict to {kept} of {tokens} tokens, {heads} heads",
        ((tokens,), (heads, tokens, 128)),
        lambda machine, v: top(machine, v[0], kept, 4, 16).of(machine, v[1], kept=True),
        kept=(1,),
        suites=("dealer",),
    )


OPERATORS: tuple[Operator, ...] = (
    Operator("greater than 0, 32x1024", ((32, 1024),), lambda m, v: negative(m, -v[0])),
    Operator("maximum over 1024, 32 rows", ((32, 1024),), lambda m, v: maximum(m, v[0], 1)),
    Operator("exp of x <= 0, 32x1024", ((32, 1024),), lambda m, v: decay(m, v[0]), scale=-1.0),
    Operator("softmax over 1024, 32 rows", ((32, 1024),), lambda m, v: softmax(m, v[0])),
    _best(16, 64),
    _best(50, 512),
    _evict(3),
    _evict(32),
    Operator(
        "one-hot of (32, 50) in 512",
        ((32, 50),),
        lambda m, v: _one_hot(m, v[0], 9),
        scale=100.0,
        suites=("dealer",),
    ),
    Operator(
        "token gather (32, 50) of 512x64, keys only",
        ((32, 50, 512), (32, 512, 64)),
        lambda m, v: product(m, v[0], v[1]),
        kept=(1,),
    ),
    Operator(
        "q K^T, 32 heads, 1024 keys",
        ((32, 1, 64), (32, 1024, 64)),
        lambda m, v: product(m, v[0], v[1].transpose(1, 2)),
        kept=(1,),
    ),
    _linear(1),
    _linear(128),
    Operator(
        "layernorm 2048",
        ((1, 2048), (2048,), (2048,)),
        lambda m, v: norm(m, v[0], v[1], v[2], 1e-5, True),
    ),
    Operator("relu 8192", ((1, 8192),), lambda m, v: relu(m, v[0])),
    Operator("silu 8192", ((1, 8192),), lambda m, v: silu(m, v[0])),
    Operator("argmax over 50272", ((1, 50272),), lambda m, v: argmax(m, v[0])),
    _attention(512),
    _attention(1024),
    _attention(2048),
    Operator(
        "causal attention, 32 heads, 64 queries",
        ((32, 1, 64, 64), (32, 64, 64), (32, 64, 64)),
        lambda m, v: attention(m, v[0], v[1], v[2], causal_mask(64, v[1]), 0)[0],
        kept=(1, 2),
    ),
)


@dataclass(frozen=True)
class OperatorJob(Job):
    """The same operator in every step, on the same inputs."""

    operator: Operator

    def prepare(self, machine: Machine, side: Side) -> Callable[[int], None]:
        generator = torch.Generator().manual_seed(1)
        values: list[Any] = []
        for place, shape in enumerate(self.operator.shapes):
            value = torch.randn(shape, generator=generator)
            if self.operator.scale < 0:
                value = -value.abs()
            elif self.operator.scale > 1:
                value = (value.abs() * self.operator.scale).round().clamp(max=500)
            if place in self.operator.matrices:
                name = f"input{place}"
                values.append(machine.matrix(name, value if side.owns else None, shape))
                continue
            shared = side.share(machine, value)
            values.append(machine.keep(shared) if place in self.operator.kept else shared)

        def step(number: int) -> None:
            self.operator.run(machine, values)

        return step
