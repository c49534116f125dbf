"""Drawn tokens: from softmax(logits / T) on shares and in the twin, at the cost of an argmax."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from mpcache.errors import UsageError
from mpcache.generation import NEXT_TOKEN
from mpcache.kernels.prg import Stream
from mpcache.program import Twin, predict
from mpcache.protocols import gumbel
from mpcache.protocols.counting import counting_machine, hollow
from mpcache.protocols.greatest import argmax, sample
from mpcache.protocols.groups import Level, Winners
from mpcache.protocols.operation import PlainMachine
from mpcache.protocols.setting import Setting

from .harness import counts
from .test_dealer import perform
from .tiny import LLAMA, MPCACHE, PROMPT, config, run, weights

LOGITS = torch.tensor([2.0, 1.5, -2.0, 0.25, 1.75, -0.5, 2.25], dtype=torch.float64)
FALSE_ALARM = 1e-9


def odds(counted: torch.Tensor, expected: torch.Tensor) -> float:
    """The odds of counts that far from `expected` or farther, by a chi-squared test."""
    statistic = float(((counted - expected) ** 2 / expected).sum())
    half = torch.tensor((len(expected) - 1) / 2, dtype=torch.float64)
    return float(torch.special.gammaincc(half, torch.tensor(statistic / 2, dtype=torch.float64)))


def drawn_odds(found: torch.Tensor, temperature: float) -> float:
    expected = torch.softmax(LOGITS / temperature, 0) * found.numel()
    assert float(expected.min()) > 5
    return odds(torch.bincount(found.long(), minlength=len(LOGITS)).double(), expected)


# --- the noise -----------------------------------------------------------------------------------


def test_the_ends_of_the_noise() -> None:
    """The greatest comes of the least 1 - u, 2^-65; the least of the greatest that is below 1."""
    ends = gumbel.gumbel(torch.tensor([0, -1, 1, -(2**63), 2**63 - 1]))
    assert float(ends[0]) == pytest.approx(65 * math.log(2), abs=1e-12) == gumbel.MOST
    assert float(ends[1]) == pytest.approx(-math.log(53 * math.log(2)), abs=1e-12) == gumbel.LEAST
    assert float(ends[2]) == pytest.approx(65 * math.log(2) - math.log(3), abs=1e-12)
    middle = -math.log(math.log(2))
    assert ends[3:].tolist() == pytest.approx([middle, middle], abs=1e-9)


def test_the_tail_of_the_noise_is_exact() -> None:
    """P(g > x) = 1 - exp(-exp(-x)): words below 2^64 times that are the ones above x."""
    for x in (0.0, 5.0, 20.0, 40.0):
        last = int(-math.expm1(-math.exp(-x)) * 2.0**64)
        words = [last - max(2, last >> 40), last + max(2, last >> 40)]
        signed = torch.tensor([word - (1 << 64) if word >> 63 else word for word in words])
        above, below = gumbel.gumbel(signed).tolist()
        assert below < x < above


def test_the_noise_has_its_distribution() -> None:
    """Counts between the deciles of exp(-exp(-x)), from a key and from the system."""
    count = 200_000
    for noise in (gumbel.fresh((count,)), gumbel.from_key(torch.arange(16), (count,))):
        cells = torch.exp(-torch.exp(-noise)).mul(10).long().clamp(0, 9)
        counted = torch.bincount(cells, minlength=10).double()
        assert odds(counted, torch.full((10,), count / 10, dtype=torch.float64)) > FALSE_ALARM


# --- drawn positions -----------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.7, 1.0, 2.5])
def test_parties_draw_from_the_softmax(temperature: float) -> None:
    """20,000 draws of 7; groups are filled up, and what fills them must not be drawn twice."""
    x = LOGITS.expand(20_000, len(LOGITS))
    done = perform(lambda machine, x: sample(machine, x, temperature), [x])
    done.check_cost()
    (found,) = done.values
    assert drawn_odds(found, temperature) > FALSE_ALARM
    assert drawn_odds(found, temperature * 1.3) < FALSE_ALARM, "another temperature would pass"


def test_groups_that_are_filled_up_draw_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    from mpcache.protocols import groups

    monkeypatch.setattr(groups, "plan", lambda *_: (Level(7, 4, True), Level(2, 2, False)))
    x = LOGITS.expand(20_000, len(LOGITS))
    (found,) = perform(lambda machine, x: sample(machine, x, 1.0), [x]).values
    assert drawn_odds(found, 1.0) > FALSE_ALARM


@pytest.mark.parametrize("temperature", [0.7, 2.5])
def test_the_twin_draws_from_the_softmax(temperature: float) -> None:
    machine = PlainMachine(Setting())
    found = sample(machine, LOGITS.float().expand(20_000, len(LOGITS)), temperature)
    assert drawn_odds(found, temperature) > FALSE_ALARM
    assert drawn_odds(found, temperature * 1.3) < FALSE_ALARM


def test_rows_and_runs_draw_afresh() -> None:
    x = torch.zeros(40, 50, dtype=torch.float64)
    first, second = (
        perform(lambda machine, x: sample(machine, x, 1.0), [x]).values[0] for _ in range(2)
    )
    assert len(set(first.tolist())) > 10 and not torch.equal(first, second)


def test_a_draw_costs_what_an_argmax_costs() -> None:
    x = torch.zeros(2, 500, dtype=torch.float64)
    drawn = perform(lambda machine, x: sample(machine, x, 1.0), [x])
    greedy = perform(argmax, [x])
    drawn.check_cost()
    assert drawn.dealt_bytes == greedy.dealt_bytes
    assert drawn.ledgers[0].total().rounds == greedy.ledgers[0].total().rounds


def test_the_noise_is_of_both_seeds() -> None:
    """Neither party's part of the key is the key that the dealer expands."""
    keys = []

    def noise(key: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        keys.append(key)
        return torch.zeros(shape, dtype=torch.int64)

    correlation = Winners(Level(4, 2, True), 1, 3, noise)
    zero, one = (correlation.draw(rank, Stream(bytes([rank]) * 16)) for rank in range(2))
    correlation.corrections(zero, one)
    (key,) = keys
    assert torch.equal(key, zero["key"] ^ one["key"])
    assert not torch.equal(key, zero["key"]) and not torch.equal(key, one["key"])


def test_other_suites_refuse_to_draw() -> None:
    machine = counting_machine(Setting())
    with pytest.raises(UsageError, match=r"suite crypten does not draw tokens.*protocol dealer"):
        sample(machine, hollow((1, 9), 16), 1.0)


# --- whole runs ----------------------------------------------------------------------------------


def test_runs_that_draw() -> None:
    """The client alone learns tokens; all is as predicted, one transcript for all prompts."""
    settings = config(2, MPCACHE, protocol="dealer", temperature=1.5)
    other = [(token * 7 + 3) % LLAMA.vocab for token in PROMPT]
    greedy = config(2, MPCACHE, protocol="dealer")
    prediction = predict(settings, LLAMA, len(PROMPT))
    transcripts = set()
    for prompt in (PROMPT, other):
        parties = run(settings, LLAMA, prompt)
        for party, predicted in zip(parties, prediction.ranks, strict=True):
            assert counts(party.ledger) == counts(predicted)
            assert party.ledger.transcript.hexdigest() == predicted.transcript.hexdigest()
            assert [(o.why, o.to, o.values) for o in party.ledger.openings] == [
                (NEXT_TOKEN, "client", 3)
            ]
        transcripts.add(tuple(party.ledger.transcript.hexdigest() for party in parties))
        assert parties[0].generation.ids == []
        assert all(0 <= token < LLAMA.vocab for token in parties[1].generation.ids)
    assert len(transcripts) == 1
    dealt = [predict(each, LLAMA, len(PROMPT)).ranks[1].total() for each in (settings, greedy)]
    assert dealt[0].dealt_bytes == dealt[1].dealt_bytes and dealt[0].rounds == dealt[1].rounds


def test_a_low_temperature_is_greedy() -> None:
    """At 1e-4 a tenth in logits is a thousand noises' worth."""
    twin = Twin(config(2, protocol="dealer"), LLAMA, weights(LLAMA)).generate(PROMPT)
    cold = config(2, protocol="dealer", temperature=1e-4)
    assert run(cold, LLAMA)[1].generation.ids == twin.ids
    assert Twin(cold, LLAMA, weights(LLAMA)).generate(PROMPT).ids == twin.ids


def test_a_twin_that_follows_tells_the_likeliest() -> None:
    hot: Any = config(2, protocol="dealer", temperature=10.0, max_new_tokens=8)
    twin = Twin(hot, LLAMA, weights(LLAMA))
    forced = [3, 30, 11, 0, 7, 36, 1, 2]
    followed = twin.generate(PROMPT, forced=forced)
    assert followed.ids == [int(row.argmax()) for row in followed.logits]
    drawn = [tuple(twin.generate(PROMPT).ids) for _ in range(3)]
    assert len(set(drawn)) > 1
