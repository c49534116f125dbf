"""What is measured on one window: every policy given decodes it from one recorded prefill."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch

from mpcache.evaluation.lanes import Engine, Lane, Prefill
from mpcache.evaluation.store import Result
from mpcache.eviction.base import Policy
from mpcache.eviction.full import Full
from mpcache.models.tokenizer import Codec

Key = tuple[str, float]  # policy and budget
Say = Callable[[str], None]
T = TypeVar("T")

ANSWER_TOKENS = 10  # enough for a space, five digits and what else a tokenizer puts between
DIGITS = 5
GOLDEN = (5**0.5 - 1) / 2


def batches(policies: Mapping[Key, Policy], lanes: int) -> Iterator[dict[Key, Policy]]:
    """The policies in groups of `lanes` at most."""
    items = list(policies.items())
    for first in range(0, len(items), lanes):
        yield dict(items[first : first + lanes])


def started(
    engine: Engine, prefill: Prefill, policies: Mapping[Key, Policy], new_tokens: int, say: Say
) -> dict[Key, Lane]:
    lanes = {}
    for (name, budget), policy in policies.items():
        say(f"start {name} {budget:g}%")
        lanes[name, budget] = engine.start(policy, prefill, new_tokens)
    return lanes


# --- perplexity ----------------------------------------------------------------------------------


def perplexity(
    engine: Engine,
    ids: Sequence[int],
    decode: int,
    policies: Mapping[Key, Policy],
    lanes: int,
    say: Say,
) -> Iterator[dict[Key, Result]]:
    """Mean negative log likelihood, in nats, of the last `decode` tokens of `ids`.

    All but those and one are the prompt. The token before each is fed through the policy's cache:
    no prediction comes out of the prefill, which most policies leave alone.
    """
    prompt, fed, wanted = ids[: -decode - 1], ids[-decode - 1 : -1], ids[-decode:]
    say("prefill")
    prefill = engine.prefill(prompt)
    for batch in batches(policies, lanes):
        running = started(engine, prefill, batch, decode + 1, say)
        totals = torch.zeros(len(running), dtype=torch.float64)
        for number, (token, target) in enumerate(zip(fed, wanted, strict=True), 1):
            say(f"token {number} of {decode}")
            logits = engine.step(list(running.values()), [token] * len(running))
            totals -= torch.log_softmax(logits.double(), -1)[:, target].cpu()
        yield {
            key: {"nll": total / decode, "tokens": decode}
            for key, total in zip(running, totals.tolist(), strict=True)
        }


# --- agreement -----------------------------------------------------------------------------------


def agreement(
    engine: Engine,
    ids: Sequence[int],
    decode: int,
    policies: Mapping[Key, Policy],
    lanes: int,
    say: Say,
) -> Iterator[dict[Key, Result]]:
    """How many of the full cache's next `decode` greedy tokens a policy would choose as well.

    The prompt is all of `ids`. Each policy is fed the full cache's tokens, so that one difference
    does not bring about the next; `prefix` counts those before the first difference. The first
    token, which comes out of the prefill, is not counted.
    """
    say("prefill")
    prefill = engine.prefill(ids)
    for batch in batches(policies, max(1, lanes - 1)):
        guide = engine.start(Full(), prefill, decode + 1)
        running = started(engine, prefill, batch, decode + 1, say)
        every = [guide, *running.values()]
        same = torch.zeros(len(running), decode, dtype=torch.bool)
        for step in range(decode):
            say(f"token {step + 1} of {decode}")
            token = int(guide.logits.argmax())
            chosen = engine.step(every, [token] * len(every)).argmax(-1)
            same[:, step] = (chosen[1:] == chosen[0]).cpu()
        prefixes = same.long().cumprod(-1).sum(-1)
        yield {
            key: {"equal": int(row.sum()), "tokens": decode, "prefix": int(prefix)}
            for key, row, prefix in zip(running, same, prefixes, strict=True)
        }


# --- passkey -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Passkey:
    """A prompt with a key of five digits hidden in it."""

    ids: tuple[int, ...]
    key: str
    depth: float


INTRODUCTION = "There is a pass key hidden in the text below. Find it and remember it.\n\n"
QUESTION = "\n\nWhat is the pass key? The pass key is"


def needle(key: str) -> str:
    return f"\nThe pass key is {key}. Remember it. {key} is the pass key.\n"


def hide(codec: Codec, filler: Sequence[int], context: int, number: int, seed: int) -> Passkey:
    """Prompt `number`, with its own key at its own depth, of `context` tokens.

    The depths of any first few prompts are spread evenly: multiples of the golden ratio.

    Args:
        filler: tokens of plain text, without a begin token, `context` at least.
    """
    key = "".join(random.Random(f"{seed}/{number}").choices("0123456789", k=DIGITS))
    depth = (0.5 + number * GOLDEN) % 1
    begin = len(codec.empty)
    head = codec.encode(INTRODUCTION)
    middle, tail = (codec.encode(text)[begin:] for text in (needle(key), QUESTION))
    room = context - len(head) - len(middle) - len(tail)
    before = round(depth * room)
    ids = [*head, *filler[:before], *middle, *filler[before:room], *tail]
    return Passkey(tuple(ids), key, depth)


def passkey_tokens(codec: Codec) -> int:
    """Tokens of a passkey's prompt without any filler."""
    parts = (INTRODUCTION, needle("0" * DIGITS), QUESTION)
    return sum(len(codec.encode(part)) for part in parts)


def passkey(
    engine: Engine,
    codec: Codec,
    hidden: Passkey,
    policies: Mapping[Key, Policy],
    lanes: int,
    say: Say,
) -> Iterator[dict[Key, Result]]:
    """Whether the first number that a policy answers is the key, and the share of its digits."""
    say("prefill")
    prefill = engine.prefill(hidden.ids)
    for batch in batches(policies, lanes):
        running = started(engine, prefill, batch, ANSWER_TOKENS, say)
        answers = decoded(engine, running, ANSWER_TOKENS, say)
        results = {}
        for name, ids in answers.items():
            text = codec.decode(ids)
            exact, digits = score_passkey(text, hidden.key)
            results[name] = {
                "exact": exact,
                "digits": digits,
                "depth": round(hidden.depth, 4),
                "answer": text,
            }
        yield results


def decoded(
    engine: Engine, running: Mapping[T, Lane], new_tokens: int, say: Say, stop: Sequence[int] = ()
) -> dict[T, list[int]]:
    """Each lane's own greedy tokens; ends early once all have met a token in `stop`."""
    lanes = list(running.values())
    answers: list[list[int]] = [[int(lane.logits.argmax())] for lane in lanes]
    for number in range(1, new_tokens):
        if stop and all(any(token in stop for token in answer) for answer in answers):
            break
        say(f"token {number} of {new_tokens}")
        chosen = engine.step(lanes, [answer[-1] for answer in answers]).argmax(-1).tolist()
        for answer, token in zip(answers, chosen, strict=True):
            answer.append(token)
    for answer in answers:
        ends = [place for place, token in enumerate(answer) if token in stop]
        del answer[min(ends, default=len(answer)) :]
    return dict(zip(running, answers, strict=True))


def score_passkey(answer: str, key: str) -> tuple[bool, float]:
    """Whether the answer's first number begins with the key; the share of digits in their place."""
    found = re.search(r"\d+", answer)
    number = found.group() if found else ""
    equal = sum(a == b for a, b in zip(number, key, strict=False))
    return number[: len(key)] == key, equal / len(key)
