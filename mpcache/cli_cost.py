"""`mpcache cost`: what a run would take, from the twin alone."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from mpcache.cli_options import (
    Cache,
    ConfigFile,
    Model,
    Network,
    NewTokens,
    Parties,
    Protocol,
    Sets,
    Sharing,
    configured,
    new_console,
)
from mpcache.errors import UsageError


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
    sharing: Sharing = None,
    config: ConfigFile = None,
    sets: Sets = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="First measure this machine's speeds; minutes.")
    ] = False,
) -> None:
    """Predict the rounds, bytes and (where calibrated) seconds of a run; no party is started."""
    if prompt_tokens is None and not calibrate:
        raise UsageError("--prompt-tokens is missing; give the length of the prompt in tokens")
    resolved = configured(
        config,
        sets,
        parties=parties,
        model=model,
        max_new_tokens=max_new_tokens,
        protocol=protocol,
        cache=cache,
        network=network,
        sharing=sharing,
    )
    from mpcache import launching

    if calibrate:
        launching.calibrate(new_console(stderr=True))
    if prompt_tokens is None:
        return
    predicted = launching.predict(resolved, prompt_tokens)
    if as_json:
        typer.echo(json.dumps(predicted, indent=2))
        return
    from mpcache.report.console import print_prediction

    print_prediction(new_console(), resolved, prompt_tokens, predicted)
