"""A consistent record of a run of two parties, for tests of its report."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from mpcache.config import load
from mpcache.models.spec import ModelSpec
from mpcache.report.record import (
    COUNTS,
    Agreement,
    NearTie,
    Opened,
    PartyRecord,
    PlainRun,
    PredictedParty,
    RunRecord,
)

SECRET = "what nobody but the client may read"
SPEC = ModelSpec(
    name="tiny",
    family="llama",
    layers=2,
    hidden=8,
    heads=2,
    kv_heads=1,
    head_dim=4,
    ffn=16,
    vocab=32,
    context=64,
    norm="rms",
    norm_eps=1e-5,
)
PATHS = ("setup/weights", "prefill/layer0/attention", "prefill/layer1/attention", "decode/head")
KEPT = {"static": [12, 12], "dynamic": [8, 9]}
OPENED = (Opened("answer", "party 1", 3),)


def counts_of(path: str) -> dict[str, int]:
    size = 100 + len(path)
    return {
        "rounds": 4,
        "messages": 4,
        "sent_bytes": size,
        "received_bytes": size,
        "dealt_bytes": 0,
    }


def make_record(**changes: Any) -> RunRecord:
    """A consistent record of two parties."""
    counts = {path: counts_of(path) for path in PATHS}
    timed = {path: {**c, "seconds": 0.5, "wait_seconds": 0.25} for path, c in counts.items()}
    timed["start"] = {**dict.fromkeys(COUNTS, 0), "seconds": 1.0, "wait_seconds": 0.0}
    sent = sum(entry["sent_bytes"] for entry in counts.values())
    parties = tuple(
        PartyRecord(
            rank=rank,
            scopes=timed,
            openings=OPENED,
            transcript=f"aa{rank}",
            phase_seconds={"setup": 0.5, "prefill": 1.0 + rank, "decode": 4.0},
            kept=KEPT,
            peak_memory_bytes=10**6,
            peers={1 - rank: {"sent_bytes": sent, "received_bytes": sent}},
            step_seconds=(3.0 - rank, 0.5),
        )
        for rank in range(2)
    )
    record = RunRecord(
        run_id="test-run",
        config=load(None, {"prompt": SECRET, "network": "lan", "protocol": "crypten"}),
        spec=SPEC,
        weights="pretrained",
        weights_origin="a test",
        prompt_tokens=16,
        text="an | answer",
        token_ids=(5, 6, 7),
        decode_steps=2,
        plaintext=PlainRun((5, 6, 8), 0.01, 0.002),
        agreement=Agreement(2, 3, near_ties=(NearTie(2, 7, 8, 0.003),)),
        parties=parties,
        predicted=tuple(PredictedParty(rank, counts, f"aa{rank}", OPENED) for rank in range(2)),
        expected_kept=KEPT,
        launcher_peak_bytes=3 * 10**9,
    )
    return replace(record, **changes)
