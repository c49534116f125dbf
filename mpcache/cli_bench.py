"""`mpcache bench`: measure pieces of a run, and write the measured tables into the README."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mpcache.errors import UsageError

if TYPE_CHECKING:
    from mpcache.benchmarking.sweep import Sweep

bench = typer.Typer(
    no_args_is_help=True,
    help="Measure decode steps, prefills and operators between two processes on this host.",
)
FOLDER = Path("runs/bench")
WIDE = 140

Model = Annotated[str, typer.Option(help="A name from `mpcache models`, for its shape.")]
Layers = Annotated[
    str, typer.Option(help="Decoder layers of a step, or all: the whole model, head included.")
]
Contexts = Annotated[str, typer.Option(help="Tokens of the context, separated by commas.")]
Caches = Annotated[str, typer.Option(help="Cache policies, separated by commas.")]
Protocols = Annotated[str, typer.Option(help="Suites, separated by commas: dealer, crypten.")]
Networks = Annotated[
    str,
    typer.Option(help="local, lan, wan, wan-slow or RTT:MBPS to emulate, separated by commas."),
]
PartiesOf = Annotated[str, typer.Option(help="2, or 3 in suite crypten, separated by commas.")]
Profiles = Annotated[
    str, typer.Option(help="Profiles of suite dealer, separated by commas; the usual one if empty.")
]
Devices = Annotated[str, typer.Option(help="Where the plaintext is computed: cpu, cuda.")]
Repeat = Annotated[int, typer.Option(help="Measured steps, after one that warms up.")]
Keep = Annotated[
    float, typer.Option(help="Share of the context that caches other than full attend to.")
]
Out = Annotated[
    Path | None, typer.Option(help="File of JSON lines; runs/bench/KIND.jsonl by default.")
]


@bench.command()
def decode(
    model: Model = "opt-1.3b",
    layers: Layers = "1",
    contexts: Contexts = "1024",
    caches: Caches = "mpcache,full",
    protocols: Protocols = "dealer",
    networks: Networks = "local",
    parties: PartiesOf = "2",
    profiles: Profiles = "",
    devices: Devices = "cpu",
    repeat: Repeat = 5,
    keep: Keep = 0.2,
    out: Out = None,
) -> None:
    """One token through decoder layers, on a cache that is filled."""
    _sweep("decode", out, model, layers, contexts, caches, keep, repeat, protocols, networks,
           parties, profiles, devices)  # fmt: skip


@bench.command()
def prefill(
    model: Model = "opt-1.3b",
    layers: Layers = "1",
    contexts: Contexts = "128",
    caches: Caches = "mpcache,full",
    protocols: Protocols = "dealer",
    networks: Networks = "local",
    parties: PartiesOf = "2",
    profiles: Profiles = "",
    devices: Devices = "cpu",
    repeat: Repeat = 2,
    keep: Keep = 0.2,
    out: Out = None,
) -> None:
    """A prompt through decoder layers, eviction included."""
    _sweep("prefill", out, model, layers, contexts, caches, keep, repeat, protocols, networks,
           parties, profiles, devices)  # fmt: skip


@bench.command()
def ops(
    only: Annotated[str, typer.Option(help="Only operators with this in their name.")] = "",
    protocols: Protocols = "dealer",
    networks: Networks = "local",
    parties: PartiesOf = "2",
    profiles: Profiles = "",
    devices: Devices = "cpu",
    repeat: Repeat = 5,
    out: Out = None,
) -> None:
    """Single operators at the shapes of OPT-1.3B."""
    setting = _setting(protocols, networks, parties, profiles, devices)
    from mpcache.benchmarking.sweep import Sweep

    _run(Sweep("ops", repeat=repeat, only=only, **setting), out)


@bench.command()
def readme(
    lines: Annotated[Path, typer.Option(help="Folder of the measured *.jsonl.")] = FOLDER,
    file: Annotated[Path, typer.Option(help="Markdown file with the markers.")] = Path("README.md"),
) -> None:
    """Write the measured tables between their markers in the README."""
    from mpcache.benchmarking.readme import write

    typer.echo(f"{file}: {', '.join(write(lines, file))}")


def _setting(
    protocols: str, networks: str, parties: str, profiles: str, devices: str
) -> dict[str, Any]:
    """What every kind of sweep goes over."""
    return {
        "protocols": _names(protocols),
        "networks": _networks(networks),
        "parties": tuple(_count("--parties", text) for text in _names(parties)),
        "profiles": _names(profiles) or ("",),
        "devices": _names(devices),
    }


def _sweep(
    kind: str,
    out: Path | None,
    model: str,
    layers: str,
    contexts: str,
    caches: str,
    keep: float,
    repeat: int,
    *setting: str,
) -> None:
    given = _setting(*setting)
    from mpcache.benchmarking.sweep import Sweep

    sweep = Sweep(
        kind,
        model,
        None if layers == "all" else _count("--layers", layers),
        tuple(_count("--contexts", text) for text in _names(contexts)),
        _names(caches),
        repeat=repeat,
        keep=keep,
        **given,
    )
    _run(sweep, out)


def _run(sweep: Sweep, out: Path | None) -> None:
    from rich.console import Console

    from mpcache.benchmarking import sweep as sweeps
    from mpcache.benchmarking import tables

    path = out or FOLDER / f"{sweep.kind}.jsonl"
    if path.is_dir():
        raise UsageError(f"--out {path} is a folder; give a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    except OSError as error:
        raise UsageError(f"--out {path} cannot be written: {error.strerror}") from None
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=WIDE)
    progress = Console(stderr=True, highlight=False)
    rows = sweeps.run(
        sweep, lambda row: progress.print(" | ".join(tables.cells(row).values()), soft_wrap=True)
    )
    sweeps.write_lines(path, rows)
    for table in tables.screen(rows):
        console.print(table)
    typer.echo(f"lines: {path}")


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _networks(text: str) -> tuple[str, ...]:
    """Commas separate networks here, so a custom one is written RTT:MBPS."""
    return tuple(name.replace(":", ",") for name in _names(text))


def _count(option: str, text: str) -> int:
    if not text.isascii() or not text.isdigit():
        more = ", or all" if option == "--layers" else " separated by commas"
        raise UsageError(f"{option} {text!r}: expected whole numbers{more}")
    return int(text)
