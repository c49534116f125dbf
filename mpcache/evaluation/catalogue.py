"""`mpcache policies`: what each cache policy is, leaks and costs."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from mpcache.errors import UsageError
from mpcache.evaluation.pricing import Clock, decode_price
from mpcache.evaluation.settings import tokens_of
from mpcache.eviction.registry import POLICIES, policy_at, policy_names
from mpcache.models.registry import find
from mpcache.models.spec import ModelSpec


def rows(spec: ModelSpec, prompt_tokens: int, budget: float) -> list[dict[str, Any]]:
    """What the table shows of each policy; `price` is None where it does not run on shares.

    Args:
        budget: percent of the prompt's tokens that a decode step attends to.
    """
    found = []
    for name in policy_names():
        kind = POLICIES[name]
        policy = policy_at(name, tokens_of(budget, prompt_tokens), prompt_tokens)
        price = decode_price(spec, policy, prompt_tokens, Clock(None, ""))
        found.append(
            {
                "name": name,
                "paper": kind.paper,
                "meaning": kind.meaning,
                "leaks": kind.leaks,
                "price": price,
            }
        )
    return found


def show(console: Console, model: str, prompt_tokens: int, budget: float) -> None:
    """Print the table.

    Raises:
        UsageError: no such model, or numbers that make no sense.
    """
    if prompt_tokens < 1:
        raise UsageError(f"--prompt-tokens {prompt_tokens}: expected 1 or more")
    if not 0 < budget <= 100:
        raise UsageError(f"--budget {budget:g}: expected percent, over 0 and at most 100")
    spec = find(model, "synthetic").spec
    with console.status("counting what a token costs"):
        every = rows(spec, prompt_tokens, budget)
    table = Table(
        title="cache policies",
        caption=escape(
            f"price: one decode step of {spec.name} after {prompt_tokens:,} tokens at a budget of"
            f" {budget:g}%, two parties, protocol dealer; predicted rounds, MB sent by both"
            " parties, MB dealt"
        ),
        caption_justify="left",
        show_lines=True,
    )
    table.add_column("name", no_wrap=True)
    for name in ("paper", "its budget counts", "leaks beyond lengths"):
        table.add_column(name)
    for name in ("rounds", "sent", "dealt"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in every:
        price = row["price"]
        cost = (
            ["-", "-", "-"]
            if price is None
            else [
                f"{price['rounds']:,}",
                f"{price['online_bytes'] / 1e6:.1f}",
                f"{price['dealt_bytes'] / 1e6:.1f}",
            ]
        )
        words = [escape(row[name]) for name in ("name", "paper", "meaning", "leaks")]
        table.add_row(*words, *cost)
    console.print(table)
