"""Prefill and decoding, greedy or sampled: one text for the twin, the parties, the prediction."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from mpcache.errors import MpcacheError
from mpcache.eviction.base import Cache, Policy
from mpcache.models.decoder import Model, forward
from mpcache.protocols.greatest import argmax, sample
from mpcache.protocols.operation import CHOICES, Machine, SecureMachine

NEXT_TOKEN = "next token"
VERIFY = "verify: logits"
ALLOWED_OPENINGS = {NEXT_TOKEN, VERIFY, CHOICES}


@dataclass
class Generation:
    """What came out of one reading.

    `ids` are the new tokens where they are known: at the client and in the twin. `logits` are
    [vocab] for each new token, and `choices` what the cache chose, in order, where they were asked
    for and opened. Seconds are wall time, `step_seconds` those of each decode step.
    """

    ids: list[int] = field(default_factory=list)
    logits: list[torch.Tensor] = field(default_factory=list)
    choices: list[torch.Tensor] = field(default_factory=list)
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    step_seconds: list[float] = field(default_factory=list)
    cache: Cache | None = None


@dataclass(frozen=True)
class Request:
    """What is generated. `prompt` is None at every party but the client.

    Args:
        prompt: token ids [prompt_tokens].
        new_tokens: how many tokens follow; public, at least 1.
        forced: in the twin, the tokens to go on with instead of its own choice.
        keep_logits: open (on shares: "verify") and keep the logits of every step.
        temperature: a token is drawn from softmax(logits / temperature); 0 takes the likeliest.
            Public.
    """

    prompt: Sequence[int] | None
    prompt_tokens: int
    new_tokens: int
    forced: Sequence[int] | None = None
    keep_logits: bool = False
    temperature: float = 0.0


def generate(
    machine: Machine,
    model: Model,
    policy: Policy,
    request: Request,
    on_token: Callable[[int, int | None], None] | None = None,
) -> Generation:
    """Generate `request.new_tokens` tokens.

    The first token comes out of the prefill, every other one out of a decode step. The number of
    steps is public and does not depend on the tokens.

    Args:
        on_token: called after each token with its position and its id (None where unknown).
    """
    result = Generation(cache=policy.start(model.spec, request.prompt_tokens, request.new_tokens))
    since = time.perf_counter()
    with machine.scope("prefill"):
        token = _step(machine, model, request, result, request.prompt, 0, request.prompt_tokens)
    result.prefill_seconds = time.perf_counter() - since
    if on_token:
        on_token(0, token)
    since = time.perf_counter()
    for position in range(1, request.new_tokens):
        given = token if request.forced is None else request.forced[position - 1]
        start, began = request.prompt_tokens + position - 1, time.perf_counter()
        with machine.scope("decode"):
            ids = None if given is None else [given]
            token = _step(machine, model, request, result, ids, start, 1)
        result.step_seconds.append(time.perf_counter() - began)
        if on_token:
            on_token(position, token)
    result.decode_seconds = time.perf_counter() - since
    if isinstance(machine, SecureMachine):
        result.choices = machine.choices
    return result


def _step(
    machine: Machine,
    model: Model,
    request: Request,
    result: Generation,
    ids: Sequence[int] | None,
    start: int,
    count: int,
) -> int | None:
    """Feed `count` tokens at positions from `start` on and open the next one to the client."""
    if result.cache is None:
        raise MpcacheError("generation has no cache")
    tokens = machine.tokens(ids, count, model.spec.vocab)
    logits = forward(machine, model, tokens, start, count, result.cache)
    with machine.scope("next-token"):
        if request.keep_logits:
            opened = machine.open(logits, "client", VERIFY)
            if opened is not None:
                result.logits.append(opened.reshape(-1))
        if request.temperature:
            best = sample(machine, logits, request.temperature)
        else:
            best = argmax(machine, logits)
        chosen = machine.open(best, "client", NEXT_TOKEN)
    if chosen is None:
        return None
    result.ids.append(int(chosen.item()))
    return result.ids[-1]
