"""A run's report.json as a page that people read."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import yaml

from mpcache.report import tables
from mpcache.report.page_outlook import COUNTED, PREDICTED


def render(report: dict[str, Any]) -> str:
    """The whole page as Markdown, from the fields of a report whose checks passed."""
    sections = [
        _head(report),
        "## Plaintext against secret-shared\n\n"
        + _table(("", "plaintext", "secret-shared"), tables.headline(report))
        + f"\n\nMeasured on {tables.machine(report)}. {tables.memory(report)}"
        f" Network: {tables.network(report)}.",
        _answer(report),
        "## Agreement\n\n" + "\n".join(f"- {line}" for line in tables.agreement(report)),
        _time(report),
        _components(report),
        _predicted(report),
        *_outlook(report),
        _cache(report),
        *_arithmetic(report),
        _openings(report),
        "## Configuration\n\n```yaml\n"
        + yaml.safe_dump(report["config"], sort_keys=False, allow_unicode=True)
        + "```",
    ]
    return "\n\n".join(sections) + "\n"


def _head(report: dict[str, Any]) -> str:
    lines = [
        f"# Run {report['id']}",
        "",
        f"{tables.model(report)}; {report['parties']} parties, protocol {report['protocol']}, cache"
        f" {report['cache']['policy']}; {report['prompt_tokens']} prompt tokens,"
        f" {report['new_tokens']} new ones. mpcache {report['version']}.",
    ]
    lines.extend(f"\n> **Warning:** {warning}" for warning in report["warnings"])
    return "\n".join(lines)


def _answer(report: dict[str, Any]) -> str:
    note = " (meaningless: synthetic weights)" if report["model"]["weights"] == "synthetic" else ""
    quoted = "\n".join(f"> {line}" for line in report["text"].splitlines() or [""])
    return f"## Answer{note}\n\n{quoted}"


def _time(report: dict[str, Any]) -> str:
    head = ("", "computing", "waiting for a peer", "moving messages", "taking corrections")
    return "## Where the time goes\n\n" + _table(head, tables.time_rows(report))


def _outlook(report: dict[str, Any]) -> list[str]:
    """Nothing where nothing was predicted."""
    head, rows = tables.outlook_rows(report)
    if not rows:
        return []
    title = "## A token at other lengths and on other networks (predicted)"
    return [f"{title}\n\n{_table(head, rows)}\n\n{PREDICTED if head[5:] else COUNTED}"]


def _components(report: dict[str, Any]) -> str:
    parts = [
        "## Rounds and bytes by component",
        "Layers are summed; seconds are those of the slowest party.",
    ]
    for phase in ("prefill", "decode"):
        rows = [
            (
                name,
                f"{entry['rounds']:,}",
                tables.by_party(entry["sent_bytes"]),
                tables.in_seconds(entry["seconds"]),
            )
            for name, entry in tables.components(report["secure"][phase])
        ]
        parts.append(f"### {phase}")
        parts.append(_table(("component", "rounds", "bytes sent", "seconds"), rows))
    return "\n\n".join(parts)


def _predicted(report: dict[str, Any]) -> str:
    checks = ", ".join(
        f"{name} {'yes' if passed else 'NO'}" for name, passed in report["checks"].items()
    )
    table = _table(("", "measured", "predicted by the twin"), tables.against_prediction(report))
    return f"## Measured and predicted\n\n{table}\n\nChecks: {checks}."


def _cache(report: dict[str, Any]) -> str:
    cache = report["cache"]
    return (
        "## Cache\n\n"
        f"Policy {cache['policy']}, clusters of {cache['clusters']} tokens. Tokens kept after"
        f" prefill, by layer: {tables.runs(cache['static_kept'])}. Tokens attended to, by decode"
        f" step: {tables.runs(cache['dynamic_kept'])}. These counts are public; which tokens they"
        " are is not."
    )


def _arithmetic(report: dict[str, Any]) -> list[str]:
    """Nothing where nothing is known."""
    lines = tables.arithmetic(report)
    return ["## Arithmetic\n\n" + "\n".join(f"- {line}" for line in lines)] if lines else []


def _openings(report: dict[str, Any]) -> str:
    rows = [(item["why"], item["to"], f"{item['values']:,}") for item in report["openings"]]
    return (
        "## What left the shares\n\n"
        + _table(("why", "to", "values"), rows)
        + "\n\nPublic besides: the model's shape, lengths, the cache's counts, the number of steps."
        " SECURITY.md says what that gives away."
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [_row(head), _row(["---"] + ["---:"] * (len(head) - 1))]
    lines.extend(_row(row) for row in rows)
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
