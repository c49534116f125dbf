"""What an operation is, and the machines that read a program made of operations.

A program (the decoder, a cache policy) is written once against operations. A machine reads it:

* `PlainMachine` computes on float tensors: the twin.
* `SecureMachine` works on `Secret` shares through a suite. With a suite that talks to peers it is
  the run; with one that only counts messages (`protocols.counting`) it is the cost; a dealing
  suite walks the same text and emits randomness in the order of use.

So an operation states what it computes (`plain`) and how parties do it (`run`), and its cost and
its dealing are the same `run` text read by another suite: they cannot drift apart. What a suite's
primitives cost is declared in one place, next to the suite.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from mpcache.errors import MpcacheError
from mpcache.protocols import secret
from mpcache.protocols.ledger import Scopes
from mpcache.protocols.reach import Reached
from mpcache.protocols.secret import Secret
from mpcache.protocols.setting import Setting

CHOICES = "verify: choices"

# In the plain reading a value is a float tensor, in the others a Secret.
Value = Any


@dataclass(frozen=True)
class Cost:
    """What an operation costs: rounds, and bytes for each party by rank."""

    rounds: int
    sent_bytes: tuple[int, ...]
    dealt_bytes: tuple[int, ...]


class Operation(ABC):
    """One secure operation with its plaintext twin.

    Attributes:
        cut_bits: what it truncates inside stays below 2^cut_bits, whatever it is given; None where
            that depends on what it is given.
    """

    name: ClassVar[str]
    cut_bits: ClassVar[int | None] = None

    def __call__(self, machine: Machine, *args: Any, **options: Any) -> Any:
        with machine.scope(self.name):
            return machine.perform(self, *args, **options)

    @abstractmethod
    def plain(self, machine: PlainMachine, *args: Any, **options: Any) -> Any:
        """What it computes, on float tensors."""

    @abstractmethod
    def run(self, machine: SecureMachine, *args: Any, **options: Any) -> Any:
        """How the parties compute it, on shares; also read for the cost and by the dealer.

        A method ``run_<suite>`` takes its place where a suite has a better way.
        """

    def reaches(self, result: Value, *args: Any, **options: Any) -> Reached:
        """What must stay in a range, in a plain reading that gave `result`, and its values.

        Nothing where the operation takes all that its operands' rings hold.
        """
        yield from ()


class Fused(Operation):
    """A text against other operations, which `plain` may compute in one go on some devices.

    It has no scope of its own. A machine that looks at the operations inside reads `run`, which
    suits every machine.
    """

    def __call__(self, machine: Machine, *args: Any, **options: Any) -> Any:
        return machine.perform(self, *args, **options)

    @abstractmethod
    def run(self, machine: Machine, *args: Any, **options: Any) -> Any:
        """The text."""


class Machine(ABC):
    """A reading of a program. The context of a run travels in it."""

    setting: Setting
    secure: ClassVar[bool]

    @abstractmethod
    def perform(self, operation: Operation, *args: Any, **options: Any) -> Any: ...

    @abstractmethod
    def scope(self, name: str) -> Any:
        """A context whose messages and time count under `name`."""

    @abstractmethod
    def cat(self, parts: Sequence[Value], dim: int) -> Value: ...

    @abstractmethod
    def stack(self, parts: Sequence[Value], dim: int = 0) -> Value: ...

    @abstractmethod
    def zeros_like(self, value: Value, shape: tuple[int, ...]) -> Value:
        """Zeros of `shape` of the kind of `value`: same device, same fractional bits."""

    @abstractmethod
    def shift(self, value: Value, public: torch.Tensor | float) -> Value:
        """`value` plus a public tensor or number, broadcast. Local."""

    @abstractmethod
    def keep(self, value: Value) -> Value:
        """`value`, made cheap for many products: see `Suite.keep`."""

    @abstractmethod
    def coarse(self, value: Value) -> Value:
        """`value`, for use in a ring of 32 bits: see `Suite.coarse`."""

    @abstractmethod
    def choice(self, value: Value) -> Value:
        """`value`, which says what a cache chose: integers below 2^15.

        The same, unless a run is verified: then it opens to the client, and the twin takes what the
        parties chose. Without that two choices that are nearly as good could make all that follows
        differ, and no logit could be compared.
        """

    @abstractmethod
    def tokens(self, ids: Sequence[int] | None, count: int, vocab: int) -> Value:
        """The client's tokens: ids [count] in the clear, or as `Suite.tokens` has them.

        `ids` is None at every party but the client, and in the cost reading.
        """

    @abstractmethod
    def weight(self, name: str, tensor: torch.Tensor | None, shape: tuple[int, ...]) -> Value:
        """The owner's weight; `tensor` is None at every other party and in the cost reading.

        On shares, where the setting says that weights are shared, it is each party's own share
        instead, in ring elements.
        """

    @abstractmethod
    def matrix(self, name: str, tensor: torch.Tensor | None, shape: tuple[int, ...]) -> Value:
        """As `weight`, for a matrix that is only used as the right side of a product."""

    @abstractmethod
    def open(self, value: Value, to: str, why: str) -> torch.Tensor | None:
        """The one door out: `value` opens to the party `to` ("client") because of `why`.

        Returns the float values at that party and None elsewhere (and in the cost reading).
        """


class PlainMachine(Machine):
    """The twin: float tensors on one device, no parties.

    Args:
        setting: the same public numbers as the run's.
        device: where the tensors live.
    """

    secure = False

    def __init__(
        self, setting: Setting, device: str | torch.device = "cpu", ledger: Scopes | None = None
    ) -> None:
        self.setting = setting
        self.device = torch.device(device)
        self.ledger = ledger or Scopes()
        self.followed: Iterator[torch.Tensor] | None = None
        self.choices = self.differing = 0

    def choice(self, value: Value) -> Value:
        if self.followed is None:
            return value
        given = next(self.followed).reshape(value.shape).to(value)
        rows = (given != value).reshape(-1, value.shape[-1]).any(-1)
        self.choices += len(rows)
        self.differing += int(rows.sum())
        return given

    def follow(self, choices: Sequence[torch.Tensor] | None) -> None:
        """Take these choices instead of its own; `choices` and `differing` count rows of them."""
        self.followed = None if choices is None else iter(choices)
        self.choices = self.differing = 0

    def perform(self, operation: Operation, *args: Any, **options: Any) -> Any:
        return operation.plain(self, *args, **options)

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        yield

    def cat(self, parts: Sequence[Value], dim: int) -> Value:
        return torch.cat(list(parts), dim)

    def stack(self, parts: Sequence[Value], dim: int = 0) -> Value:
        return torch.stack(list(parts), dim)

    def zeros_like(self, value: Value, shape: tuple[int, ...]) -> Value:
        return value.new_zeros(shape)

    def shift(self, value: Value, public: torch.Tensor | float) -> Value:
        return value + (public.to(value.device) if isinstance(public, torch.Tensor) else public)

    def keep(self, value: Value) -> Value:
        return value

    def coarse(self, value: Value) -> Value:
        return value

    def tokens(self, ids: Sequence[int] | None, count: int, vocab: int) -> Value:
        if ids is None or len(ids) != count:
            raise MpcacheError(f"expected {count} token ids")
        return torch.tensor(list(ids), dtype=torch.long, device=self.device)

    def weight(self, name: str, tensor: torch.Tensor | None, shape: tuple[int, ...]) -> Value:
        if tensor is None or tuple(tensor.shape) != shape:
            raise MpcacheError(f"weight {name}: expected shape {list(shape)}")
        return tensor.to(self.device, torch.float32)

    def matrix(self, name: str, tensor: torch.Tensor | None, shape: tuple[int, ...]) -> Value:
        return self.weight(name, tensor, shape)

    def open(self, value: Value, to: str, why: str) -> torch.Tensor | None:
        return value


class Suite(ABC):
    """The primitives of a protocol suite, on shares. Products keep all bits: `a.frac + b.frac`."""

    setting: Setting
    name: ClassVar[str]

    @abstractmethod
    def share(
        self, value: torch.Tensor | None, shape: tuple[int, ...], frac: int, source: int
    ) -> Secret:
        """Share ring elements [shape] that the party `source` holds (None elsewhere)."""

    @abstractmethod
    def multiply(self, x: Secret, y: Secret) -> Secret:
        """Elementwise product, broadcast."""

    @abstractmethod
    def square(self, x: Secret) -> Secret:
        """Elementwise square."""

    @abstractmethod
    def matmul(self, x: Secret, y: Secret, width: int = 64) -> Secret:
        """Matrix product over the last two dimensions, batched over the others.

        A suite may compute it modulo 2^width only.
        """

    @abstractmethod
    def truncate(self, x: Secret, bits: int) -> Secret:
        """Drop the low `bits` fractional bits.

        Off by less than one unit with two parties and three units with three: a *cut*, in
        which the operations state their errors.
        """

    @abstractmethod
    def negative(self, x: Secret, magnitude: int = 15, keep: int = 16) -> Secret:
        """1 where x < 0 and else 0, with no fractional bits.

        Args:
            magnitude: |x| < 2^magnitude; a suite may read as few bits as that needs, and what is
                beyond then wraps: so callers prove it, or ask for all that x's ring holds.
            keep: values are told apart to 2^-keep.
        """

    def weight(self, value: torch.Tensor | None, shape: tuple[int, ...], frac: int) -> Secret:
        """A weight, ring elements that the owner holds (None elsewhere)."""
        return self.share(value, shape, frac, self.setting.owner)

    def matrix(self, value: torch.Tensor | None, shape: tuple[int, ...], frac: int) -> Secret:
        """As `weight`, for `matmul`."""
        return self.weight(value, shape, frac)

    def coarse(self, x: Secret, frac: int) -> Secret:
        """x with `frac` fractional bits at least, where that is free: see the suite dealer."""
        return x

    def keep(self, x: Secret) -> Secret:
        """The same secret, for several products: see `Kept`. Here it stays what it is."""
        return x

    def settle_kept(self, x: Secret) -> Secret:
        """x brought to the setting's fractional bits, for several products."""
        extra = x.frac - self.setting.frac
        return self.keep(self.truncate(x, extra) if extra > 0 else x)

    def tokens(self, ids: Sequence[int] | None, count: int, vocab: int) -> Value:
        """What an embedding takes: here the client shares one-hot rows [count, vocab]."""
        rows = None
        if ids is not None:
            rows = torch.zeros(count, vocab, dtype=torch.int64)
            rows[torch.arange(count), torch.tensor(list(ids))] = 1
        return self.share(rows, (count, vocab), 0, self.setting.client)

    @abstractmethod
    def shift(self, x: Secret, public: torch.Tensor) -> Secret:
        """Add public ring elements."""

    @abstractmethod
    def open(self, x: Secret, to: int | None, why: str) -> torch.Tensor | None:
        """Ring elements at party `to` (at everyone if None), None elsewhere."""


def encoded(public: torch.Tensor | float, frac: int) -> torch.Tensor:
    """Numbers as ring elements with `frac` fractional bits, rounded to the nearest unit."""
    if not isinstance(public, torch.Tensor):
        return torch.tensor(round(public * 2.0**frac))
    short = public.is_floating_point() and public.dtype != torch.float64
    # a power of two moves a number's point alone, in 32 bits as in 64
    wide = public.to(torch.float32 if short else torch.float64)
    return (wide * 2.0**frac).round_().to(torch.int64)


class SecureMachine(Machine):
    """Reads a program on shares through `suite`; the ledger follows the scopes.

    Args:
        suite: who does the work: a running, a counting or a dealing suite.
        ledger: whose scopes this program enters.
    """

    secure = True

    def __init__(self, suite: Suite, ledger: Scopes) -> None:
        self.suite = suite
        self.setting = suite.setting
        self.ledger = ledger
        self.choices: list[torch.Tensor] = []

    def perform(self, operation: Operation, *args: Any, **options: Any) -> Any:
        text = getattr(operation, f"run_{self.suite.name}", operation.run)
        return text(self, *args, **options)

    def scope(self, name: str) -> Any:
        return self.ledger.scope(name)

    def cat(self, parts: Sequence[Value], dim: int) -> Value:
        return secret.cat(parts, dim)

    def stack(self, parts: Sequence[Value], dim: int = 0) -> Value:
        return secret.stack(parts, dim)

    def zeros_like(self, value: Value, shape: tuple[int, ...]) -> Value:
        return Secret(value.share.new_zeros(shape), value.frac, value.width)

    # --- values in and out ---------------------------------------------------------------------

    def encode(self, public: torch.Tensor | float, frac: int | None = None) -> torch.Tensor:
        """Public numbers as ring elements, rounded to the nearest unit."""
        return encoded(public, self.setting.frac if frac is None else frac)

    def decode(self, ring: torch.Tensor, frac: int) -> torch.Tensor:
        """Ring elements as float64 numbers."""
        return ring.to(torch.float64) / 2.0**frac

    def shift(self, value: Value, public: torch.Tensor | float) -> Value:
        if value.share.is_meta:  # only shapes count
            shape = public.shape if isinstance(public, torch.Tensor) else ()
            return self.suite.shift(value, torch.empty(shape, dtype=torch.int64, device="meta"))
        return self.suite.shift(value, self.encode(public, value.frac))

    def keep(self, value: Value) -> Value:
        with self.scope("keep"):
            return self.suite.keep(value)

    def coarse(self, value: Value) -> Value:
        return self.suite.coarse(value, self.setting.frac)

    def choice(self, value: Value) -> Value:
        if self.setting.verify:
            opened = self.suite.open(value, self.setting.client, CHOICES)
            if opened is not None:
                whole = opened >> value.frac if value.frac else opened
                self.choices.append(whole.to(torch.int16))
        return value

    def tokens(self, ids: Sequence[int] | None, count: int, vocab: int) -> Value:
        if ids is not None and len(ids) != count:
            raise MpcacheError(f"expected {count} token ids, not {len(ids)}")
        return self.suite.tokens(ids, count, vocab)

    def weight(self, name: str, tensor: torch.Tensor | None, shape: tuple[int, ...]) -> Value:
        return self.suite.weight(self._ring(name, tensor, shape), shape, self.setting.frac)

    def matrix(self, name: str, tensor: torch.Tensor | None, shape: tuple[int, ...]) -> Value:
        return self.suite.matrix(self._ring(name, tensor, shape), shape, self.setting.frac)

    def _ring(
        self, name: str, tensor: torch.Tensor | None, shape: tuple[int, ...]
    ) -> torch.Tensor | None:
        """A weight's ring elements; those of a share are given."""
        shared = self.setting.sharing == "shared"
        if shared and tensor is not None and tensor.dtype != torch.int64:
            raise MpcacheError(f"weight {name}: a share is int64, not {tensor.dtype}")
        ring = tensor if shared or tensor is None else self.encode(tensor)
        if ring is not None and tuple(ring.shape) != shape:
            raise MpcacheError(f"weight {name}: expected {list(shape)}, not {list(ring.shape)}")
        return ring

    def open(self, value: Value, to: str, why: str) -> torch.Tensor | None:
        if to != "client":
            raise MpcacheError(f"values open to the client only, not to {to}")
        ring = self.suite.open(value, self.setting.client, why)
        return None if ring is None else self.decode(ring, value.frac)

    # --- products, brought back to the setting's fractional bits ---------------------------------

    def settle(self, value: Secret) -> Secret:
        """Truncate to the setting's fractional bits where there are more."""
        extra = value.frac - self.setting.frac
        return self.suite.truncate(value, extra) if extra > 0 else value

    def multiply(self, x: Secret, y: Secret) -> Secret:
        return self.settle(self.suite.multiply(x, y))

    def matmul(self, x: Secret, y: Secret) -> Secret:
        return self.settle(self.suite.matmul(x, y))
