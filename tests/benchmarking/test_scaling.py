"""Exponents and crossovers of known curves."""

from __future__ import annotations

from typing import Any

import pytest

from mpcache.benchmarking.scaling import crossover, exponent, sentences

CONTEXTS = [512, 1024, 2048, 4096]


def test_the_exponent_of_a_power_law() -> None:
    power, error = exponent(CONTEXTS, [3e-6 * t**1.3 for t in CONTEXTS])
    assert power == pytest.approx(1.3)
    assert error < 1e-6
    power, error = exponent(CONTEXTS, [1.0, 2.2, 3.8, 8.5])
    assert 0.01 < error < 0.2


def test_the_crossover_of_two_power_laws() -> None:
    small = [10 * t**0.5 for t in CONTEXTS]
    assert crossover(CONTEXTS, small, [t**1.0 / 3 for t in CONTEXTS]) == pytest.approx(900)
    assert crossover(CONTEXTS, small, [t**1.0 for t in CONTEXTS]) == 512
    assert crossover(CONTEXTS, small, [t**0.5 for t in CONTEXTS]) is None
    back_and_forth = [0.5, 1.0, 0.5, 0.5]
    assert crossover(CONTEXTS, back_and_forth, [1.0, 0.5, 1.0, 1.0]) == pytest.approx(
        2048**0.5 * 32
    )


def _row(cache: str, context: int, seconds: float) -> dict[str, Any]:
    return {
        "kind": "decode",
        "cache": cache,
        "context": context,
        "layers": 1,
        "protocol": "dealer",
        "network": "local",
        "dealt_bytes": context,
        "seconds": {"median": seconds},
        "sent_bytes": [context, 2 * context],
        "attention": {"seconds": seconds / 2, "sent_bytes": [context, context]},
    }


def test_sentences_need_enough_contexts() -> None:
    rows = [_row("full", t, t / 1000) for t in CONTEXTS]
    rows += [_row("mpcache", t, t**0.5 / 30) for t in CONTEXTS]
    said = sentences(rows)
    assert len(said) == 4
    assert said[3].startswith("dealer, local: in attention, projections apart, mpcache is faster")
    assert "T = 512 0.68 and 1.00" in said[3] and "T = 4,096 1.92 and 1.00" in said[3]
    assert said[0].startswith("dealer, local: seconds grow with T to the power of full 1.00")
    assert "mpcache 0.50" in said[0]
    assert "from about T = 1,111 on" in said[0]
    assert "below full at none of them" in said[1]
    rows[4] = _row("mpcache", 512, 0.1)
    rows[-1] = _row("mpcache", 4096, 9.0)
    assert "below full at T = 512, 2,048 alone" in sentences(rows)[0]
    assert sentences(rows[:3]) == []
