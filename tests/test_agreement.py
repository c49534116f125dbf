"""How `launch` holds the parties' tokens against the twin's."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from protocols.tiny import LLAMA, PROMPT, config, weights

from mpcache.launching import _agreement
from mpcache.program import Twin
from mpcache.report.record import Agreement, NearTie

LIKELIEST = Twin(config(2, protocol="dealer"), LLAMA, weights(LLAMA)).generate(PROMPT)


def compared(ids: list[int], plain: Any = LIKELIEST, **changes: Any) -> Agreement:
    source: Any = SimpleNamespace(spec=LLAMA, lazy=lambda: weights(LLAMA))
    screen: Any = SimpleNamespace(ids=ids, logits=[])
    return _agreement(config(2, protocol="dealer", **changes), source, PROMPT, plain, screen)


def test_equal_tokens() -> None:
    assert compared(LIKELIEST.ids) == Agreement(3, 3)


def test_another_token_is_told_with_its_margin() -> None:
    """Tokens after it are held against what the twin says after it."""
    first = LIKELIEST.logits[0].reshape(-1)
    second = int(first.argsort(descending=True)[1])
    followed = Twin(config(2, protocol="dealer"), LLAMA, weights(LLAMA))
    rest = followed.generate(PROMPT, forced=[second, 0, 0]).ids[1]
    found = compared([second, rest, 0])
    margin = float(first.max() - first[second])
    assert found.near_ties[0] == NearTie(0, second, LIKELIEST.ids[0], margin)
    assert found.equal_tokens == 3 - len(found.near_ties)
    assert {tie.position for tie in found.near_ties} <= {0, 2}


def test_sampled_tokens_are_held_against_the_likeliest_on_their_own_prefix() -> None:
    """Whatever the twin drew for itself, and none of them is a near tie."""
    hot = Twin(config(2, protocol="dealer", temperature=10.0), LLAMA, weights(LLAMA))
    drawn = [int(LIKELIEST.logits[0].argmin()), 5, 7]
    likeliest = hot.generate(PROMPT, forced=drawn).ids
    wanted = sum(token == own for token, own in zip(drawn, likeliest, strict=True))
    assert torch.equal(LIKELIEST.logits[0], hot.generate(PROMPT, forced=drawn).logits[0])
    found = compared(drawn, hot.generate(PROMPT), temperature=10.0)
    assert found == Agreement(wanted, 3)
    alike = replace(LIKELIEST, ids=drawn)  # the twin happened to draw the same
    assert compared(drawn, alike, temperature=10.0) == Agreement(wanted, 3)
    drawn = [LIKELIEST.ids[0], *hot.generate(PROMPT, forced=LIKELIEST.ids).ids[1:]]
    assert compared(drawn, hot.generate(PROMPT), temperature=10.0) == Agreement(3, 3)
