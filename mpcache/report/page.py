"""One or more runs as a single HTML page that needs nothing else: no network, script or font."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from mpcache.report import compare, tables
from mpcache.report.charts import Bar, bars
from mpcache.report.markup import Markup, join, table, tag
from mpcache.report.page_outlook import outlook_section
from mpcache.report.page_time import PARTS, time_section, traffic_section
from mpcache.report.plots import Curve, plot
from mpcache.report.style import CSS
from mpcache.report.words import words_section


def render_page(reports: Sequence[dict[str, Any]], pieces: Sequence[Markup] = ()) -> str:
    """The page for reports whose checks passed, in the given order.

    Args:
        pieces: sections of what `mpcache bench` measured, shown after the runs.
    """
    several = len(reports) > 1
    title = "mpcache: " + (f"run {reports[0]['id']}" if len(reports) == 1 else "measured")
    title = f"mpcache: {len(reports)} runs" if several else title
    body = [
        tag("h1", title),
        *(tag("p", lead(report), class_="lead") for report in reports[:1] if not several),
        _banners(reports),
        _comparison(reports) if several else None,
        *(_run(report, reports) for report in reports),
        *pieces,
        words_section(),
    ]
    page = tag(
        "html",
        tag(
            "head",
            tag("meta", charset="utf-8"),
            tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
            tag("title", title),
            tag("style", Markup(CSS)),
        ),
        tag("body", tag("main", *body)),
        lang="en",
    )
    return f"<!DOCTYPE html>\n{page}\n"


def lead(report: dict[str, Any]) -> str:
    """What happened, in a sentence or two, for a reader who knows nothing of it yet."""
    token, times = report["secure"]["decode"]["per_token"], compare.times_plaintext(report)
    said = (
        f"{report['model']['name']} read a prompt of {report['prompt_tokens']:,} tokens and wrote"
        f" {report['new_tokens']:,}, computed by {report['parties']} parties on secret shares:"
        f" {_unseen(report)}."
    )
    if token["seconds"] is None:
        return said
    plain = tables.in_seconds(report["plaintext"]["decode_seconds_per_token"])
    against = f", {_times(times)} the {plain} of the same program on plain numbers"
    return f"{said} A token took {tables.in_seconds(token['seconds'])}{against * bool(times)}."


def _unseen(report: dict[str, Any]) -> str:
    if report["config"].get("sharing") == "shared":
        return "no party saw the weights, and only the one with the prompt saw that"
    return "the party with the prompt did not see the weights, and no other party saw the prompt"


def _banners(reports: Sequence[dict[str, Any]]) -> Markup:
    """What a reader must not miss: first of all weights that mean nothing."""
    synthetic = [run["id"] for run in reports if run["model"]["weights"] == "synthetic"]
    found = []
    if synthetic:
        which = f" ({', '.join(synthetic)})" if len(reports) > 1 else ""
        text = f"SYNTHETIC WEIGHTS{which}: the text is meaningless; only times and sizes count."
        found.append(tag("p", text, class_="banner loud", role="alert"))
    for warning in dict.fromkeys(text for run in reports for text in run["warnings"]):
        if not warning.startswith("synthetic weights"):
            found.append(tag("p", warning, class_="banner"))
    return join(found)


# --- several runs ---------------------------------------------------------------------------------


def _comparison(reports: Sequence[dict[str, Any]]) -> Markup:
    rows, seconds, sizes = [], [], []
    for run in reports:
        token = run["secure"]["decode"]["per_token"]
        label = f"{run['cache']['policy']}, {run['protocol']}, {run['prompt_tokens']} tokens"
        saved = compare.reduction(run, reports)
        rows.append(
            (
                tag("a", run["id"], href=f"#run-{run['id']}"),
                label,
                _wire(run),
                tables.in_seconds(token["seconds"]),
                _times(compare.times_plaintext(run)),
                _count(token["rounds"]),
                tables.by_party(token["sent_bytes"]),
                tables.by_party(token["dealt_bytes"]),
                _times(saved.seconds if saved else None),
                _times(saved.sent_bytes if saved else None),
            )
        )
        taken, sent = token["seconds"], compare.most(token["sent_bytes"])
        if taken is not None and sent is not None:
            where = f"{label}, {_wire(run)}"
            seconds.append(Bar(where, tables.in_seconds(taken), _token_parts(run, taken)))
            sizes.append(Bar(where, tables.in_bytes(sent), [("size", sent)]))
    head = (
        *("run", "cache, protocol, prompt", "network", "a token", "times plaintext", "rounds"),
        *("sent", "dealt", "time: full / this", "sent: full / this"),
    )
    return tag(
        "section",
        tag("h2", "Runs compared, a decode step"),
        table(head, rows),
        tag("h3", "Seconds a token, secret-shared"),
        bars(seconds, PARTS),
        tag("h3", "Bytes sent a token, of the party that sends most"),
        bars(sizes),
        tag("div", *_growth(reports), class_="plots"),
    )


def _token_parts(run: dict[str, Any], seconds: float) -> list[tuple[str, float]]:
    """A token's seconds as the slowest party spent those of its decode steps."""
    found = tables.components(run["secure"]["decode"], depth=0, top=None)
    times = found[0][1].get("by_party") if found else None
    if not times or not max(times["seconds"]):
        return [("compute", seconds)]
    slowest = max(range(len(times["seconds"])), key=lambda rank: times["seconds"][rank])
    parts = tables.split(times, slowest)
    scale = seconds / sum(size for _, size in parts)
    return [(style, size * scale) for style, size in parts]


def _growth(reports: Sequence[dict[str, Any]]) -> list[Markup]:
    """Seconds and bytes a token over the prompt's length, where a setting has two lengths."""
    seconds: dict[str, dict[float, float]] = {}
    sizes: dict[str, dict[float, float]] = {}
    for run in reports:
        token = run["secure"]["decode"]["per_token"]
        if token["seconds"] is None:
            continue
        name = f"{run['model']['name']}, {run['cache']['policy']}, {run['protocol']}, {_wire(run)}"
        seconds.setdefault(name, {})[run["prompt_tokens"]] = token["seconds"]
        sizes.setdefault(name, {})[run["prompt_tokens"]] = max(token["sent_bytes"])
    found = [
        plot(
            [Curve(name, sorted(points.items())) for name, points in curves.items()],
            "tokens of the prompt",
            shown,
            title,
        )
        for curves, shown, title in (
            (seconds, tables.in_seconds, "Seconds a token over the prompt's length"),
            (sizes, tables.in_bytes, "Bytes sent a token over the prompt's length"),
        )
    ]
    return [picture for picture in found if picture is not None]


# --- one run --------------------------------------------------------------------------------------


def _run(report: dict[str, Any], reports: Sequence[dict[str, Any]]) -> Markup:
    facts = (
        f"{tables.model(report)}; {report['parties']} parties, protocol {report['protocol']},"
        f" cache {report['cache']['policy']}; {report['prompt_tokens']} prompt tokens,"
        f" {report['new_tokens']} new ones; mpcache {report['version']}."
    )
    return tag(
        "section",
        tag("h2", f"Run {report['id']}") if len(reports) > 1 else None,
        tag("p", facts),
        _tiles(report, reports),
        *(tag("p", text, class_="soft") for text in compare.obstacles(report, reports)),
        tag("p", _caption(report), class_="soft"),
        _answer(report),
        tag("h3", "Agreement"),
        tag("ul", *(tag("li", line) for line in tables.agreement(report))),
        tag("h3", "Plaintext against secret-shared"),
        table(("", "plaintext", "secret-shared"), tables.headline(report)),
        time_section(report),
        outlook_section(report),
        traffic_section(report),
        _predicted(report),
        _cache(report),
        _arithmetic(report),
        _openings(report),
        _configuration(report),
        class_="run",
        id=f"run-{report['id']}",
    )


def _tiles(report: dict[str, Any], reports: Sequence[dict[str, Any]]) -> Markup:
    token = report["secure"]["decode"]["per_token"]
    kind = "measured, emulated network" if report["network"]["emulated"] else "measured"
    found = report["agreement"]
    shown = [
        (tables.in_seconds(token["seconds"]), f"a token, secret-shared ({kind})"),
        (_times(compare.times_plaintext(report)), "the plaintext twin's time a token"),
        (_count(token["rounds"]), "rounds a token"),
        (_size(compare.most(token["sent_bytes"])), "sent a token, by the party that sends most"),
        (
            f"{found['equal_tokens']} / {found['total_tokens']}",
            "sampled tokens that are the twin's likeliest"
            if tables.sampled_at(report)
            else "tokens as the twin's",
        ),
    ]
    saved = compare.reduction(report, reports)
    if saved is not None:
        against = f"with the full cache (run {saved.against}), relative to this one"
        shown[2:2] = [
            (_times(saved.seconds), f"time a token {against}"),
            (_times(saved.sent_bytes), f"bytes sent a token {against}"),
        ]
    else:
        shown[2:2] = _foreseen_saving(report)
    tiles = [tag("div", tag("b", value), tag("span", what), class_="tile") for value, what in shown]
    return tag("div", *tiles, class_="tiles")


def _foreseen_saving(report: dict[str, Any]) -> list[tuple[str, str]]:
    """The full cache's cost over this run's, predicted, where no such run is on the page."""
    rows = {
        row["cache"]: row
        for row in report.get("outlook") or []
        if row["context"] == report["prompt_tokens"]
    }
    own, full = rows.get(report["cache"]["policy"]), rows.get(compare.FULL)
    if own is None or full is None or own is full:
        return []
    text = "with the full cache, relative to this one (predicted)"
    ratio = max(full["sent_bytes"]) / max(own["sent_bytes"])
    found = [(_times(ratio), f"bytes sent a token {text}")]
    if own["seconds"]:
        network = next(iter(own["seconds"]))
        ratio = full["seconds"][network] / own["seconds"][network]
        found.insert(0, (_times(ratio), f"time a token {text}"))
    return found


def _caption(report: dict[str, Any]) -> str:
    return (
        f"Measured on {tables.machine(report)}. {tables.memory(report)}"
        f" Network: {tables.network(report)}."
    )


def _answer(report: dict[str, Any]) -> Markup:
    note = " (meaningless: synthetic weights)" if report["model"]["weights"] == "synthetic" else ""
    return join([tag("h3", f"Answer{note}"), tag("blockquote", report["text"])])


def _predicted(report: dict[str, Any]) -> Markup:
    checks = [
        tag("li", name, ": ", tag("span", "passed" if ok else "FAILED", class_=_mark(ok)))
        for name, ok in report["checks"].items()
    ]
    return tag(
        "div",
        tag("h3", "Measured and predicted"),
        table(("", "measured", "predicted by the twin"), tables.against_prediction(report)),
        tag("h3", "Checks"),
        tag("ul", *checks),
    )


def _mark(good: bool) -> str:
    return "good" if good else "bad"


def _cache(report: dict[str, Any]) -> Markup:
    cache = report["cache"]
    text = (
        f"Policy {cache['policy']}, clusters of {' and '.join(map(str, cache['clusters']))} tokens."
        f" Tokens kept after prefill, by layer: {tables.runs(cache['static_kept'])}. Tokens"
        f" attended to, by decode step: {tables.runs(cache['dynamic_kept'])}. These counts are"
        " public; which tokens they are is not."
    )
    return join([tag("h3", "Cache"), tag("p", text)])


def _arithmetic(report: dict[str, Any]) -> Markup:
    lines = tables.arithmetic(report)
    return join([tag("h3", "Arithmetic"), *(tag("p", line) for line in lines)] if lines else [])


def _openings(report: dict[str, Any]) -> Markup:
    rows = [(item["why"], item["to"], f"{item['values']:,}") for item in report["openings"]]
    return join([tag("h3", "What left the shares"), table(("why", "to", "values"), rows)])


def _configuration(report: dict[str, Any]) -> Markup:
    text = yaml.safe_dump(report["config"], sort_keys=False, allow_unicode=True)
    return tag("details", tag("summary", "Configuration"), tag("pre", text))


# --- figures as text ------------------------------------------------------------------------------


def _wire(report: dict[str, Any]) -> str:
    wire = report["network"]
    return (
        f"emulated: {wire['rtt_ms']:g} ms, {wire['mbps']:g} Mbps"
        if wire["emulated"]
        else "not emulated"
    )


def _times(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}x"


def _count(value: float | None) -> str:
    return "-" if value is None else f"{value:,.6g}"


def _size(value: float | None) -> str:
    return "-" if value is None else tables.in_bytes(value)
