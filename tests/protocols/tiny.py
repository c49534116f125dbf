"""Two tiny random decoders, one a family, and whole runs of them on parties in this process."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from unittest import mock

import torch

from mpcache import config as configuration
from mpcache.config import RunConfig
from mpcache.generation import Generation
from mpcache.kernels.prg import Stream
from mpcache.models.fusing import Fused
from mpcache.models.spec import ModelSpec
from mpcache.parties.local import run_parties
from mpcache.parties.transport import Wires
from mpcache.program import Dealt, deal, run_secure
from mpcache.protocols import crypten
from mpcache.protocols.ledger import Ledger
from mpcache.protocols.operation import encoded

from .harness import SeededMasks, Tape

LLAMA = ModelSpec(
    "tiny-llama", "llama", layers=2, hidden=16, heads=4, kv_heads=2, head_dim=4, ffn=20, vocab=37,
    context=64, norm="rms", norm_eps=1e-5,
)  # fmt: skip
OPT = ModelSpec(
    "tiny-opt", "opt", layers=2, hidden=12, heads=3, kv_heads=3, head_dim=4, ffn=20, vocab=37,
    context=64, norm="layer", norm_eps=1e-5, positions="learned", position_offset=2,
    activation="relu", gated=False, biases=True,
)  # fmt: skip
OPT_350M = replace(OPT, name="tiny-350m", norm_first=False, final_norm=False, embed=8)
SPECS = {"llama": LLAMA, "opt": OPT, "opt-350m": OPT_350M}
MPCACHE = {
    "policy": "mpcache", "clusters": (4, 2), "static_keep": 0.75, "dynamic_keep": 0.5, "sink": 1,
    "recent": 2, "least": 0,
}  # fmt: skip
FULL = {"policy": "full"}
PROMPT = [5, 17, 36, 0, 2, 2, 30, 11, 8, 21, 9, 14, 3]


def weights(spec: ModelSpec, seed: int = 1) -> dict[str, torch.Tensor]:
    """Random weights: no gain is 1 and no bias 0, which would hide mistakes."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for name, shape in spec.shapes().items():
        values = torch.randn(shape, generator=generator)
        if name.endswith("gain"):
            tensors[name] = 1 + 0.2 * values
        else:
            tensors[name] = values * (0.8 if name.startswith("embed") else 0.3)
    return tensors


def config(world: int, cache: dict[str, Any] | None = None, **changes: Any) -> RunConfig:
    settings = {"parties": world, "protocol": "crypten", "max_new_tokens": 3, **changes}
    return configuration.load(None, {**settings, "cache": cache or MPCACHE})


@dataclass
class Party:
    """What one party of a run ended with."""

    generation: Generation
    ledger: Ledger
    told: list[tuple[int, int | None]]  # what `on_token` heard


def run(
    settings: RunConfig, spec: ModelSpec, prompt: Sequence[int] = PROMPT, timeout_s: float = 60.0
) -> list[Party]:
    """All parties of a run; weights at their owner only, the prompt at the client only.

    In suite `dealer` everything is dealt before, and nothing may be left over. Where weights are
    shared nobody has them, and each party has its share alone.
    """
    shared = settings.sharing == "shared"
    tensors = weights(spec)
    halves = halved(spec, tensors) if shared else None
    dealt, tape = _deal(settings, spec, len(prompt))

    def program(wires: Wires) -> Party:
        told: list[tuple[int, int | None]] = []
        generation = run_secure(
            settings,
            spec,
            wires,
            tensors if wires.rank == settings.owner and not shared else None,
            prompt if wires.rank == settings.client else None,
            lambda position, token: told.append((position, token)),
            dealt[wires.rank] if dealt else None,
            halves[wires.rank] if halves else None,
        )
        return Party(generation, wires.ledger, told)

    with mock.patch.object(crypten, "secrets", SeededMasks()):
        parties = run_parties(settings.parties, program, timeout_s=timeout_s)
    assert tape.at == len(tape.items), "corrections were left over"
    return parties


def halved(
    spec: ModelSpec, tensors: dict[str, torch.Tensor]
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Both parties' shares of the weights that a machine takes, in ring elements."""
    whole = {name: encoded(weight, 16) for name, weight in Fused(spec, tensors).items()}
    generator = torch.Generator().manual_seed(5)
    second = {
        name: torch.randint(-(2**63), 2**63 - 1, ring.shape, generator=generator)
        for name, ring in whole.items()
    }
    return {name: ring - second[name] for name, ring in whole.items()}, second


def _deal(settings: RunConfig, spec: ModelSpec, prompt_tokens: int) -> tuple[list[Dealt], Tape]:
    """What each party holds from the dealer, and the tape that party 1 reads."""
    tape = Tape()
    if settings.protocol != "dealer":
        return [], tape
    seeds = [bytes([rank]) * 16 for rank in range(2)]
    streams = Stream(seeds[0]), Stream(seeds[1])
    deal(settings, spec, prompt_tokens, streams, tape.items.append)
    return [Dealt(Stream(seeds[0]), None), Dealt(Stream(seeds[1]), tape)], tape
