"""One or more runs as a single HTML page that needs nothing else: no network, script or font."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from mpcache.report import compare, tables
from mpcache.report.charts import Bar, bars
from mpcache.report.markup import Markup, join, table, tag
from mpcache.report.style import CSS

TOP_SCOPES = 100
PARTS = (("compute", "computing"), ("wait", "waiting for a peer"), ("deal", "taking corrections"))


def render_page(reports: Sequence[dict[str, Any]]) -> str:
    """The page for reports whose checks passed, in the given order."""
    several = len(reports) > 1
    title = "mpcache: " + (f"{len(reports)} runs" if several else f"run {reports[0]['id']}")
    body = [
        tag("h1", title),
        _banners(reports),
        _comparison(reports) if several else None,
        *(_run(report, reports) for report in reports),
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
            seconds.append(Bar(label, tables.in_seconds(taken), [("compute", taken)]))
            sizes.append(Bar(label, tables.in_bytes(sent), [("deal", sent)]))
    head = (
        *("run", "cache, protocol, prompt", "network", "a token", "times plaintext", "rounds"),
        *("sent", "dealt", "time: full / this", "sent: full / this"),
    )
    return tag(
        "section",
        tag("h2", "Runs compared, a decode step"),
        table(head, rows),
        tag("h3", "Seconds a token, secret-shared"),
        bars(seconds),
        tag("h3", "Bytes sent a token, of the party that sends most"),
        bars(sizes),
    )


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
        tag("h3", "Plaintext against secret-shared"),
        table(("", "plaintext", "secret-shared"), tables.headline(report)),
        _answer(report),
        tag("h3", "Agreement"),
        tag("ul", *(tag("li", line) for line in tables.agreement(report))),
        _time(report),
        _traffic(report),
        _predicted(report),
        _cache(report),
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
        against = f"of full-cache run {saved.against} over this one's; above 1 is a saving"
        shown[2:2] = [
            (_times(saved.seconds), f"time a token {against}"),
            (_times(saved.sent_bytes), f"bytes sent a token {against}"),
        ]
    tiles = [tag("div", tag("b", value), tag("span", what), class_="tile") for value, what in shown]
    return tag("div", *tiles, class_="tiles")


def _caption(report: dict[str, Any]) -> str:
    memory = ", ".join(tables.in_bytes(size) for size in report["machine"]["peak_memory_bytes"])
    return (
        f"Measured on {tables.machine(report)}; peak memory of the parties {memory}."
        f" Network: {tables.network(report)}."
    )


def _answer(report: dict[str, Any]) -> Markup:
    note = " (meaningless: synthetic weights)" if report["model"]["weights"] == "synthetic" else ""
    return join([tag("h3", f"Answer{note}"), tag("blockquote", report["text"])])


def _time(report: dict[str, Any]) -> Markup:
    """Seconds of each party by component: a party's own waits are taken off its own time."""
    shown: list[Any] = [tag("h3", "Time by component")]
    dealer = report["secure"].get("dealer")
    if dealer and dealer.get("source") == "store":
        shown.append(tag("p", "All correlations were dealt ahead from a store; no dealer ran."))
    elif dealer:
        shown.append(
            tag(
                "p",
                f"The dealer worked {tables.in_seconds(dealer['seconds'])} in all, beside the"
                f" parties, within {tables.in_seconds(dealer['elapsed_seconds'])}.",
            )
        )
    for phase in ("decode", "prefill"):
        ranked = tables.components(report["secure"][phase], depth=2, top=None)
        ranked = sorted(ranked, key=lambda item: -item[1]["seconds"])[: tables.TOP_COMPONENTS]
        if not any(total["seconds"] for _, total in ranked):
            continue
        split = all("by_party" in total for _, total in ranked)
        whose = "each party in turn" if split else "of the slowest party, waiting included"
        shown.append(tag("h4", f"{phase}, all steps and layers, {whose}"))
        rows = [bar for name, total in ranked for bar in _time_bars(name, total, split)]
        shown.append(bars(rows, PARTS if split else ()))
    return tag("div", *shown)


def _time_bars(name: str, total: dict[str, Any], split: bool) -> list[Bar]:
    if not split:
        return [Bar(name, tables.in_seconds(total["seconds"]), [("compute", total["seconds"])])]
    times = total["by_party"]
    rows = []
    for rank, seconds in enumerate(times["seconds"]):
        wait, deal = times["wait_seconds"][rank], times["dealer_seconds"][rank]
        parts = [("compute", max(0.0, seconds - wait - deal)), ("wait", wait), ("deal", deal)]
        label = f"{name}, party {rank}" if rank == 0 else f"party {rank}"
        rows.append(Bar(label, tables.in_seconds(seconds), parts))
    return rows


def _traffic(report: dict[str, Any]) -> Markup:
    shown: list[Any] = [tag("h3", "Rounds and bytes by scope")]
    for phase in ("decode", "prefill"):
        measured = report["secure"][phase]
        ranked = [item for item in tables.components(measured, top=None) if _busy(item[1])]
        if not ranked:
            continue
        top = ranked[: tables.TOP_COMPONENTS]
        shown.append(tag("h4", f"{phase}: bytes sent by both parties together, layers summed"))
        sizes = [(name, sum(total["sent_bytes"])) for name, total in top]
        shown.append(bars([Bar(n, tables.in_bytes(size), [("deal", size)]) for n, size in sizes]))
        shown.append(_collapsed(f"{phase}: all {len(ranked)} components", ranked))
        scopes = [item for item in measured["by_scope"].items() if _busy(item[1])]
        scopes.sort(key=lambda item: (-sum(item[1]["sent_bytes"]), item[0]))
        if len(scopes) > len(ranked):
            some = f"the first {TOP_SCOPES} of " if len(scopes) > TOP_SCOPES else "all "
            title = f"{phase}: {some}{len(scopes)} scopes, by bytes sent"
            shown.append(_collapsed(title, scopes[:TOP_SCOPES]))
    return tag("div", *shown)


def _busy(entry: dict[str, Any]) -> bool:
    return bool(entry["rounds"] or any(entry["sent_bytes"]) or any(entry["dealt_bytes"]))


def _collapsed(title: str, items: Sequence[tuple[str, dict[str, Any]]]) -> Markup:
    rows = [
        (
            name,
            f"{entry['rounds']:,}",
            tables.exact(entry["sent_bytes"]),
            tables.exact(entry["dealt_bytes"]),
            tables.in_seconds(entry["seconds"]),
        )
        for name, entry in items
    ]
    head = ("scope", "rounds", "bytes sent, by party", "bytes dealt, by party", "seconds, slowest")
    return tag("details", tag("summary", title), table(head, rows))


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
