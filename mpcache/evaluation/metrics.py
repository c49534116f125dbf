"""How answers are scored: the metrics that LongBench (Bai et al., ACL 2024) publishes.

English only: its Chinese tasks need a word splitter. All scores are from 0 to 1.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Sequence

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_MARKS = ("`", "#", "//")  # in lines that are no code


def normalised(answer: str) -> list[str]:
    """Lower-case words without punctuation and articles."""
    return _ARTICLES.sub(" ", answer.lower().translate(_PUNCTUATION)).split()


def f1(answer: str, truth: str, classes: Sequence[str] = ()) -> float:
    """Harmonic mean of precision and recall over words, each counted as often as it stands."""
    ours, theirs = normalised(answer), normalised(truth)
    common = (Counter(ours) & Counter(theirs)).total()
    return 2 * common / (len(ours) + len(theirs)) if common else 0.0


def common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """The length of the longest common subsequence."""
    row = [0] * (len(second) + 1)
    for item in first:
        before = 0
        for place, other in enumerate(second, 1):
            above = row[place]
            row[place] = before + 1 if item == other else max(above, row[place - 1])
            before = above
    return row[-1]


def rouge_l(answer: str, truth: str, classes: Sequence[str] = ()) -> float:
    """ROUGE-L (Lin 2004) of summaries, F with equal weights, as the package `rouge` 1.0.1 has it.

    1. Both texts are cut into sentences at every full stop, and into words at spaces.
    2. One longest common subsequence of each pair of sentences; all their words together.
    3. Precision and recall are over *different* words: each word of a text counts once.

    Step 3 and a word that is empty (what is blank between two full stops) are that package's own.
    """
    ours, theirs = _sentences(answer), _sentences(truth)
    if not ours or not theirs:
        return 0.0
    common = {
        word for mine in ours for right in theirs for word in subsequence(right, mine)
    }  # fmt: skip
    counts = [len({word for sentence in text for word in sentence}) for text in (ours, theirs)]
    return 2 * len(common) / sum(counts)


def _sentences(text: str) -> list[list[str]]:
    return [part.split() or [""] for part in text.split(".") if part]


def subsequence(first: Sequence[str], second: Sequence[str]) -> list[str]:
    """One longest common subsequence, by a walk back from both ends.

    Where it can leave out an item of either without loss, it leaves out that of `second`.
    """
    lengths = [[0] * (len(second) + 1)]
    for item in first:
        above, row = lengths[-1], [0]
        for place, other in enumerate(second):
            row.append(above[place] + 1 if item == other else max(above[place + 1], row[place]))
        lengths.append(row)
    found = []
    i, j = len(first), len(second)
    while i and j:
        if first[i - 1] == second[j - 1]:
            found.append(first[i - 1])
            i, j = i - 1, j - 1
        elif lengths[i - 1][j] > lengths[i][j - 1]:
            i -= 1
        else:
            j -= 1
    return found[::-1]


def classification(answer: str, truth: str, classes: Sequence[str]) -> float:
    """1 over the number of classes that the answer names, if the right one is among them.

    A class whose name is a part of the right one's does not count; but as published, of two such
    that follow each other in the list of the named ones the second stays.
    """
    named: list[str] = []
    dropped = False
    for name in (name for name in classes if name in answer):
        dropped = not dropped and name != truth and name in truth
        if not dropped:
            named.append(name)
    return 1 / len(named) if truth in named else 0.0


def edit_similarity(answer: str, truth: str, classes: Sequence[str] = ()) -> float:
    """Share of characters of the first line of code and the true one that need no edit.

    1 - (insertions + deletions) / (both lengths), where a replacement is one of each: twice the
    longest common subsequence over both lengths. In whole percent, as published (by `fuzzywuzzy`
    with python-Levenshtein; without it that package compares by blocks, which is no edit distance).
    """
    lines = answer.lstrip("\n").split("\n")
    code = next((line for line in lines if not any(mark in line for mark in _MARKS)), "")
    if code == truth:
        return 1.0
    return round(200 * common_subsequence(code, truth) / (len(code) + len(truth))) / 100


def count(answer: str, truth: str, classes: Sequence[str] = ()) -> float:
    """Share of the answer's numbers that equal the true one."""
    numbers = re.findall(r"\d+", answer)
    return numbers.count(truth.strip()) / len(numbers) if numbers else 0.0


def retrieval(answer: str, truth: str, classes: Sequence[str] = ()) -> float:
    """Share of the answer's numbers that equal that of the true paragraph."""
    found = re.search(r"Paragraph (\d+)", truth)
    return count(answer, found.group(1)) if found else 0.0


Metric = Callable[[str, str, Sequence[str]], float]
METRICS: dict[str, Metric] = {
    "f1": f1,
    "rouge_l": rouge_l,
    "classification": classification,
    "edit_similarity": edit_similarity,
    "count": count,
    "retrieval": retrieval,
}


def score(
    metric: str,
    answer: str,
    truths: Sequence[str],
    classes: Sequence[str] = (),
    first_line: bool = False,
) -> float:
    """The best score of an answer against any of the true ones.

    Args:
        first_line: whether the first line alone is the answer.
    """
    if first_line:
        answer = answer.lstrip("\n").split("\n")[0]
    return max((METRICS[metric](answer, truth, classes) for truth in truths), default=0.0)
