"""What is counted, where, and that a transcript shows every change of shape."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mpcache.protocols.channel import Spec, frame_bytes
from mpcache.protocols.ledger import Entry, Ledger, Prediction, Scopes, Transcript

A, B = [Spec((3,))], [Spec((2, 2), torch.uint8), Spec(())]


def filled() -> Ledger:
    ledger = Ledger(0, 3)
    with ledger.scope("layer1"):
        ledger.record("one", {1: A, 2: A}, {1: B}, 0.5, 0.125)
        with ledger.scope("norm"):
            ledger.record("two", {}, {2: A}, 0.25)
    with ledger.scope("layer10"):
        ledger.record("three", {1: B}, {}, 0.25)
    return ledger


def test_steps_count_in_the_scope_they_are_made_in() -> None:
    ledger = filled()
    first = ledger.entries["layer1"]
    assert (first.rounds, first.messages) == (1, 2)
    assert first.sent_bytes == 2 * frame_bytes("one", A)
    assert first.received_bytes == frame_bytes("one", B)
    assert (first.wait_seconds, first.transfer_seconds) == (0.5, 0.125)
    assert set(ledger.by_scope()) == {"start", "layer1", "layer1/norm", "layer10"}


def test_totals_are_over_a_scope_and_what_is_inside_it() -> None:
    ledger = filled()
    assert [ledger.total(p).rounds for p in ("", "layer1", "layer1/norm", "layer10", "layer")] == [
        3, 2, 1, 1, 0,
    ]  # fmt: skip
    assert ledger.total("layer1").received_bytes == frame_bytes("one", B) + frame_bytes("two", A)
    whole = ledger.total()
    parts = [ledger.total(path) for path in ("start", "layer1", "layer10")]
    names = ("rounds", "messages", "sent_bytes", "received_bytes", "wait_seconds")
    for name in (*names, "transfer_seconds"):
        assert getattr(whole, name) == sum(getattr(part, name) for part in parts)


def test_an_exception_leaves_its_scope() -> None:
    scopes = Scopes()
    with pytest.raises(KeyError), scopes.scope("a"), scopes.scope("b"):
        assert scopes.path == "a/b"
        raise KeyError
    assert scopes.path == "start"


def test_seconds_of_a_scope_leave_out_its_children(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter([0.0, 1.0, 3.0, 7.0, 15.0, 31.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(now))
    scopes = Scopes()
    with scopes.scope("a"), scopes.scope("b"):
        pass
    assert scopes.total("a").seconds == 2 + 4 + 8
    monkeypatch.setattr("time.perf_counter", lambda: 31.0)
    assert (scopes.entries["a"].seconds, scopes.entries["a/b"].seconds) == (2 + 8, 4)


def test_progress_hears_of_every_scope() -> None:
    heard: list[str] = []
    scopes = Scopes()
    scopes.on_enter = heard.append
    with scopes.scope("decode"), scopes.scope("layer3"):
        pass
    assert heard == ["decode", "decode/layer3"]


def test_openings_add_up_by_reason_and_receiver() -> None:
    ledger = Ledger(0, 2)
    for why, to, values in (("b", "client", 3), ("a", "client", 1), ("b", "client", 4)):
        ledger.opened(why, to, values)
    ledger.opened("b", "everyone", 1)
    assert [(o.why, o.to, o.values) for o in ledger.openings] == [
        ("a", "client", 1), ("b", "client", 7), ("b", "everyone", 1),
    ]  # fmt: skip


def digest(*steps: tuple[str, dict[int, list[Spec]], dict[int, list[Spec]]]) -> str:
    transcript = Transcript()
    for label, sent, got in steps:
        transcript.add(label, sent, got)
    return transcript.hexdigest()


def test_a_transcript_shows_every_change() -> None:
    same = digest(("x", {1: A, 2: B}, {}))
    assert same == digest(("x", {2: B, 1: A}, {}))
    others = [
        digest(("y", {1: A, 2: B}, {})),
        digest(("x", {1: B, 2: A}, {})),
        digest(("x", {1: A}, {2: B})),
        digest(("x", {1: A, 2: [*B, *A]}, {})),
        digest(("x", {1: [Spec((3,), torch.int32)], 2: B}, {})),
        digest(("x", {1: [Spec((3, 1))], 2: B}, {})),
        digest(("x", {1: A, 2: B}, {}), ("x", {1: A, 2: B}, {})),
        digest(),
    ]
    assert len({same, *others}) == 1 + len(others)


frames = st.dictionaries(
    st.tuples(st.integers(0, 2), st.integers(0, 2)).filter(lambda ends: ends[0] != ends[1]),
    st.lists(st.builds(Spec, st.lists(st.integers(0, 9), max_size=3).map(tuple)), max_size=2),
)


@given(steps=st.lists(st.tuples(st.sampled_from(["", "a", "a/b"]), frames), max_size=5))
def test_a_prediction_is_all_ledgers_at_once(
    steps: list[tuple[str, dict[tuple[int, int], list[Spec]]]],
) -> None:
    prediction = Prediction(3)
    by_hand = [Ledger(rank, 3) for rank in range(3)]
    for path, sends in steps:
        with prediction.scope(path or "none"):
            prediction.step("kind", sends)
        for ledger in by_hand:
            with ledger.scope(path or "none"):
                sent = {to: specs for (at, to), specs in sends.items() if at == ledger.rank}
                got = {at: specs for (at, to), specs in sends.items() if to == ledger.rank}
                ledger.record(f"{ledger.path}:kind", sent, got)
    for predicted, ledger in zip(prediction.ranks, by_hand, strict=True):
        assert predicted.transcript.hexdigest() == ledger.transcript.hexdigest()
        for path, entry in predicted.entries.items():
            assert entry.sent_bytes == ledger.entries[path].sent_bytes
            assert entry.rounds == ledger.entries[path].rounds
    totals = [ledger.total() for ledger in prediction.ranks]
    assert sum(t.sent_bytes for t in totals) == sum(t.received_bytes for t in totals)
    assert {t.rounds for t in totals} == {len(steps)}


def test_predicted_openings_stand_in_every_ledger() -> None:
    prediction = Prediction(2)
    prediction.opened("why", "client", 5)
    assert [[o.values for o in ledger.openings] for ledger in prediction.ranks] == [[5], [5]]


def test_entries_add_up() -> None:
    entry = Entry(1, 2, 3, 4, 5, 6.0, 7.0)
    entry.add(Entry(10, 20, 30, 40, 50, 60.0, 70.0))
    assert entry == Entry(11, 22, 33, 44, 55, 66.0, 77.0)
