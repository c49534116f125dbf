"""From single results to a row for each policy and budget, with standard errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mpcache.evaluation.settings import FULL
from mpcache.evaluation.store import Cell, Result, Subject
from mpcache.evaluation.tasks import Key

Row = dict[str, Any]
ByWindow = Mapping[int, Result]


def mean_and_error(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean, and its standard error where there are two values at least."""
    count = len(values)
    mean = math.fsum(values) / count
    if count < 2:
        return mean, None
    spread = math.fsum((value - mean) ** 2 for value in values) / (count - 1)
    return mean, math.sqrt(spread / count)


def summarise(results: Mapping[Cell, Result], task: str, subject: Subject) -> list[Row]:
    """One row for each policy and budget of a task, the full cache first, budgets ascending."""
    groups: dict[Key, dict[int, Result]] = {}
    for cell, result in results.items():
        if cell.task == task and cell.subject == subject:
            groups.setdefault((cell.policy, cell.budget), {})[cell.window] = result
    full = groups.get((FULL, 100.0), {})
    names = list(dict.fromkeys(name for name, _ in groups))
    order = sorted(groups, key=lambda key: (key[0] != FULL, names.index(key[0]), key[1]))
    rows = []
    for key in order:
        one = groups[key]
        row = {"policy": key[0], "budget": key[1], "windows": len(one)}
        for name in ("stored", "attended"):
            counts = [result[name] for result in one.values() if name in result]
            if counts:
                row[name] = mean_and_error(counts)[0]
        rows.append(row | FIGURES[kind_of(task)](one, full))
    return rows


def perplexity(one: ByWindow, full: ByWindow) -> Row:
    """exp of the mean loss; and of the mean difference to the full cache on the same windows.

    The ratio's standard error is that of the mean difference, times the ratio.
    """
    loss, loss_error = mean_and_error([result["nll"] for result in one.values()])
    row: Row = {
        "perplexity": math.exp(loss),
        "perplexity_error": None if loss_error is None else math.exp(loss) * loss_error,
    }
    shared = [window for window in one if window in full]
    if shared:
        difference, error = mean_and_error([one[w]["nll"] - full[w]["nll"] for w in shared])
        row["ratio"] = math.exp(difference)
        row["ratio_error"] = None if error is None else row["ratio"] * error
    return row


def passkey(one: ByWindow, full: ByWindow) -> Row:
    exact, error = mean_and_error([float(result["exact"]) for result in one.values()])
    digits, digits_error = mean_and_error([result["digits"] for result in one.values()])
    return {"exact": exact, "exact_error": error, "digits": digits, "digits_error": digits_error}


def agreement(one: ByWindow, full: ByWindow) -> Row:
    share, error = mean_and_error([result["equal"] / result["tokens"] for result in one.values()])
    prefix, _ = mean_and_error([float(result["prefix"]) for result in one.values()])
    return {"agreement": share, "agreement_error": error, "prefix": prefix}


def recall(one: ByWindow, full: ByWindow) -> Row:
    mass, error = mean_and_error([result["mass"] for result in one.values()])
    rest, rest_error = mean_and_error([result["mass_without_sink"] for result in one.values()])
    return {
        "mass": mass,
        "mass_error": error,
        "mass_without_sink": rest,
        "mass_without_sink_error": rest_error,
    }


def longbench(one: ByWindow, full: ByWindow) -> Row:
    score, error = mean_and_error([result["score"] for result in one.values()])
    return {"score": score, "score_error": error}


def kind_of(task: str) -> str:
    """What is measured: ``longbench`` of ``longbench-qasper``."""
    return task.partition("-")[0]


FIGURES: dict[str, Callable[[ByWindow, ByWindow], Row]] = {
    "perplexity": perplexity,
    "passkey": passkey,
    "agreement": agreement,
    "recall": recall,
    "longbench": longbench,
}
# What a task's chart and its first column show, and the words for it.
HEADLINE = {
    "perplexity": ("ratio", "perplexity over the full cache's"),
    "passkey": ("exact", "share of passkeys found exactly"),
    "agreement": ("agreement", "share of greedy tokens equal to the full cache's"),
    "recall": ("mass", "share of attention mass kept"),
    "longbench": ("score", "score, 0 to 1"),
}
