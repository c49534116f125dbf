"""Measure this machine: kernels, exchanges, and what the primitives of small layers take.

Coefficients are fitted to processor seconds, scope by scope: what else the machine does meanwhile
lengthens those a little where it lengthens wall time a lot.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from mpcache.benchmarking.layers import DecodeJob, LayerJob, PrefillJob
from mpcache.benchmarking.measure import Measured, measure
from mpcache.benchmarking.micro import measure_kernels, measure_wires
from mpcache.eviction.registry import policy_at
from mpcache.fitting import Sample, fit, held_out
from mpcache.models.known import KNOWN
from mpcache.models.spec import ModelSpec
from mpcache.protocols.work import Work
from mpcache.speeds import Error, Kernels, Load, Speeds, Wire, columns

LOCAL = (0.0, 0.0)
SHARE = 5  # a fifth of the tokens is attended to, but with the full cache
OnSample = Callable[[str], None]


@dataclass(frozen=True)
class Piece:
    """A layer that is measured for its primitives.

    Args:
        tokens: stored before a decode step, or of a prompt.
        whole: with embedding, head and the choice of a token.
    """

    kind: type[LayerJob]
    model: str
    tokens: int
    cache: str = "mpcache"
    whole: bool = False

    @property
    def name(self) -> str:
        kind = "decode" if self.kind is DecodeJob else "prefill"
        whole = ", whole" if self.whole else ""
        return f"{kind}, {self.model}{whole}, {self.cache}, {self.tokens} tokens"


def _decodes(lengths: dict[str, tuple[int, ...]], *caches: str) -> list[Piece]:
    return [
        Piece(DecodeJob, model, tokens, cache)
        for model, every in lengths.items()
        for tokens in every
        for cache in caches
    ]


PIECES: dict[str, list[Piece]] = {
    "dealer": [
        *_decodes({"smollm2": (100, 1000), "opt-350m": (300,)}, "mpcache", "full"),
        *_decodes({"opt-1.3b": (128, 700, 3000)}, "mpcache", "full"),
        *_decodes({"opt-1.3b": (700, 2000)}, "mpcache-paper"),
        Piece(DecodeJob, "smollm2", 300, whole=True),
        *(Piece(PrefillJob, "smollm2", tokens) for tokens in (48, 128, 256)),
        *(Piece(PrefillJob, "opt-1.3b", tokens) for tokens in (32, 96)),
        Piece(PrefillJob, "opt-350m", 64, "full"),
        Piece(PrefillJob, "smollm2", 64, whole=True),
    ],
    "crypten": [
        *_decodes({"smollm2": (64, 400), "opt-350m": (128,)}, "mpcache", "full"),
        *_decodes({"opt-1.3b": (700,)}, "mpcache", "full"),
        Piece(DecodeJob, "smollm2", 64, whole=True),
        *(Piece(PrefillJob, "smollm2", tokens) for tokens in (16, 64)),
        Piece(PrefillJob, "opt-350m", 24),
    ],
}
STEPS = {"dealer": {DecodeJob: 6, PrefillJob: 3}, "crypten": {DecodeJob: 3, PrefillJob: 2}}


def calibrate(suites: Sequence[str], on_sample: OnSample) -> dict[str, Speeds]:
    """Measure and fit each suite; `on_sample` is told of each piece as it is done."""
    wires = measure_wires()
    plain, tls = (wire.round_seconds * 1e6 for wire in wires)
    on_sample(f"an exchange: {plain:.0f} us, over TLS {tls:.0f} us")
    kernels = measure_kernels()
    on_sample("ring products by shape")
    return {suite: calibrate_suite(suite, kernels, wires, on_sample) for suite in suites}


def calibrate_suite(
    suite: str, kernels: Kernels, wires: tuple[Wire, Wire], on_sample: OnSample
) -> Speeds:
    """Measure the pieces of a suite, and fit their primitives."""
    found = []
    for piece in PIECES[suite]:
        measured = measure(_job(suite, piece), plain=False)
        found.append((piece.name, measured))
        on_sample(f"{suite}, {piece.name}: {_median(measured.seconds) * 1e3:.1f} ms")
    return fitted(found, kernels, wires)


def _spec(model: str) -> ModelSpec:
    """One layer of a known model."""
    return replace(KNOWN[model].spec, layers=1)


def _job(suite: str, piece: Piece) -> LayerJob:
    tokens = piece.tokens
    policy = policy_at(piece.cache, max(1, tokens // SHARE), tokens)
    steps = STEPS[suite][piece.kind]
    return piece.kind(suite, steps, LOCAL, _spec(piece.model), policy, tokens, whole=piece.whole)


def fitted(
    found: Sequence[tuple[str, Measured]], kernels: Kernels, wires: tuple[Wire, Wire]
) -> Speeds:
    """Coefficients from measured pieces, and how far they are off on each that is left out."""
    party = [sample for name, measured in found for sample in _own(name, measured, kernels)]
    dealer = [sample for name, measured in found for sample in _dealing(name, measured, kernels)]
    moved = fit([sample for name, measured in found for sample in _moving(name, measured)])
    plain, tls = (_in_a_run(wire, wires[0], moved) for wire in wires)
    left_out = held_out(party)
    speeds = Speeds(
        kernels,
        fit(party),
        fit(dealer) if dealer else {},
        plain,
        tls,
        Error(0.0, 0.0, 0),
        Error.over(list(left_out.values())),
    )
    pairs = [
        (
            _median(measured.seconds),
            left_out[name][1] + plain.seconds(Load.of(measured.steps, Work()), LOCAL),
        )
        for name, measured in found
    ]
    return replace(speeds, held_out=Error.over(pairs))


def _own(name: str, measured: Measured, kernels: Kernels) -> Iterator[Sample]:
    """By scope, what the party that has more to do spends outside of exchanges."""
    for path, work in measured.work.items():
        entries = [scopes[path] for scopes in measured.scopes if path in scopes]
        busy = max((e.busy_seconds - e.wire_busy_seconds for e in entries), default=0.0)
        if busy > 0:
            yield Sample(name, columns(work, kernels.ahead), busy)


def _dealing(name: str, measured: Measured, kernels: Kernels) -> Iterator[Sample]:
    for path, work in measured.work.items():
        entry = measured.dealer_scopes.get(path)
        if entry is not None and entry.busy_seconds > 0:
            yield Sample(name, columns(work, kernels.dealer), entry.busy_seconds)


def _moving(name: str, measured: Measured) -> Iterator[Sample]:
    """By scope, what the busier party spends in exchanges."""
    for path in measured.scopes[0]:
        entries = [scopes[path] for scopes in measured.scopes]
        busy = max(entry.wire_busy_seconds for entry in entries)
        if entries[0].rounds and busy > 0:
            sent = max(entry.sent_bytes for entry in entries)
            yield Sample(name, {"rounds": entries[0].rounds, "sent": sent}, busy)


def _in_a_run(wire: Wire, bare: Wire, moved: dict[str, float]) -> Wire:
    """An exchange between other work takes longer than one after the other: caches are cold.

    Args:
        wire: as measured alone. bare: the same of the kind that `moved` was fitted on.
        moved: processor seconds of a round and of a byte there.
    """
    colder = max(0.0, moved["rounds"] - bare.round_busy)
    slower = max(0.0, moved["sent"] - bare.byte_busy)
    return Wire(
        wire.round_seconds + colder,
        wire.byte_seconds + slower,
        wire.round_busy + colder,
        wire.byte_busy + slower,
        wire.sent_busy,
        wire.taken_busy,
    )


def _median(values: Sequence[float]) -> float:
    return sorted(values)[len(values) // 2]
