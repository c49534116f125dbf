"""`mpcache launch` and its smaller relatives: twin, prediction, parties, report."""

from __future__ import annotations

import gc
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.markup import escape

from mpcache import calibration, ranges
from mpcache.config import AVAILABLE_PROTOCOLS, RunConfig, read_prompt, to_yaml
from mpcache.costing import quick
from mpcache.errors import MpcacheError, UsageError
from mpcache.generation import Generation
from mpcache.models.registry import Source, at_hand, check_prompt, find
from mpcache.odds import odds
from mpcache.outlook import outlook
from mpcache.parties.dealing import DEALER
from mpcache.parties.local import loopback_addresses
from mpcache.parties.names import peer_name
from mpcache.parties.store_files import party_folder
from mpcache.parties.supervise import PartyCommand, failure, supervise
from mpcache.parties.tls import make_keys
from mpcache.program import Twin, expected_kept, policy_of
from mpcache.program import predict as predict_run
from mpcache.protocols.ledger import Prediction
from mpcache.report import publish
from mpcache.report.console import print_warnings
from mpcache.report.files import new_run_id, run_folder, write_config
from mpcache.report.machine import Together, peak_memory_bytes
from mpcache.report.record import (
    PHASES,
    Agreement,
    NearTie,
    PartyRecord,
    PlainRun,
    PredictedParty,
    RunRecord,
)
from mpcache.screen import Screen, write
from mpcache.session import encode_prompt
from mpcache.splitting import check_shares, ready
from mpcache.stores import check_both
from mpcache.weight_memory import check_memory


def launch(config: RunConfig, console: Console) -> int:
    """Run all parties of `config` on this host and report; `config.prompt` is set.

    Returns:
        The exit code 0.

    Raises:
        UsageError: a mistake in the input; nothing was started.
        MpcacheError: the run failed, or its checks did.
    """
    source, ids = _prepare(config, console)
    if config.device == "cuda":
        console.print("device cuda: the plaintext twin runs on the GPU, the parties on the CPU")
    found, known = ranges.of_run(config, source)
    supply = "" if config.store is None else check_both(config, source.spec, len(ids))
    run_id = new_run_id()
    folder = run_folder(config, run_id)
    write_config(folder, config)
    console.print(
        f"{escape(source.spec.name)} ({source.kind}, {escape(source.origin)}), {len(ids)} prompt"
        f" tokens, {config.parties} parties, protocol {config.protocol}{_sharing(config)}, cache"
        f" {config.cache.policy}{escape(f', {supply}' * bool(supply))}",
        soft_wrap=True,
    )
    spoilt = None
    if config.protocol == "dealer":
        console.print(escape(known.says), soft_wrap=True)
        if config.truncation == "local":
            spoilt = odds(quick(config, source.spec, len(ids)).work, found)
            print_warnings(console, [spoilt.says])
    screen = Screen(console, source, config)
    with _Beside(lambda go_on: predict_run(config, source.spec, len(ids), go_on)) as predicting:
        with console.status("plaintext twin"):
            plain = Twin(config, source.spec, source.lazy()).generate(ids)
        gc.collect()  # the twin's weights make room for the parties'
        with ready(config, source, console) as able:
            together = _run_parties(able, run_id, ids, screen)
        prediction = predicting.result()
    if set(screen.results) != set(range(config.parties)):
        raise MpcacheError("a party ended without its result; no report can be made")
    agreement = _agreement(config, source, ids, plain, screen)
    record = RunRecord(
        run_id=run_id,
        config=config,
        spec=source.spec,
        weights=source.kind,
        weights_origin=source.origin,
        prompt_tokens=len(ids),
        text=source.tokenizer().decode(screen.ids),
        token_ids=tuple(screen.ids),
        decode_steps=config.max_new_tokens - 1,
        plaintext=_plain_run(plain, config.max_new_tokens - 1),
        agreement=agreement,
        parties=tuple(PartyRecord.read(screen.results[rank]) for rank in range(config.parties)),
        predicted=tuple(PredictedParty.of(ledger) for ledger in prediction.ranks),
        expected_kept=expected_kept(config, source.spec, len(ids)),
        dealer=screen.dealer,
        predicted_seconds=_predicted_seconds(config, prediction),
        outlook=outlook(config, source.spec, len(ids)),
        launcher_peak_bytes=peak_memory_bytes(),
        together_peak_bytes=together.most,
        ranges=asdict(known) if config.protocol == "dealer" else None,
        truncation=None if spoilt is None else spoilt.fields(),
    )
    publish(record, folder, console)
    console.print(f"report: {escape(str(folder / 'report.html'))}", soft_wrap=True)
    return 0


def _sharing(config: RunConfig) -> str:
    return " with shared weights" * (config.sharing == "shared")


class _Stopped(Exception):
    """The prediction is not wanted any more."""


class _Beside:
    """Makes the prediction while other work goes on, and drops it when the context ends early."""

    def __init__(self, predict: Callable[[Callable[[str], None]], Prediction]) -> None:
        self._predict = predict
        self._stop = threading.Event()
        self._result: Prediction | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="prediction", daemon=True)

    def __enter__(self) -> _Beside:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._result = self._predict(self._go_on)
        except BaseException as error:
            self._error = error

    def _go_on(self, path: str) -> None:
        if self._stop.is_set():
            raise _Stopped

    def result(self) -> Prediction:
        self._thread.join()
        if self._result is None:
            raise MpcacheError("the prediction failed") from self._error
        return self._result


def generate_plain(config: RunConfig, console: Console) -> int:
    """Run the plaintext twin alone and stream its text."""
    source, ids = _prepare(config, console)
    twin = Twin(config, source.spec, source.lazy())
    decoder = source.tokenizer().stream()

    def show(position: int, token: int | None) -> None:
        if token is not None:
            write(console, decoder.push(token))

    plain = twin.generate(ids, on_token=show)
    write(console, decoder.flush() + "\n")
    run = _plain_run(plain, config.max_new_tokens - 1)
    console.print(
        f"plaintext twin: prefill {run.prefill_seconds:.2f} s for {len(ids)} tokens,"
        f" {run.decode_seconds_per_token:.3f} s a token; nothing here is secret"
    )
    return 0


def predict(config: RunConfig, prompt_tokens: int) -> dict[str, Any]:
    """Predicted rounds, and bytes by party, of every phase of a run; no party is started.

    A context beyond the model's own is counted as if it were as long, with a `notice`.
    """
    spec = find(config.model, "synthetic", config.seed).spec
    wanted = prompt_tokens + config.max_new_tokens
    predicted: dict[str, Any] = {}
    if wanted > spec.context:
        predicted["notice"] = (
            f"{spec.name} has a context of {spec.context} tokens: {wanted} are counted as if it"
            " were as long; no run of them would start"
        )
        spec = replace(spec, context=wanted)
    found = quick(config, spec, prompt_tokens)
    if config.protocol == "dealer" and config.truncation == "local":
        here = at_hand(config.model, config.seed)
        known = None if here is None else ranges.load(here)[0]
        predicted["truncation"] = odds(found.work, known).fields()
    speeds, missing = calibration.load(config.protocol)
    if speeds is None:
        predicted["no_seconds"] = missing
    else:
        loads = found.loads(config.max_new_tokens - 1)
        predicted["seconds"] = calibration.seconds_on_networks(speeds, loads, config.parties)
        predicted["seconds_error"] = asdict(speeds.held_out)
    return found.phases() | predicted


def calibrate(console: Console) -> None:
    """Measure this machine's speeds in both suites, and save them."""
    from mpcache.benchmarking.calibrate import calibrate as fitted

    suites = fitted(AVAILABLE_PROTOCOLS, lambda line: console.print(f"[dim]{line}[/]"))
    target = calibration.save(suites)
    for suite, speeds in suites.items():
        console.print(f"{suite}: {speeds.accuracy}", soft_wrap=True)
    console.print(f"saved: {escape(str(target))}", soft_wrap=True)


def _predicted_seconds(config: RunConfig, prediction: Prediction) -> dict[str, float] | None:
    """Seconds of prefill and of a token, where this machine is calibrated."""
    totals = {
        phase: ([ledger.total(phase) for ledger in prediction.ranks], prediction.worked(phase))
        for phase in PHASES
    }
    return calibration.run_seconds(config, calibration.loads_of(totals, config.max_new_tokens - 1))


def _prepare(config: RunConfig, console: Console) -> tuple[Source, list[int]]:
    """Find every mistake that can be found before any work starts."""
    check_device(config)
    source = _twins_weights(config)
    ids = encode_prompt(config, source, read_prompt(config))
    check_prompt(source, ids, config.max_new_tokens)
    policy_of(config, len(ids)).fitted(source.spec).require(source.spec)
    check_memory(config, source.spec)
    check_shares(config, source)
    if source.notice:
        print_warnings(console, [source.notice])
    return source, ids


def _twins_weights(config: RunConfig) -> Source:
    """The model, checked: the twin reads it, also where parties need shares alone."""
    try:
        source = find(config.model, config.weights, config.seed)
        source.check()
    except UsageError as error:
        if config.shares is None:
            raise
        raise UsageError(
            f"{error}; launch compares the parties with a plaintext twin, which needs the model"
            f" beside the shares {config.shares}: give it, or run the parties with `mpcache party`,"
            " which need none"
        ) from None
    return source


def check_device(config: RunConfig) -> None:
    if config.device == "cuda" and not torch.cuda.is_available():
        raise UsageError("device cuda was asked for, but torch sees no GPU here; use --device cpu")


# --- the parties ---------------------------------------------------------------------------------


def _run_parties(config: RunConfig, run_id: str, ids: Sequence[int], screen: Screen) -> Together:
    """Start one process a party and watch them, and their memory, to their end.

    Raises:
        MpcacheError: a party failed; the message names it and what the others say.
    """
    with tempfile.TemporaryDirectory(prefix="mpcache-") as scratch:
        path = _party_config(config, Path(scratch))
        shared = config.sharing == "shared"
        program = [sys.executable, "-m", "mpcache", "party", "--config", str(path), "--events"]
        commands = [
            PartyCommand(
                rank,
                peer_name(rank),
                [*program, "--rank", str(rank), *_folders_of(config, rank)],
                {"session": run_id, "verified": config.store is not None or shared}
                | ({"prompt": list(ids)} if rank == config.client else {}),
            )
            for rank in range(config.parties)
        ]
        if config.processes > config.parties:
            argv = [sys.executable, "-m", "mpcache", "deal", "--config", str(path), "--events"]
            commands.append(PartyCommand(DEALER, "the dealer", argv, {"session": run_id}))
        together = Together()
        with screen:
            exits = supervise(commands, screen.on_event, on_tick=together.look)
    message = failure(exits)
    if message:
        raise MpcacheError(message)
    return together


def _folders_of(config: RunConfig, rank: int) -> list[str]:
    """Each party is told of its own store, and of its own share of the weights, alone."""
    named = {"--store": config.store, "--shares": config.shares}
    return [
        part
        for option, folder in named.items()
        if folder is not None
        for part in (option, str(party_folder(Path(folder).absolute(), rank)))
    ]


def _party_config(config: RunConfig, scratch: Path) -> Path:
    """Write what the parties need: addresses and throw-away keys filled in, the prompt left out."""
    values = yaml.safe_load(to_yaml(config))
    values["device"] = "cpu"  # the twin's is not theirs
    values["shares"] = None  # each party is told of its own
    network = values["network"]
    if not network["addresses"]:
        addresses = loopback_addresses(config.processes)
        network["addresses"] = [f"{host}:{port}" for host, port in addresses]
    if config.network.tls and not config.network.keys:
        keys = scratch / "keys"
        make_keys(keys, config.processes, days=1)
        network["keys"] = str(keys)
    path = scratch / "party.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


# --- the comparison ------------------------------------------------------------------------------


def _plain_run(plain: Generation, steps: int) -> PlainRun:
    return PlainRun(
        tuple(plain.ids), plain.prefill_seconds, plain.decode_seconds / steps if steps else 0.0
    )


def _agreement(
    config: RunConfig, source: Source, ids: Sequence[int], plain: Generation, screen: Screen
) -> Agreement:
    """Compare token by token with what the twin says on the same prefix, under the same policy.

    Sampled tokens are held against its likeliest ones, and none of them counts as a near tie. In a
    verified run its logits are those under the parties' choices.
    """
    if config.temperature or config.verify or screen.ids != plain.ids:
        twin = Twin(config, source.spec, source.lazy())  # its weights were let go; load them again
        if config.temperature or screen.ids != plain.ids:
            plain = twin.generate(ids, forced=screen.ids)
    shown, made, differing = plain, 0, 0
    if config.verify:
        shown = twin.generate(ids, forced=screen.ids, choices=screen.choices)
        made, differing = twin.machine.choices, twin.machine.differing
    pairs = list(zip(screen.ids, plain.ids, strict=True))
    ties = []
    for position, (token, own) in enumerate(pairs):
        if token != own and not config.temperature:
            logits = plain.logits[position].reshape(-1)
            margin = float(logits[own] - logits[token])
            ties.append(NearTie(position, token, own, margin))
    errors = [
        (opened - logits.reshape(-1).cpu()).abs()
        for opened, logits in zip(screen.logits, shown.logits, strict=False)
    ]
    every = torch.cat(errors) if errors else None
    followed = None
    if made and not config.temperature:
        likeliest = [int(logits.argmax()) for logits in shown.logits]
        followed = sum(a == b for a, b in zip(screen.ids, likeliest, strict=True))
    return Agreement(
        equal_tokens=sum(token == own for token, own in pairs),
        total_tokens=len(pairs),
        max_logit_error=None if every is None else float(every.max()),
        mean_logit_error=None if every is None else float(every.mean()),
        near_ties=tuple(ties),
        choices=made,
        differing_choices=differing,
        followed_tokens=followed,
    )
