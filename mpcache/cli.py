"""The command `mpcache`. Every heavy import happens inside the command that needs it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from mpcache.cli_bench import bench
from mpcache.errors import MpcacheError, UsageError
from mpcache.evaluation.command import app as evaluation

if TYPE_CHECKING:
    from rich.console import Console

    from mpcache.config import RunConfig


class _Guarded(TyperGroup):
    """The one place where an error becomes a message and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except MpcacheError as error:
            for line in str(error).splitlines():
                typer.echo(f"error: {line}", err=True)
            raise typer.Exit(error.exit_code) from None
        except KeyboardInterrupt:
            typer.echo("error: interrupted", err=True)
            raise typer.Exit(130) from None


# Pretty tracebacks would show local variables, and a prompt may be one of them.
app = typer.Typer(
    cls=_Guarded,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Private LLM inference with a small secret-shared KV cache.",
)
app.add_typer(evaluation, name="eval")

app.add_typer(bench, name="bench")

ConfigFile = Annotated[
    str | None, typer.Option("--config", help="A YAML file, or the name of a shipped one.")
]
Sets = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Any key, dotted; repeatable."),
]
Parties = Annotated[int | None, typer.Option(help="2 or 3.")]
Model = Annotated[str | None, typer.Option(help="A name from `mpcache models`, or a folder.")]
Prompt = Annotated[
    str | None, typer.Option(help="The prompt. Others on this host may see a command line.")
]
PromptFile = Annotated[
    str | None, typer.Option(help="A UTF-8 file with the prompt; - is standard input.")
]
NewTokens = Annotated[int | None, typer.Option("--max-new-tokens", help="Tokens to generate.")]
Temperature = Annotated[
    float | None, typer.Option(help="Draw tokens at this temperature; 0 takes the likeliest.")
]
Protocol = Annotated[str | None, typer.Option(help="The protocol suite: dealer or crypten.")]
Cache = Annotated[str | None, typer.Option(help="The cache policy; see `mpcache policies`.")]
Network = Annotated[
    str | None, typer.Option(help="local, lan, wan, wan-slow, or RTT,MBPS to emulate.")
]
Device = Annotated[
    str | None,
    typer.Option(help="cpu or cuda: where the plaintext twin works. Shares stay on the CPU."),
]
Weights = Annotated[str | None, typer.Option(help="auto, required or synthetic.")]
Report = Annotated[str | None, typer.Option(help="Folder of the results; runs/<id> by default.")]
StoreOf = Annotated[
    str | None,
    typer.Option("--store", help="Correlations dealt ahead: what `mpcache deal` wrote there."),
]
Verify = Annotated[
    bool | None,
    typer.Option("--verify/--no-verify", help="Testing aid: open logits and compare them."),
]
Threads = Annotated[int | None, typer.Option(help="Threads a party; 0 chooses.")]
Chat = Annotated[
    bool | None, typer.Option("--chat/--no-chat", help="Use the model's chat form where known.")
]


def _config(config_file: str | None, sets: list[str] | None, **named: Any) -> RunConfig:
    """The configuration from a file, ``--set`` and named options; a named option is strongest."""
    from mpcache import config, config_layers

    named["cache"] = {"policy": named["cache"]} if named.get("cache") else None
    network = named.get("network")
    named["network"] = config_layers.parse_network(network) if network else None
    if named.get("prompt") is not None and named.get("prompt_file") is not None:
        raise UsageError("--prompt and --prompt-file are both given; keep one of them")
    given = {key: value for key, value in named.items() if value is not None}
    overrides = config_layers.merge(config_layers.parse_set(sets or ()), given)
    return config.load(config_layers.find(config_file) if config_file else None, overrides)


def _console(stderr: bool = False) -> Console:
    from rich.console import Console

    return Console(highlight=False, stderr=stderr)


def _finish(exit_code: int) -> None:
    if exit_code:
        raise typer.Exit(exit_code)


@app.command()
def launch(
    parties: Parties = None,
    model: Model = None,
    prompt: Prompt = None,
    prompt_file: PromptFile = None,
    max_new_tokens: NewTokens = None,
    temperature: Temperature = None,
    protocol: Protocol = None,
    cache: Cache = None,
    network: Network = None,
    config: ConfigFile = None,
    sets: Sets = None,
    device: Device = None,
    weights: Weights = None,
    report: Report = None,
    verify: Verify = None,
    threads: Threads = None,
    chat: Chat = None,
    store: StoreOf = None,
) -> None:
    """Start all parties on this host, generate, compare with the plaintext twin, report."""
    resolved = _config(
        config,
        sets,
        parties=parties,
        model=model,
        prompt=prompt,
        prompt_file=prompt_file,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        protocol=protocol,
        cache=cache,
        network=network,
        device=device,
        weights=weights,
        report=report,
        verify=verify,
        threads=threads,
        chat=chat,
        store=store,
    )
    resolved = _with_prompt(resolved)
    from mpcache import launching

    _finish(launching.launch(resolved, _console()))


@app.command()
def party(
    rank: Annotated[int, typer.Option(help="Which party this is: 0, 1 (or 2).")],
    config: ConfigFile = None,
    events: Annotated[
        bool,
        typer.Option("--events", help="Under `launch`: secrets on stdin, progress as JSON lines."),
    ] = False,
    prompt: Prompt = None,
    prompt_file: PromptFile = None,
    temperature: Temperature = None,
    sets: Sets = None,
    store: StoreOf = None,
) -> None:
    """Run one party on this host; the client's party is the one that takes the prompt."""
    resolved = _config(
        config,
        sets,
        prompt=prompt,
        prompt_file=prompt_file,
        temperature=temperature,
        store=store,
    )
    if not 0 <= rank < resolved.parties:
        raise UsageError(
            f"--rank {rank} is no party of {resolved.parties}; expected 0 to {resolved.parties - 1}"
        )
    if rank != resolved.client and (prompt is not None or prompt_file is not None):
        raise UsageError(
            f"party {rank} must not learn the prompt; give it to the client, party"
            f" {resolved.client}, alone"
        )
    from mpcache.config import read_prompt, without_prompt

    # Under `launch` the client's prompt comes on standard input, with the other secrets.
    text = read_prompt(resolved) if rank == resolved.client and not events else None
    from mpcache import session

    _finish(session.party_main(without_prompt(resolved), rank, events=events, prompt=text))


@app.command()
def deal(
    config: ConfigFile = None,
    events: Annotated[
        bool, typer.Option("--events", help="Write progress as JSON lines for `launch`.")
    ] = False,
    sets: Sets = None,
    sessions: Annotated[
        int | None, typer.Option(min=1, help="Deal so many runs ahead, into --store.")
    ] = None,
    prompt_tokens: Annotated[
        int | None, typer.Option(min=1, help="With --sessions: exact length of the prompts.")
    ] = None,
    store: Annotated[
        str | None, typer.Option(help="With --sessions: the folder to write; must not exist.")
    ] = None,
    model: Model = None,
    max_new_tokens: NewTokens = None,
    temperature: Temperature = None,
    cache: Cache = None,
    threads: Threads = None,
) -> None:
    """Be the dealer of a two-party run, or deal runs ahead; it learns lengths, nothing secret."""
    ahead = {"--sessions": sessions, "--prompt-tokens": prompt_tokens, "--store": store}
    missing = [name for name, value in ahead.items() if value is None]
    if missing and len(missing) < len(ahead):
        raise UsageError(
            f"{' and '.join(missing)} missing: to deal ahead give all of {', '.join(ahead)}; to"
            " deal for parties that run now, none of them"
        )
    resolved = _config(
        config,
        sets,
        store=store,
        model=model,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        cache=cache,
        threads=threads,
    )
    if prompt_tokens is not None and sessions is not None:
        from mpcache import stores

        _finish(stores.deal_ahead(resolved, prompt_tokens, sessions, _console()))
        return
    from mpcache import session

    _finish(session.deal_main(resolved, events=events))


@app.command()
def generate(
    model: Model = None,
    prompt: Prompt = None,
    prompt_file: PromptFile = None,
    max_new_tokens: NewTokens = None,
    temperature: Temperature = None,
    cache: Cache = None,
    config: ConfigFile = None,
    sets: Sets = None,
    device: Device = None,
    weights: Weights = None,
    chat: Chat = None,
) -> None:
    """Run the plaintext twin alone: the same decoder and cache, nothing secret."""
    resolved = _config(
        config,
        sets,
        model=model,
        prompt=prompt,
        prompt_file=prompt_file,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        cache=cache,
        device=device,
        weights=weights,
        chat=chat,
    )
    resolved = _with_prompt(resolved)
    from mpcache import launching

    _finish(launching.generate_plain(resolved, _console()))


@app.command()
def cost(
    prompt_tokens: Annotated[
        int | None, typer.Option(min=1, help="Length of the prompt in tokens.")
    ] = None,
    parties: Parties = None,
    model: Model = None,
    max_new_tokens: NewTokens = None,
    protocol: Protocol = None,
    cache: Cache = None,
    network: Network = None,
    config: ConfigFile = None,
    sets: Sets = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="First measure this machine's speeds; a minute.")
    ] = False,
) -> None:
    """Predict the rounds, bytes and (where calibrated) seconds of a run; no party is started."""
    if prompt_tokens is None and not calibrate:
        raise UsageError("--prompt-tokens is missing; give the length of the prompt in tokens")
    resolved = _config(
        config,
        sets,
        parties=parties,
        model=model,
        max_new_tokens=max_new_tokens,
        protocol=protocol,
        cache=cache,
        network=network,
    )
    from mpcache import launching

    if calibrate:
        launching.calibrate(_console(stderr=True))
    if prompt_tokens is None:
        return
    predicted = launching.predict(resolved, prompt_tokens)
    if as_json:
        typer.echo(json.dumps(predicted, indent=2))
        return
    from mpcache.report.console import print_prediction

    print_prediction(_console(), resolved, prompt_tokens, predicted)


@app.command()
def keys(
    folder: Annotated[Path, typer.Argument(help="Where to write; must not hold keys yet.")],
    parties: Annotated[int, typer.Option(help="2 or 3.")] = 2,
    days: Annotated[float, typer.Option(help="How long the certificates are valid.")] = 30.0,
) -> None:
    """Make a certificate authority and one certificate a party, for parties on several hosts."""
    if parties not in (2, 3):
        raise UsageError(f"parties: {parties} is not allowed; expected 2 or 3")
    from mpcache.parties import tls

    dealer = parties == 2  # suite dealer has a third process, which takes rank 2
    tls.make_keys(folder, parties + dealer, days=days)
    typer.echo(
        f"wrote the keys of {parties} parties to {folder}: give each party R ca.pem, party-R.pem"
        " and party-R.key, and nobody else its .key" + ("; party-2 is the dealer" if dealer else "")
    )


@app.command()
def models() -> None:
    """List what can be run here, with shapes and where the weights come from."""
    from mpcache.models import registry
    from mpcache.report.console import print_models

    print_models(_console(), registry.list_models())


@app.command()
def policies(
    model: Annotated[str, typer.Option(help="A name from `mpcache models`.")] = "smollm2",
    prompt_tokens: Annotated[int, typer.Option(help="Tokens of the prompt.")] = 1024,
    budget: Annotated[float, typer.Option(help="Percent of it that a step attends to.")] = 20.0,
) -> None:
    """List the cache policies: paper, what a budget counts, what leaks, and the price."""
    from mpcache.evaluation.catalogue import show

    show(_console(), model, prompt_tokens, budget)


@app.command()
def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, with their report.json.")],
    html: Annotated[
        Path | None, typer.Option(help="The page's file; report.html in the first run's folder.")
    ] = None,
) -> None:
    """Write report.md of each run anew from its report.json, and one HTML page of them all."""
    from mpcache.report import render_again

    page = render_again(runs, html, _console())
    typer.echo(f"page: {page}")


def _with_prompt(config: RunConfig) -> RunConfig:
    """Read the prompt now, so that a mistake in it ends the run before anything starts."""
    from mpcache.config import read_prompt

    return config.model_copy(update={"prompt": read_prompt(config), "prompt_file": None})


def _version(wanted: bool) -> None:
    if wanted:
        from mpcache import __version__

        typer.echo(f"mpcache {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    pass


def main() -> None:
    """Entry point of the command line."""
    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="replace")  # a token may be half a character
    app(prog_name="mpcache")
