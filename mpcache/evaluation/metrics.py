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
    """ROUGE-L (Lin 2004), F with equal weights, over the words of the whole texts.

    Sentences are not told apart, which the published script does (it joins the subsequences of
    all pairs of sentences): on texts of one sentence both agree. Words count as they stand.
    """
    ours, theirs = answer.split(), truth.split()
    common = common_subsequence(ours, theirs)
    return 2 * common / (len(ours) + len(theirs)) if common else 0.0


def classification(answer: str, truth: str, classes: Sequence[str]) -> float:
    """1 over the number of classes that the answer names, if the right one is among them.

    A class whose name is a part of the right one's does not count.
    """
    named = [name for name in classes if name in answer]
    named = [name for name in named if name == truth or name not in truth]
    return 1 / len(named) if truth in named else 0.0


def edit_similarity(answer: str, truth: str, classes: Sequence[str] = ()) -> float:
    """Share of characters of the first line of code and the true one that need no edit.

    1 - (insertions + deletions) / (both lengths), where a replacement is one of each: twice the
    longest common subsequence over both lengths.
    """
    lines = answer.lstrip("\n").split("\n")
    code = next((line for line in lines if not any(mark in line for mark in _MARKS)), "")
    if not code and not truth:
        return 1.0
    return 2 * common_subsequence(code, truth) / (len(code) + len(truth))


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
