"""Exponents and crossovers of known curves."""

from __future__ import annotations

from typing import Any

import pytest

from mpcache.benchmarking.scaling import crossover, exponent, factors, groups, sentences

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


def _row(cache: str, context: int, seconds: float, **changes: Any) -> dict[str, Any]:
    return {
        "kind": "decode",
        "cache": cache,
        "context": context,
        "model": "opt-1.3b",
        "layers": 1,
        "whole": False,
        "protocol": "dealer",
        "parties": 2,
        "profile": "",
        "network": "local",
        "dealt_bytes": context,
        "seconds": {"median": seconds},
        "sent_bytes": [context, 2 * context],
        "attention": {"seconds": seconds / 2, "sent_bytes": [context, context]},
        **changes,
    }


def _rows() -> list[dict[str, Any]]:
    rows = [_row("full", t, t / 1000) for t in CONTEXTS]
    return rows + [_row("mpcache", t, t**0.5 / 30) for t in CONTEXTS]


def test_sentences_need_enough_contexts() -> None:
    rows = _rows()
    said = sentences(rows)
    assert len(said) == 5
    assert said[0].startswith("dealer, local: seconds grow with T to the power of full 1.00")
    assert "mpcache 0.50" in said[0]
    assert "from about T = 1,111 on" in said[0]
    assert said[1].startswith("dealer, local: seconds of attention grow")
    assert "below full at none of them" in said[2]
    rows[4] = _row("mpcache", 512, 0.1)
    rows[-1] = _row("mpcache", 4096, 9.0)
    assert "below full at T = 512, 2,048 alone" in sentences(rows)[0]
    assert sentences(rows[:3]) == []


def test_the_full_cache_is_held_against_others_beside_the_paper() -> None:
    rows = _rows()
    last = sentences(rows)[-1]
    assert "at T = 4,096 a step takes 1.92 times as long with the full cache" in last
    assert "attention alone 1.92 and 1.00 times" in last
    assert "1.8 to 2.01" in last and "3.39 to 8.37" in last
    assert "is cheap" not in last
    found = factors(rows)
    assert [factor.context for factor in found] == CONTEXTS
    assert found[0].seconds == pytest.approx(0.512 / (512**0.5 / 30))
    assert found[0].sent == found[0].attention_sent == 1.0
    cheap = [_row("full", 2048, 1.5), _row("mpcache", 2048, 1.0)]
    assert "Here the full cache is cheap" in sentences(cheap)[-1]
    dear = [_row("full", 2048, 0.5), _row("mpcache", 2048, 1.0)]
    assert "Here the full cache is the cheaper one" in sentences(dear)[-1]
    short = [_row("full", 1024, 1.5), _row("mpcache", 1024, 1.0)]
    assert sentences(short) == []


def test_settings_are_never_compared_with_each_other() -> None:
    other = [
        _row("full", 2048, 9.0, protocol="crypten", parties=3),
        _row("mpcache", 2048, 3.0, profile="wan"),
    ]
    assert factors(other) == []
    names = set(groups(_rows() + other))
    assert names == {"dealer, 2 parties, local", "crypten, 3 parties, local"} | {
        "dealer, 2 parties, wan, local"
    }
    assert {factor.setting for factor in factors(_rows() + other)} == {"dealer, 2 parties, local"}
