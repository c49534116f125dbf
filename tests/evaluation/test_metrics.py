"""The published metrics, by hand."""

from __future__ import annotations

import itertools
import random

import pytest

from mpcache.evaluation.metrics import common_subsequence, normalised, score, subsequence

CLASSES = ("Number", "Date", "Expression abbreviated", "Abbreviation", "Color")


def test_words_without_case_articles_and_punctuation() -> None:
    assert normalised("The  U.S.A., an Answer—to a 'Thing'!") == ["usa", "answer—to", "thing"]


@pytest.mark.parametrize(
    ("metric", "answer", "truth", "expected"),
    [
        # two of three words right, two of four found: 2 * (2/3 * 2/4) / (2/3 + 2/4)
        ("f1", "the red big house", "red house of stone", 4 / 7),
        ("f1", "Paris.", "paris", 1.0),
        ("f1", "London", "paris", 0.0),
        ("f1", "", "paris", 0.0),
        ("f1", "yes yes yes", "yes", 2 * (1 / 3 * 1) / (1 / 3 + 1)),  # counted once
        # the cat sat / the cat quickly sat: subsequence 3, precision 1, recall 3/4
        ("rouge_l", "the cat sat", "the cat quickly sat", 6 / 7),
        ("rouge_l", "sat cat the", "the cat sat", 1 / 3),
        ("rouge_l", "The cat", "the cat", 0.5),
        ("rouge_l", "", "the cat", 0.0),
        ("rouge_l", "...", "the cat", 0.0),
        ("rouge_l", "the cat the cat", "the cat", 1.0),  # different words: two, two and two
        # Lin's example: w1 w2 from the first sentence, w1 w3 w5 from the second; 4 of 5 and of 8
        ("rouge_l", "w1 w2 w6 w7 w8. w1 w3 w8 w9 w5", "w1 w2 w3 w4 w5", 2 * 4 / (8 + 5)),
        # a b from the one pair, and of c d and d c the walk back finds one word
        ("rouge_l", "a b. c d", "d c. a b", 2 * 3 / (4 + 4)),
        ("rouge_l", "a b. ", "a b.", 2 * 2 / (3 + 2)),  # the blank after the stop is a word
        ("classification", "It is a Date", "Date", 1.0),
        ("classification", "Date or Number", "Date", 0.5),
        ("classification", "Color", "Date", 0.0),
        ("classification", "", "Date", 0.0),
        ("count", "There are 7 of them", "7", 1.0),
        ("count", "7, or 8, or 7 again, or 9", "7", 0.5),
        ("count", "17", "7", 0.0),
        ("count", "many", "7", 0.0),
        ("retrieval", "Paragraph 12", "Paragraph 12", 1.0),
        ("retrieval", "Paragraph 12 or 30", "Paragraph 12", 0.5),
        ("retrieval", "Paragraph 1", "Paragraph 12", 0.0),
        # subsequence of "abcd" and "abxd" is 3 of 4 + 4
        ("edit_similarity", "abcd", "abxd", 6 / 8),
        ("edit_similarity", "\n\nx = 1\ny = 2", "x = 1", 1.0),
        ("edit_similarity", "# note\n```python\n// more\nx = 1", "x = 1", 1.0),
        ("edit_similarity", "# nothing else", "x = 1", 0.0),
        ("edit_similarity", "abc", "abxd", 0.57),  # 4 of 7, in whole percent
        ("edit_similarity", "", "", 1.0),
    ],
)
def test_by_hand(metric: str, answer: str, truth: str, expected: float) -> None:
    assert score(metric, answer, [truth], CLASSES) == pytest.approx(expected)


def test_a_class_inside_the_right_one_does_not_count() -> None:
    classes = ("Expression", "Expression abbreviated")
    answer = "Expression abbreviated"
    assert score("classification", answer, [answer], classes) == 1.0
    assert score("classification", answer, ["Expression"], classes) == 0.5


def test_the_second_of_two_parts_of_the_right_class_stays() -> None:
    classes = ("Name", "Full", "Full name", "Full Name of a place")
    assert score("classification", classes[-1], [classes[-1]], classes[:3]) == 0.0
    # Name is dropped and Full stays with the right one; without Name in between Full is dropped
    assert score("classification", classes[-1], [classes[-1]], (*classes[:2], classes[-1])) == 0.5
    assert score("classification", classes[-1], [classes[-1]], (classes[1], classes[-1])) == 1.0


def test_the_best_truth_and_the_first_line_count() -> None:
    assert score("f1", "blue", ["red", "blue"]) == 1.0
    assert score("f1", "\nblue\nQuestion: what now", ["blue"], first_line=True) == 1.0
    assert score("f1", "blue\nred red red", ["blue"]) < 1.0
    assert score("f1", "blue", []) == 0.0


def test_common_subsequence_against_trying_all() -> None:
    draw = random.Random(2)
    for _ in range(40):
        a, b = ("".join(draw.choices("abc", k=draw.randrange(7))) for _ in range(2))
        sizes = range(len(a) + 1)
        every = {"".join(part) for size in sizes for part in itertools.combinations(a, size)}
        best = max(
            len(part) for part in every
            if any("".join(p) == part for p in itertools.combinations(b, len(part)))
        )  # fmt: skip
        assert common_subsequence(a, b) == best
        found = "".join(subsequence(a, b))
        assert len(found) == best
        assert all(any("".join(p) == found for p in itertools.combinations(text, best))
                   for text in (a, b))  # fmt: skip
