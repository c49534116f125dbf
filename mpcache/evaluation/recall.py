"""How much of the true attention a policy keeps, with and without the first tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, cast

import torch

from mpcache.errors import MpcacheError
from mpcache.evaluation.lanes import Asked, Engine, Recording
from mpcache.evaluation.store import Result
from mpcache.evaluation.tasks import Key, Say
from mpcache.eviction.base import Policy
from mpcache.eviction.full import Full
from mpcache.models.decoder import forward
from mpcache.protocols.operation import Fused, Machine, Operation, Value
from mpcache.protocols.softmax import attend

SINK = 4  # first tokens, which draw much attention and tell little


def recall(
    engine: Engine,
    ids: Sequence[int],
    decode: int,
    policies: Mapping[Key, Policy],
    say: Say,
) -> Iterator[dict[Key, Result]]:
    """Attention mass on what a policy attends to, of that of the full cache on the same tokens.

    The last `decode` tokens of `ids` run through the full cache once. Its queries, keys and
    values are replayed to every policy, so that all answer the same questions:

    1. What a policy attends to has the sum Z' of exp(score), what is there Z: the mass is Z' / Z.
    2. Values carry a mark on the first `SINK` tokens, and the context says how much they got.

    `mass` and `mass_without_sink` are averages over steps, layers and query heads; the latter is
    the mass kept on other tokens over the mass that is there on other tokens.
    """
    prompt = ids[:-decode]
    say("prefill")
    recording = Recording(Full().start(engine.model.spec, len(prompt), decode + 1))
    with torch.inference_mode():
        for number, (first, last) in enumerate(
            [(0, len(prompt)), *((at, at + 1) for at in range(len(prompt), len(ids)))]
        ):
            say(f"token {number} of {decode}")
            tokens = engine.machine.tokens(ids[first:last], last - first, engine.model.spec.vocab)
            forward(engine.machine, engine.model, tokens, first, last - first, recording)
        asked = {layer: _marked(engine.machine, calls) for layer, calls in recording.asked.items()}
        total, sink = _walk(engine, Full(), asked, len(prompt), decode)
        for (name, budget), policy in policies.items():
            say(f"replay {name} {budget:g}%")
            kept, kept_sink = _walk(engine, policy, asked, len(prompt), decode)
            mass = (kept - total).exp()
            rest = (mass * (1 - kept_sink)).sum() / (1 - sink).sum()
            yield {
                (name, budget): {
                    "mass": float(mass.mean()),
                    "mass_without_sink": float(rest),
                    "tokens": decode,
                }
            }


def _marked(machine: Machine, calls: Sequence[Asked]) -> list[Asked]:
    """The same calls; the first number of a value is 1 at the sink and else 0."""
    marked, at = [], 0
    for queries, keys, values in calls:
        heads, count = values.shape[:2]
        sink = (torch.arange(at, at + count) < SINK).to(torch.float32).reshape(1, count, 1)
        mark = machine.shift(machine.zeros_like(values, (heads, count, 1)), sink)
        marked.append(Asked(queries, keys, machine.cat([mark, values[..., 1:]], 2)))
        at += count
    return marked


def _walk(
    engine: Engine,
    policy: Policy,
    asked: Mapping[int, Sequence[Asked]],
    prompt_tokens: int,
    decode: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """log Z and the weight of the sink [steps, layers, heads] of a policy's attention."""
    watching = _ScoreMachine(engine)
    machine = cast(Machine, watching)
    cache = policy.start(engine.model.spec, prompt_tokens, decode + 1)
    for layer, calls in asked.items():
        cache.attend(machine, layer, *calls[0])
    sums: list[torch.Tensor] = []
    sinks: list[torch.Tensor] = []
    for step in range(1, decode + 1):
        for layer, calls in asked.items():
            watching.scores = None  # what an earlier step noted does not count
            context = engine.seen(cache.attend(machine, layer, *calls[step]))
            sums.append(watching.noted(policy.name).double().logsumexp(-1).flatten())
            sinks.append(context[..., 0].double().flatten())
    shape = (decode, len(asked), -1)
    return torch.stack(sums).reshape(*shape), torch.stack(sinks).reshape(*shape)


class _ScoreMachine:
    """An engine's machine that notes the visible scores of the last attention."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.scores: torch.Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.engine.machine, name)

    def noted(self, name: str) -> torch.Tensor:
        if self.scores is None:
            raise MpcacheError(f"policy {name} attends by other means than the operation `attend`")
        return self.scores

    def perform(self, operation: Operation, *args: Any, **options: Any) -> Any:
        if isinstance(operation, Fused):
            return operation.run(cast(Machine, self), *args, **options)
        if operation is attend:
            self._note(*args, **options)
        return self.engine.machine.perform(operation, *args, **options)

    def _note(
        self,
        scores: Value,
        values: Value,
        visible: torch.Tensor | None = None,
        spread: Any = None,
    ) -> None:
        self.scores = self.engine.seen(scores)
        if visible is not None:
            hidden = visible.to(self.scores.device) == 0
            self.scores = self.scores.masked_fill(hidden, float("-inf"))
