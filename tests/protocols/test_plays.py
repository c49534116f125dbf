"""Plays side by side: as many rounds as the longest, one frame a round, the same results."""

from __future__ import annotations

from typing import Any

import torch

from mpcache.protocols.dealer import DealerSuite
from mpcache.protocols.operation import SecureMachine
from mpcache.protocols.plays import Ask, Play, side_by_side
from mpcache.protocols.wire import Words

from .test_dealer import Done, deal_and_run

WORDS = [Words((1,))]


def counting(name: int, rounds: int, heard: list[int]) -> Play:
    """Sends its name and the round in each of `rounds` rounds; returns the sum of what it got."""
    total = 0
    for turn in range(rounds):
        sent = torch.tensor([100 * name + turn])
        (got,) = yield [Ask(f"k{name}", (WORDS, WORDS), [sent])]
        heard.append(name)
        total += int(got[0])
    return total


def driven(play: Play) -> tuple[Any, list[list[str]]]:
    """The play's result where the peer sends back what it is sent, and the kinds of each round."""
    rounds: list[list[str]] = []
    got = None
    while True:
        try:
            asks = play.send(got)  # type: ignore[arg-type]
        except StopIteration as end:
            return end.value, rounds
        rounds.append([ask.kind for ask in asks])
        got = [[tensor.clone() for tensor in ask.own] for ask in asks]


def test_each_gets_its_own_answers_and_ends_when_it_ends() -> None:
    heard: list[int] = []
    plays = [counting(1, 2, heard), counting(2, 0, heard), counting(3, 3, heard)]
    results, rounds = driven(side_by_side(plays))
    assert results == [100 + 101, 0, 300 + 301 + 302]
    assert rounds == [["k1", "k3"], ["k1", "k3"], ["k3"]]
    assert heard == [1, 3, 1, 3, 3]


def test_no_plays_and_plays_without_rounds_end_at_once() -> None:
    assert driven(side_by_side([])) == ([], [])
    assert driven(side_by_side([counting(1, 0, []), counting(2, 0, [])])) == ([0, 0], [])


def test_side_by_side_may_be_nested() -> None:
    inner = side_by_side([counting(1, 1, []), counting(2, 2, [])])
    results, rounds = driven(side_by_side([inner, counting(3, 3, [])]))
    assert results == [[100, 200 + 201], 300 + 301 + 302]
    assert rounds == [["k1", "k2", "k3"], ["k2", "k3"], ["k3"]]


def played(together: bool) -> Done:
    """A product, a comparison, a truncation and what is kept, at once or one after the other."""
    x = torch.randint(-(2**40), 2**40, (5, 3), generator=torch.Generator().manual_seed(1))
    y = torch.randint(-(2**20), 2**20, (3, 4), generator=torch.Generator().manual_seed(2))

    def program(machine: SecureMachine, rank: int | None) -> list[Any]:
        suite = machine.suite
        assert isinstance(suite, DealerSuite)
        a, b = (suite.share(v if rank == 0 else None, tuple(v.shape), 0, 0) for v in (x, y))
        with machine.scope("op"):
            plays = [
                suite.multiplying_matrices(a, b),
                suite.comparing(a, 41, 0),
                suite.truncating(a.halved(16), 9),
                suite.keeping(b),
            ]
            values = suite.together(*plays) if together else list(map(suite.play, plays))
        return [suite.open(value, 1, "test") for value in values]

    done = deal_and_run(program)
    done.check_cost()
    assert torch.equal(done.values[0], x @ y)
    assert torch.equal(done.values[1], (x < 0).long())
    assert set((done.values[2] - (x >> 9)).flatten().tolist()) <= {0, 1}
    assert torch.equal(done.values[3], y)
    return done


def test_one_round_of_all_leaves_in_one_message() -> None:
    """Rounds as the longest play, one frame each: its head and label are paid once."""
    together, apart = played(True), played(False)
    for rank in range(2):
        one, many = (done.ledgers[rank].total("op") for done in (together, apart))
        # three of the four plays take one round; the comparison is the longest
        assert many.rounds - one.rounds == 3
        assert one.messages == one.rounds and many.messages == many.rounds
        assert one.dealt_bytes == many.dealt_bytes
        # what is saved is three frames: 19 bytes, a path, and labels that name several kinds
        assert 0 < many.sent_bytes - one.sent_bytes < 3 * (19 + len("op:truncate") + 3)
