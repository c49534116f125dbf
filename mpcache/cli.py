"""The command `mpcache`. Every heavy import happens inside the command that needs it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from mpcache.cli_bench import bench
from mpcache.cli_calibrate import calibrate
from mpcache.cli_cost import cost
from mpcache.cli_options import (
    Cache,
    Chat,
    ConfigFile,
    Device,
    Model,
    Network,
    NewTokens,
    Parties,
    Prompt,
    PromptFile,
    Protocol,
    Report,
    Sets,
    Shares,
    Sharing,
    StoreOf,
    Temperature,
    Threads,
    Verify,
    Weights,
    configured,
    new_console,
)
from mpcache.errors import MpcacheError, UsageError
from mpcache.evaluation.command import app as evaluation

if TYPE_CHECKING:
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
    sharing: Sharing = None,
    shares: Shares = None,
) -> None:
    """Start all parties on this host, generate, compare with the plaintext twin, report."""
    resolved = configured(
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
        sharing=sharing,
        shares=shares,
    )
    resolved = _with_prompt(resolved)
    from mpcache import launching

    _finish(launching.launch(resolved, new_console()))


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
    sharing: Sharing = None,
    shares: Shares = None,
) -> None:
    """Run one party on this host; the client's party is the one that takes the prompt."""
    resolved = configured(
        config,
        sets,
        prompt=prompt,
        prompt_file=prompt_file,
        temperature=temperature,
        store=store,
        sharing=sharing,
        shares=shares,
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
    sharing: Sharing = None,
) -> None:
    """Be the dealer of a two-party run, or deal runs ahead; it learns lengths, nothing secret."""
    ahead = {"--sessions": sessions, "--prompt-tokens": prompt_tokens, "--store": store}
    missing = [name for name, value in ahead.items() if value is None]
    if missing and len(missing) < len(ahead):
        raise UsageError(
            f"{' and '.join(missing)} missing: to deal ahead give all of {', '.join(ahead)}; to"
            " deal for parties that run now, none of them"
        )
    resolved = configured(
        config,
        sets,
        store=store,
        model=model,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        cache=cache,
        threads=threads,
        sharing=sharing,
    )
    from mpcache.heap import keep_pages

    keep_pages()
    if prompt_tokens is not None and sessions is not None:
        from mpcache import stores

        _finish(stores.deal_ahead(resolved, prompt_tokens, sessions, new_console()))
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
    resolved = configured(
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

    _finish(launching.generate_plain(resolved, new_console()))


app.command()(cost)
app.command()(calibrate)


@app.command()
def split(
    out: Annotated[Path, typer.Option(help="The folder to write; must not exist.")],
    model: Model = None,
    weights: Weights = None,
    config: ConfigFile = None,
    sets: Sets = None,
) -> None:
    """Split a model's weights into two parties' shares, at their owner: for sharing: shared."""
    resolved = configured(config, sets, model=model, weights=weights)
    from mpcache import splitting

    _finish(splitting.split_main(resolved, out, new_console()))


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

    print_models(new_console(), registry.list_models())


@app.command()
def policies(
    model: Annotated[str, typer.Option(help="A name from `mpcache models`.")] = "smollm2",
    prompt_tokens: Annotated[int, typer.Option(help="Tokens of the prompt.")] = 1024,
    budget: Annotated[float, typer.Option(help="Percent of it that a step attends to.")] = 20.0,
) -> None:
    """List the cache policies: paper, what a budget counts, what leaks, and the price."""
    from mpcache.evaluation.catalogue import show

    show(new_console(), model, prompt_tokens, budget)


@app.command()
def report(
    runs: Annotated[
        list[Path], typer.Argument(help="Folders of runs, and *.jsonl that `mpcache bench` wrote.")
    ],
    html: Annotated[
        Path | None, typer.Option(help="The page's file; report.html in the first one's folder.")
    ] = None,
) -> None:
    """Write report.md of each run anew from its report.json, and one HTML page of them all."""
    from mpcache.report import render_again

    page = render_again(runs, html, new_console())
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
