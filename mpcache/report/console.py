"""What a run, a prediction and the list of models look like on the screen."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from mpcache.report import tables

if TYPE_CHECKING:
    from rich.console import Console

    from mpcache.config import RunConfig
    from mpcache.models.registry import ModelRow
    from mpcache.ranges import Ranges


def print_warnings(console: Console, warnings: Iterable[str]) -> None:
    """Say loudly what a reader must not miss."""
    for warning in warnings:
        console.print(f"[bold yellow]warning:[/] {escape(warning)}", soft_wrap=True)


def print_summary(console: Console, report: dict[str, Any]) -> None:
    """The table plaintext against secret-shared, the agreement, the checks and the warnings."""
    table = Table(title=escape(tables.model(report)), title_justify="left")
    table.add_column("")
    table.add_column("plaintext", justify="right")
    table.add_column("secret-shared", justify="right")
    for row in tables.headline(report):
        table.add_row(*row)
    console.print(table)
    console.print(
        f"{report['parties']} parties, protocol {report['protocol']}, cache"
        f" {report['cache']['policy']}, network {tables.network(report)}",
        soft_wrap=True,
    )
    console.print(f"machine: {escape(tables.machine(report))}", soft_wrap=True)
    console.print(tables.memory(report), soft_wrap=True)
    console.print(tables.foreseen(report), soft_wrap=True)
    for line in tables.agreement(report):
        console.print(line, soft_wrap=True)
    passed = ", ".join(name for name, good in report["checks"].items() if good)
    console.print(f"[green]checks passed:[/] {passed}", soft_wrap=True)
    print_warnings(console, report["warnings"])


def print_prediction(
    console: Console, config: RunConfig, prompt_tokens: int, predicted: dict[str, Any]
) -> None:
    """What a run would cost; `predicted` maps a phase to rounds, sent_bytes and dealt_bytes."""
    table = Table(title=f"predicted: {escape(config.model)}, {prompt_tokens} prompt tokens")
    for column in ("phase", "rounds", "bytes sent", "bytes dealt", "on the wire"):
        table.add_column(column, justify="left" if column == "phase" else "right")
    for phase, cost in predicted.items():
        if not isinstance(cost, dict) or "sent_bytes" not in cost:
            continue
        table.add_row(
            phase,
            f"{cost['rounds']:,}",
            tables.by_party(cost["sent_bytes"]),
            tables.by_party(cost.get("dealt_bytes")),
            tables.in_seconds(_wire_seconds(config, cost)),
        )
    console.print(table)
    console.print("on the wire: latency and rate of the network alone, no arithmetic")
    print_warnings(console, [predicted["notice"]] if "notice" in predicted else [])
    print_warnings(console, [predicted["truncation"]["says"]] if "truncation" in predicted else [])
    if "seconds" in predicted:
        _print_seconds(console, predicted)
    elif "no_seconds" in predicted:
        console.print(predicted["no_seconds"])


def _print_seconds(console: Console, predicted: dict[str, Any]) -> None:
    table = Table(title="predicted seconds, nothing was run")
    for column in ("network", "prefill", "a token"):
        table.add_column(column, justify="left" if column == "network" else "right")
    for network, seconds in predicted["seconds"].items():
        shown = (tables.in_seconds(seconds.get(name)) for name in ("prefill", "token"))
        table.add_row(network, *shown)
    console.print(table)
    error = predicted["seconds_error"]
    console.print(
        "local: all processes on this host; lan, wan: a host like this one for each. On each of"
        f" {error['count']} measured layers, predicted from all others, seconds were off by"
        f" {error['median']:.0%} in the middle and {error['worst']:.0%} at most."
    )


def print_ranges(console: Console, ranges: Ranges) -> None:
    """Of every quantity with a range the layer that comes nearest to its end."""
    from mpcache.ranges import worst

    console.print(
        f"{escape(ranges.model)}, {escape(ranges.shown)}, caches {', '.join(ranges.caches)}",
        soft_wrap=True,
    )
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("operation", "quantity", "below", "limit", "margin", "layer", "wraps at"):
        left = column in ("operation", "quantity")
        table.add_column(column, justify="left" if left else "right", no_wrap=True)
    for row in worst(ranges.rows):
        table.add_row(
            row.operation,
            row.what,
            f"2^{row.met}",
            f"2^{row.bits}",
            f"{row.margin} bits",
            "-" if row.layer is None else str(row.layer),
            "saturates" if row.wraps is None else f"2^{row.wraps}",
        )
    console.print(table)


def print_models(console: Console, models: Iterable[ModelRow]) -> None:
    """One row a model of the registry: its shape and where its weights come from."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("model", "parameters", "layers", "hidden", "heads", "weights"):
        left = column in ("model", "weights")
        fold = column == "weights"
        table.add_column(column, justify="left" if left else "right", no_wrap=not fold)
    for row in models:
        table.add_row(
            escape(row.name),
            f"{row.parameters / 1e6:,.0f} M",
            str(row.layers),
            str(row.hidden),
            f"{row.heads}/{row.kv_heads}",
            escape(row.weights),
        )
    console.print(table)


def _wire_seconds(config: RunConfig, cost: dict[str, Any]) -> float | None:
    """Time that the network alone takes: half a round trip a round, and the largest upload."""
    network = config.network
    if not network.emulated:
        return None
    latency = cost["rounds"] * network.rtt_ms / 2 / 1000
    upload = max(cost["sent_bytes"]) * 8 / (network.mbps * 1e6) if network.mbps else 0.0
    return latency + upload
