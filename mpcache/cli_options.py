"""The options that several commands have, and the configuration that they make."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from mpcache.errors import UsageError

if TYPE_CHECKING:
    from rich.console import Console

    from mpcache.config import RunConfig

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
Sharing = Annotated[
    str | None,
    typer.Option(
        help="owner: party 0 has the weights; shared: each party a share of them, so that neither"
        " knows them (protocol dealer)."
    ),
]
Shares = Annotated[
    str | None,
    typer.Option(help="With --sharing shared: the shares that `mpcache split` wrote there."),
]
Verify = Annotated[
    bool | None,
    typer.Option("--verify/--no-verify", help="Testing aid: open logits and compare them."),
]
Threads = Annotated[int | None, typer.Option(help="Threads a party; 0 chooses.")]
Chat = Annotated[
    bool | None, typer.Option("--chat/--no-chat", help="Use the model's chat form where known.")
]


def configured(config_file: str | None, sets: list[str] | None, **named: Any) -> RunConfig:
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


def new_console(stderr: bool = False) -> Console:
    from rich.console import Console

    return Console(highlight=False, stderr=stderr)
