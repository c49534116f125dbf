"""The program that all readings of a run walk: setup, prefill, decode, from one configuration."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from mpcache.config import RunConfig
from mpcache.errors import MpcacheError
from mpcache.eviction.base import Budget, Policy
from mpcache.eviction.registry import configured
from mpcache.generation import Generation, Request, generate
from mpcache.models.decoder import load_weights, matrices_of
from mpcache.models.spec import ModelSpec
from mpcache.protocols.channel import Spec
from mpcache.protocols.counting import CountingCrypten
from mpcache.protocols.dealer import Use
from mpcache.protocols.dealer_roles import (
    Corrections,
    CountingDealer,
    Dealing,
    Foreseeing,
    OnlineDealer,
)
from mpcache.protocols.ledger import Prediction, Scopes, Sends
from mpcache.protocols.operation import PlainMachine, SecureMachine, Suite
from mpcache.protocols.pieces import Randomness
from mpcache.protocols.setting import Setting
from mpcache.report.record import Kept

if TYPE_CHECKING:
    from mpcache.parties.transport import Wires


@dataclass(frozen=True)
class Dealt:
    """What a party holds from the dealer: its seed, expanded, and party 1's corrections.

    `prompt_tokens` is the one length that a store was dealt for; a live dealer is told.
    """

    seed: Randomness
    corrections: Corrections | None
    prompt_tokens: int | None = None


OnToken = Callable[[int, int | None], None]
LENGTH, READY = "prompt-length", "ready"


def setting_of(config: RunConfig) -> Setting:
    """The public numbers of a run."""
    return Setting(
        world=config.parties,
        suite=config.protocol,
        frac=config.ring.frac,
        owner=config.owner,
        client=config.client,
        truncation=config.truncation,
        profile=config.profile,
        verify=config.verify,
        sharing=config.sharing,
    )


def policy_of(config: RunConfig, prompt_tokens: int) -> Policy:
    """The cache policy of a run on a prompt of `prompt_tokens`."""
    return configured(config.cache.policy, prompt_tokens, config.cache.model_dump())


class Twin:
    """The plaintext twin of a run, with its weights loaded once."""

    def __init__(
        self, config: RunConfig, spec: ModelSpec, tensors: Mapping[str, torch.Tensor]
    ) -> None:
        self.config = config
        self.machine = PlainMachine(setting_of(config), config.device)
        self.model = load_weights(self.machine, spec, tensors)

    def generate(
        self,
        prompt: Sequence[int],
        forced: Sequence[int] | None = None,
        on_token: OnToken | None = None,
        choices: Sequence[torch.Tensor] | None = None,
    ) -> Generation:
        """Generate as configured, or follow `forced` tokens and tell the likeliest at each.

        Args:
            choices: what the parties' cache chose, to be followed too.
        """
        self.machine.follow(choices)
        request = Request(
            prompt,
            len(prompt),
            self.config.max_new_tokens,
            forced=forced,
            keep_logits=True,
            temperature=self.config.temperature if forced is None else 0.0,
        )
        with torch.inference_mode():
            return generate(
                self.machine,
                self.model,
                policy_of(self.config, request.prompt_tokens),
                request,
                on_token,
            )


def predict(
    config: RunConfig,
    spec: ModelSpec,
    prompt_tokens: int,
    on_enter: Callable[[str], None] | None = None,
    walked: int | None = None,
    policy: Policy | None = None,
) -> Prediction:
    """What every party of the run sends, from walking the same text without data.

    Args:
        on_enter: called with every scope's path; what it raises ends the walk.
        walked: through how many layers tokens go; all if None. Setup has them all.
        policy: instead of the configuration's.
    """
    prediction = Prediction(config.parties)
    prediction.on_enter = on_enter
    setting = setting_of(config)
    suite: Suite
    ranks = range(config.parties)
    with prediction.scope("setup"):
        others = [rank for rank in ranks if rank != config.client]
        prediction.step(LENGTH, {(config.client, rank): [Spec((1,))] for rank in others})
        if config.protocol == "dealer":
            suite = CountingDealer(setting, prediction)
        else:
            suite = CountingCrypten(setting, prediction)
            suite.seeds()
    everybody: Sends = {(rank, other): [] for rank in ranks for other in ranks if rank != other}
    _walk(
        *(config, spec, SecureMachine(suite, prediction), prompt_tokens, walked, policy),
        when_set_up=lambda: prediction.step(READY, everybody),
    )
    return prediction


def deal(
    config: RunConfig,
    spec: ModelSpec,
    prompt_tokens: int,
    seeds: tuple[Randomness, Randomness],
    emit: Callable[[torch.Tensor], None],
    ledger: Scopes | None = None,
) -> int:
    """The dealer's walk over the same text: emits party 1's corrections in the order of use.

    Args:
        ledger: where the dealer's time is noted, by scope.

    Returns:
        The bytes dealt.
    """
    suite = Dealing(setting_of(config), seeds, emit)
    suite.foresee(uses_of(config, spec, prompt_tokens))
    _walk(config, spec, SecureMachine(suite, ledger or Scopes()), prompt_tokens)
    return suite.dealt_bytes


def _walk(
    config: RunConfig,
    spec: ModelSpec,
    machine: SecureMachine,
    prompt_tokens: int,
    walked: int | None = None,
    policy: Policy | None = None,
    when_set_up: Callable[[], None] = lambda: None,
) -> None:
    """The whole run without data."""
    with machine.scope("setup"):
        model = load_weights(machine, spec, None)
        when_set_up()
    if walked is not None:
        model = replace(model, spec=replace(spec, layers=walked))
    request = _request(config, None, prompt_tokens)
    generate(machine, model, policy or policy_of(config, request.prompt_tokens), request)


def _request(config: RunConfig, prompt: Sequence[int] | None, prompt_tokens: int) -> Request:
    """What a run on shares generates."""
    return Request(
        prompt,
        prompt_tokens,
        config.max_new_tokens,
        keep_logits=config.verify,
        temperature=config.temperature,
    )


def run_secure(
    config: RunConfig,
    spec: ModelSpec,
    wires: Wires,
    tensors: Mapping[str, torch.Tensor] | None,
    prompt: Sequence[int] | None,
    on_token: OnToken | None = None,
    dealt: Dealt | None = None,
    shares: Mapping[str, torch.Tensor] | None = None,
) -> Generation:
    """One party's run over connected wires.

    Args:
        tensors: the weights, at their owner; None elsewhere.
        prompt: the token ids, at the client; None elsewhere.
        dealt: what the dealer gave this party, in suite `dealer`.
        shares: this party's shares of the weights, where `sharing` is shared; no `tensors` then.

    Raises:
        PeerError: see `Wires.exchange`.
        MpcacheError: the client announced a prompt that does not fit.
    """
    ledger = wires.ledger
    with ExitStack() as stack:
        with ledger.scope("setup"):
            count = _agree_on_length(config, spec, wires, prompt)
            if dealt is not None and dealt.prompt_tokens not in (None, count):
                raise MpcacheError(
                    f"party {config.client} announced a prompt of {count} tokens, and the store"
                    f" was dealt for {dealt.prompt_tokens}"
                )
            # a walk also chooses what is chosen by cost: once in a process, so before the prompt
            uses = uses_of(config, spec, count) if config.protocol == "dealer" else []
            machine = SecureMachine(_suite(config, wires, dealt, stack), ledger)
            model = load_weights(machine, spec, tensors, shares)
            if uses and wires.rank == 1 and isinstance(machine.suite, OnlineDealer):
                # with a store now, while the peer waits; with a live dealer as tokens come
                stored = dealt is not None and dealt.prompt_tokens is not None
                with machine.scope("ahead"):
                    machine.suite.foresee(uses, wires.timeout_s / 4 if stored else 0.0)
            others = [rank for rank in range(config.parties) if rank != wires.rank]
            wires.exchange(READY, {rank: [] for rank in others}, {rank: [] for rank in others})
        request = _request(config, prompt, count)
        return generate(machine, model, policy_of(config, request.prompt_tokens), request, on_token)


def _one_step(config: RunConfig) -> RunConfig:
    """The run cut after its first decode step: all others are like it."""
    return config.model_copy(update={"max_new_tokens": min(2, config.max_new_tokens)})


def first_layers(policy: Policy, spec: ModelSpec) -> dict[int, int]:
    """Kind of a layer -> the first one of it: all others of a kind cost the same.

    Args:
        policy: fitted to `spec`.
    """
    first: dict[int, int] = {}
    for layer in range(spec.layers):
        first.setdefault(policy.layer_kind(layer), layer)
    return first


def uses_of(config: RunConfig, spec: ModelSpec, prompt_tokens: int) -> list[Use]:
    """The run's products with weights that party 0 owns, in their order.

    Every decode step has the same, and so have layers of one kind, each with weights of its own.
    """
    policy = policy_of(config, prompt_tokens).fitted(spec)
    first, matrices = first_layers(policy, spec), matrices_of(spec)
    last = max(first.values())
    found = _foreseen(config, spec, prompt_tokens, last + 1, policy)
    known = {number for numbers in matrices.values() for number in numbers}
    if any(use.weight not in known for uses in found.values() for use in uses):
        last = spec.layers - 1  # the policy has weights of its own
        found = _foreseen(config, spec, prompt_tokens, last + 1, policy)

    def phase(name: str) -> Iterator[Use]:
        for path, uses in found.items():
            if path.partition("/")[0] != name:
                continue
            yield from uses
            for layer in range(last + 1, spec.layers) if path == f"{name}/layer{last}" else ():
                source = first[policy.layer_kind(layer)]
                own = dict(zip(matrices[source], matrices[layer], strict=True))
                for use in found[f"{name}/layer{source}"]:
                    yield replace(use, weight=own[use.weight])

    return [*phase("prefill"), *list(phase("decode")) * (config.max_new_tokens - 1)]


def _foreseen(
    config: RunConfig, spec: ModelSpec, prompt_tokens: int, walked: int, policy: Policy
) -> dict[str, list[Use]]:
    """Uses by path in a prompt and one step, through the first `walked` layers."""
    suite = Foreseeing(setting_of(config))
    machine = SecureMachine(suite, suite.prediction)
    _walk(_one_step(config), spec, machine, prompt_tokens, walked, policy)
    return suite.uses


def _suite(config: RunConfig, wires: Wires, dealt: Dealt | None, stack: ExitStack) -> Suite:
    setting = setting_of(config)
    if config.protocol == "dealer":
        if dealt is None:
            raise MpcacheError("suite dealer needs correlations, and none were dealt")
        return OnlineDealer(setting, wires, wires.ledger, dealt.seed, dealt.corrections)
    from mpcache.protocols.crypten import CryptenSuite, attached

    stack.enter_context(attached(wires))
    return CryptenSuite(setting, wires, wires.ledger)


def _agree_on_length(
    config: RunConfig, spec: ModelSpec, wires: Wires, prompt: Sequence[int] | None
) -> int:
    """The prompt's length in tokens is public: the client tells the others."""
    if wires.rank == config.client:
        if prompt is None:
            raise MpcacheError("the client's party has no prompt")
        others = [rank for rank in range(config.parties) if rank != wires.rank]
        length = torch.tensor([len(prompt)])
        wires.exchange(LENGTH, {rank: [length] for rank in others}, {})
        return len(prompt)
    got = wires.exchange(LENGTH, {}, {config.client: [Spec((1,))]})
    count = int(got[config.client][0].item())
    check_length(config, spec, count)
    return count


def check_length(config: RunConfig, spec: ModelSpec, count: int) -> None:
    """Refuse a prompt length, announced by the client, that does not fit.

    Raises:
        MpcacheError: it is below 1, or beyond the context with the new tokens.
    """
    if not 1 <= count <= spec.context - config.max_new_tokens:
        raise MpcacheError(
            f"party {config.client} announced a prompt of {count} tokens; with"
            f" {config.max_new_tokens} new ones at most {spec.context} fit"
        )


def kept_of(result: Generation) -> Kept:
    """Public counts read off a cache: stored tokens by layer, attended tokens by decode step.

    A step in which layers differ has a list of them, by layer.
    """
    if result.cache is None:
        return {"static": [], "dynamic": []}
    kept = result.cache.kept
    return _by_step([kept.of(layer) for layer in sorted(kept.static)])


def expected_kept(config: RunConfig, spec: ModelSpec, prompt_tokens: int) -> Kept:
    """The counts that the policy's budget asks for, in the form of `kept_of`."""
    policy = policy_of(config, prompt_tokens).fitted(spec)
    return _by_step(
        [
            policy.layer_budget(layer, prompt_tokens, config.max_new_tokens)
            for layer in range(spec.layers)
        ]
    )


def _by_step(layers: Sequence[Budget]) -> Kept:
    steps = zip(*(layer.dynamic for layer in layers), strict=True)
    return {
        "static": [layer.static for layer in layers],
        "dynamic": [counts[0] if len(set(counts)) == 1 else list(counts) for counts in steps],
    }
