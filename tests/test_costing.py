"""The quick count is the whole count: every scope, every party, labels of two digits included."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from mpcache.config import load
from mpcache.costing import quick
from mpcache.launching import predict as predict_cost
from mpcache.models.spec import ModelSpec
from mpcache.program import predict

TINY = ModelSpec(
    name="tiny",
    family="llama",
    layers=12,
    hidden=8,
    heads=4,
    kv_heads=2,
    head_dim=4,
    ffn=12,
    vocab=21,
    context=200,
    norm="rms",
    norm_eps=1e-5,
)
SMALL = {"clusters": [4, 2], "static_keep": 0.8, "dynamic_keep": 0.4, "sink": 1, "recent": 2}
PREFERENCES = [1, 2, 3, 4, 5, 6, 6, 5, 4, 3, 2, 1]
COUNTS = ("rounds", "messages", "sent_bytes", "dealt_bytes")


def _counts(entry: Any) -> tuple[int, ...]:
    return tuple(getattr(entry, name) for name in COUNTS)


@pytest.mark.parametrize("protocol", ["dealer", "crypten", "crypten-3"])
# cake's layers differ, and so do fastkv's before, at and behind the middle one
@pytest.mark.parametrize("cache", ["mpcache", "mpcache-alone", "full", "cake", "fastkv"])
def test_quick_is_whole(cache: str, protocol: str) -> None:
    suite, _, parties = protocol.partition("-")
    policy, _, alone = cache.partition("-")
    config = load(
        None,
        {
            "parties": int(parties or 2),
            "protocol": suite,
            "max_new_tokens": 4,
            "cache": {
                "policy": policy,
                "share_layers": not alone,
                "preferences": PREFERENCES,
                **SMALL,
            },
        },
    )
    whole, fast = predict(config, TINY, 30), quick(config, TINY, 30)
    for rank, ledger in enumerate(whole.ranks):
        assert fast.ranks[rank].keys() == ledger.entries.keys()
        for path, entry in ledger.entries.items():
            assert _counts(fast.ranks[rank][path]) == _counts(entry), path
        for phase in ("setup", "prefill", "decode"):
            assert _counts(fast.total(rank, phase)) == _counts(ledger.total(phase))
    assert fast.work == whole.work
    assert fast.worked("decode").multiply_adds > 0


def test_two_layers_are_fewer_than_four() -> None:
    spec = replace(TINY, layers=2)
    config = load(None, {"max_new_tokens": 2, "cache": {"policy": "mpcache", **SMALL}})
    total = predict(config, spec, 30).ranks[0].total("decode")
    assert _counts(quick(config, spec, 30).total(0, "decode")) == _counts(total)


@pytest.mark.parametrize("cache", ["mpcache", "full"])
def test_a_long_prompt_on_a_large_model_is_counted(cache: str) -> None:
    config = load(None, {"model": "llama-3-8b", "cache": {"policy": cache}})
    found = predict_cost(config, 32_768)
    assert found["decode"]["rounds"] > 15 * 32 * 40, "15 steps of 32 layers"
    assert "8192 tokens" in found["notice"]


def test_positions_beyond_the_table_are_counted() -> None:
    config = load(None, {"model": "opt-125m", "max_new_tokens": 2})
    assert "notice" not in predict_cost(config, 2046)
    assert "2048 tokens" in predict_cost(config, 2047)["notice"]
