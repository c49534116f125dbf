"""What is dealt ahead is what a live dealer deals, and a run out of a store is the same run."""

from __future__ import annotations

import collections
import itertools
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from protocols.harness import counts
from protocols.tiny import FULL, LLAMA, MPCACHE, PROMPT, config, weights
from rich.console import Console

from mpcache import stores
from mpcache.config import RunConfig
from mpcache.errors import MpcacheError, UsageError
from mpcache.generation import Generation
from mpcache.kernels.prg import Stream
from mpcache.parties.dealing import CHUNK, CorrectionStream, Sender, from_file, to_file
from mpcache.parties.local import run_parties
from mpcache.parties.store import Session
from mpcache.parties.transport import Wires
from mpcache.program import Dealt, Twin, deal, predict, run_secure
from mpcache.report.tables import in_bytes


@pytest.fixture(autouse=True)
def model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "find", lambda *_: SimpleNamespace(spec=LLAMA))


def settings(folder: Path, cache: dict[str, Any] = MPCACHE, **changes: Any) -> RunConfig:
    return config(2, cache, protocol="dealer", store=str(folder), **changes)


def ahead(folder: Path, sessions: int = 1, **changes: Any) -> RunConfig:
    made = settings(folder, **changes)
    with torch.random.fork_rng():
        assert stores.deal_ahead(made, len(PROMPT), sessions, Console(quiet=True)) == 0
    return made


def claim(config: RunConfig, rank: int, prompt_tokens: int | None = len(PROMPT)) -> Session:
    mine = stores._at_party(config, rank)
    with stores.opened(mine, rank, LLAMA, prompt_tokens) as store:
        return store.claim(store.next)


def secure(config: RunConfig, dealt: list[Dealt], prompt: list[int] = PROMPT) -> list[Any]:
    tensors = weights(LLAMA)

    def program(wires: Wires) -> tuple[Generation, Any]:
        owner, client = wires.rank == config.owner, wires.rank == config.client
        made = run_secure(
            config, LLAMA, wires, tensors if owner else None, prompt if client else None, None,
            dealt[wires.rank],
        )  # fmt: skip
        return made, wires.ledger

    return run_parties(2, program)


def held(sessions: list[Session]) -> list[Dealt]:
    stream = CorrectionStream(from_file(sessions[1].corrections or -1))
    corrections = [None, stream]
    return [
        Dealt(Stream(session.seed), corrections[rank], len(PROMPT))
        for rank, session in enumerate(sessions)
    ]


@pytest.mark.parametrize("cache", [MPCACHE, FULL], ids=["mpcache", "full"])
def test_a_store_holds_what_a_live_dealer_sends(tmp_path: Path, cache: dict[str, Any]) -> None:
    made = ahead(tmp_path / "store", sessions=2, cache=cache)
    sessions = [claim(made, rank) for rank in (0, 1)]
    sent: list[bytes] = []
    sender = Sender(to_file(lambda data: sent.append(bytes(data))))
    seeds = Stream(sessions[0].seed), Stream(sessions[1].seed)
    dealt = deal(made, LLAMA, len(PROMPT), seeds, sender.emit)
    sender.finish()
    with open(sessions[1].corrections or -1, "rb", closefd=False) as file:
        assert file.read() == b"".join(sent)
        file.seek(0)
    assert dealt == sessions[1].dealt_bytes == sum(map(len, sent))
    parties = secure(made, held(sessions))
    twin = Twin(made, LLAMA, weights(LLAMA)).generate(PROMPT)
    assert parties[1][0].ids == twin.ids
    for (_, ledger), predicted in zip(
        parties, predict(made, LLAMA, len(PROMPT)).ranks, strict=True
    ):
        assert counts(ledger) == counts(predicted)
        assert ledger.transcript.hexdigest() == predicted.transcript.hexdigest()
    assert parties[1][1].total().dealt_bytes == dealt


def test_sessions_share_nothing(tmp_path: Path) -> None:
    made = ahead(tmp_path / "store", sessions=3)
    files = [
        path.read_bytes() for path in (tmp_path / "store").rglob("session-*") if path.is_file()
    ]
    assert len(files) == 9 and len(set(files)) == 9
    headers = [json.loads((tmp_path / f"store/party-{r}/store.json").read_text()) for r in (0, 1)]
    assert headers[0]["store"] == headers[1]["store"]
    assert headers[0]["terms"]["prompt_tokens"] == len(PROMPT)
    assert headers[0]["digest"] == headers[1]["digest"]
    assert made.processes == 2


@pytest.mark.parametrize("extra", [-1, 0, 1, CHUNK - 1])
def test_streams_of_any_length_come_back_to_the_last_byte(tmp_path: Path, extra: int) -> None:
    """Also where the last frame is full: the end of the file then is a frame of nothing."""
    data = torch.randint(0, 255, (2 * CHUNK + extra,), dtype=torch.uint8)
    path = tmp_path / "file"
    with path.open("wb") as file:
        sender = Sender(to_file(lambda part: file.write(part) and None))
        for piece in data.split(700_001):
            sender.emit(piece)
        sender.finish()
    assert path.read_bytes() == data.numpy().tobytes()
    descriptor = os.open(path, os.O_RDONLY)
    stream = CorrectionStream(from_file(descriptor))
    got = [stream.ring((size,), torch.uint8) for size in (5, CHUNK, CHUNK + extra - 5)]
    stream.finish()
    with pytest.raises(MpcacheError, match="dealt less than this run needs"):
        stream.ring((1,))
    with pytest.raises(OSError):
        os.fstat(descriptor)  # it was closed at the end
    assert torch.equal(torch.cat(got), data)


# --- lengths and other terms ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "prompt_tokens", "message"),
    [
        ({}, 14, "was dealt for 13 prompt tokens and 3 new tokens, and this run has 14 prompt"),
        ({}, 12, "and this run has 12 prompt tokens and 3 new tokens"),
        ({"max_new_tokens": 2}, 13, "and this run has 13 prompt tokens and 2 new tokens"),
        ({"max_new_tokens": 4}, None, "was dealt for 3 new tokens, and this run has 4 new tokens"),
        ({"cache": FULL}, 13, "was dealt for another run: it has cache {'policy': 'mpcache'"),
        ({"temperature": 0.5}, 13, "it has temperature 0.0, this run has 0.5"),
    ],
)
def test_another_run_is_refused_before_anything_is_used(
    tmp_path: Path, changes: dict[str, Any], prompt_tokens: int | None, message: str
) -> None:
    ahead(tmp_path / "store")
    other = settings(tmp_path / "store", **changes)
    for rank in (0, 1):
        with pytest.raises(UsageError) as refusal:
            claim(other, rank, prompt_tokens)
        assert message in str(refusal.value)
    assert len(list((tmp_path / "store").rglob("session-0.*"))) == 3


def test_another_model_is_refused(tmp_path: Path) -> None:
    made = ahead(tmp_path / "store")
    other = replace(LLAMA, name="other", ffn=24)
    refused = pytest.raises(UsageError, match="model 'tiny-llama', this run has 'other'; model_")
    with refused, stores.opened(stores._at_party(made, 0), 0, other, 13):
        pass


def test_what_does_not_change_the_correlations_may_differ(tmp_path: Path) -> None:
    ahead(tmp_path / "store")
    other = settings(tmp_path / "store", verify=True, network="lan", seed=5, chat=False)
    assert "session 1 of 1" in stores.check_both(other, LLAMA, len(PROMPT))
    assert claim(other, 0).number == 0


def test_a_client_that_announces_another_length(tmp_path: Path) -> None:
    made = ahead(tmp_path / "store")
    dealt = held([claim(made, rank) for rank in (0, 1)])
    with pytest.raises(MpcacheError, match="announced a prompt of 12 tokens, and the store was"):
        secure(made, dealt, PROMPT[:-1])


# --- launch looks at both ------------------------------------------------------------------------


def test_launch_refuses_what_a_party_would(tmp_path: Path) -> None:
    made = ahead(tmp_path / "store", sessions=2)
    assert stores.check_both(made, LLAMA, 13).startswith("session 1 of 2 from the store")
    claim(made, 0)
    assert stores.check_both(made, LLAMA, 13).startswith("session 2 of 2")
    path = tmp_path / "store" / "party-1" / "session-1.corrections"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(UsageError, match=r"damaged session-1\.corrections: its checksum differs"):
        stores.check_both(made, LLAMA, 13)


def test_launch_refuses_two_halves_of_two_stores(tmp_path: Path) -> None:
    made = ahead(tmp_path / "store")
    ahead(tmp_path / "other")
    shutil.rmtree(tmp_path / "store" / "party-1")
    shutil.copytree(tmp_path / "other" / "party-1", tmp_path / "store" / "party-1")
    with pytest.raises(UsageError, match="are of two different stores"):
        stores.check_both(made, LLAMA, 13)


# --- dealing -------------------------------------------------------------------------------------


def test_the_size_is_told_before_and_room_is_looked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    usage = collections.namedtuple("usage", "total used free")
    monkeypatch.setattr(stores.shutil, "disk_usage", lambda _: usage(1 << 40, 0, 70 << 20))
    monkeypatch.setattr(stores, "StoreWriter", None)  # never reached
    made = settings(tmp_path / "store")
    with pytest.raises(UsageError, match=r"5 sessions take .* and .* has 73.4 MB free; deal fewer"):
        stores.deal_ahead(made, 13, 5, Console(highlight=False, width=200))
    size = predict(made, LLAMA, 13).ranks[1].total().dealt_bytes
    told = f"5 sessions of {in_bytes(size)} for party 1 and 16 B for party 0"
    assert size > 2**21 and told in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_the_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stores.deal_ahead(settings(tmp_path / "s"), 13, 2, Console(highlight=False, width=200))
    shown = capsys.readouterr().out
    size = predict(settings(tmp_path / "s"), LLAMA, 13).ranks[1].total().dealt_bytes
    assert f"session 2/2: {in_bytes(size)} in " in shown
    assert "dealt 2 sessions in " in shown
    assert f"32 B for party 0, {in_bytes(2 * size)} for party 1" in shown
    for rank, number in itertools.product((0, 1), repeat=2):
        seed = (tmp_path / f"s/party-{rank}/session-{number}.seed").read_bytes()
        assert seed.hex() not in shown and repr(seed) not in shown


@pytest.mark.parametrize(
    ("prompt_tokens", "changes", "message"),
    [
        (62, {}, "62 prompt tokens and 3 new ones exceed the context of tiny-llama, 64 tokens"),
        (13, {"store": "NONE/store"}, "is not a writable folder"),
    ],
)
def test_mistakes(
    tmp_path: Path, prompt_tokens: int, changes: dict[str, str], message: str
) -> None:
    folder = tmp_path / changes.get("store", "store")
    with pytest.raises(UsageError, match=message):
        stores.deal_ahead(settings(folder), prompt_tokens, 1, Console(quiet=True))
    assert list(tmp_path.iterdir()) == []


def test_an_interrupted_deal_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(stores, "deal", broken)
    with pytest.raises(KeyboardInterrupt):
        ahead(tmp_path / "store")
    assert list(tmp_path.iterdir()) == []
