"""One party's process: the same program for every rank, by hand or under `launch`."""

from __future__ import annotations

import base64
import gc
import json
import os
import secrets as system_random
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import IO, Any

import torch

from mpcache import ranges
from mpcache.config import BUILT_IN_PROMPT, RunConfig, refuse_gpu
from mpcache.errors import MpcacheError, PeerError, UsageError
from mpcache.generation import Generation
from mpcache.heap import keep_pages
from mpcache.kernels.prg import SEED_BYTES, Stream
from mpcache.meeting import endpoint, greeting, meet_dealer, meet_with_store
from mpcache.models.registry import Source, check_prompt, find
from mpcache.parties.dealing import DEALER, CorrectionStream, Sender, hand_out_seeds, to_wires
from mpcache.parties.dial import meet
from mpcache.parties.events import Events, read_secrets, watch_parent
from mpcache.parties.interrupts import between_writes
from mpcache.parties.names import peer_name
from mpcache.parties.store import Session
from mpcache.parties.transport import Wires, connect
from mpcache.program import LENGTH, check_length, deal, kept_of, policy_of, run_secure
from mpcache.protocols.channel import Spec
from mpcache.protocols.ledger import Ledger, Scopes
from mpcache.report.files import run_folder, write_atomic
from mpcache.report.machine import peak_memory_bytes
from mpcache.report.record import DealerRecord
from mpcache.weight_memory import check_memory
from mpcache.weight_shares import Header, shares_of

BY_HAND = "by hand"
BUILT_IN_TOKENS = 128


def party_main(
    config: RunConfig, rank: int, *, events: bool = False, prompt: str | None = None
) -> int:
    """Run party `rank` to its end.

    Args:
        events: under `launch`: secrets come on stdin, progress and results go to stdout as JSON.
        prompt: the client's prompt when run by hand; under `launch` it is among the secrets.

    Returns:
        The exit code: 0, 1 for a failed run, 2 for a mistake in the input.
    """
    if not events:
        return _run(config, rank, _ByHand(config, rank, sys.stdout, sys.stderr), prompt, BY_HAND)
    return _under_launch(
        lambda secrets, voice: _run(
            config,
            rank,
            voice,
            secrets.get("prompt"),
            _session_of(secrets),
            verified=bool(secrets.get("verified")),
        )
    )


def _session_of(secrets: dict[str, Any]) -> str:
    return str(secrets.get("session", ""))


def _under_launch(program: Callable[[dict[str, Any], _Launched], int]) -> int:
    """Run `program` with the secrets from stdin, and tell the launcher how it ends."""
    out = Events.on_stdout()
    try:
        secrets = read_secrets(sys.stdin)
        watch_parent(sys.stdin)
        return program(secrets, _Launched(out))
    except MpcacheError as error:
        out.error(error)
        return error.exit_code
    except Exception as error:
        traceback.print_exc()
        out.error(error)
        return 1


class _Launched:
    """Tells the launcher how far this party is, as events."""

    def __init__(self, out: Events) -> None:
        self.out = out

    def where(self, path: str) -> None:
        self.out.emit("progress", where=path)

    def token(self, position: int, token: int | None) -> None:
        self.out.emit("token", position=position, id=token, where=_token_place(position))

    def dealt(self, work: DealerRecord) -> None:
        self.out.emit("dealt", **asdict(work))

    def claimed(self, session: Session) -> None:
        if session.corrections is not None:
            self.out.emit("dealt", **asdict(DealerRecord.ahead(session.dealt_bytes)))

    def shares(self, header: Header) -> None:
        """The launcher has checked them, and marks what is synthetic."""

    def result(self, record: dict[str, Any], result: Generation) -> None:
        for rows in result.choices:
            packed = base64.b64encode(rows.numpy().tobytes()).decode()
            self.out.emit("choices", int16=packed)
        for position, row in enumerate(result.logits):
            packed = base64.b64encode(row.to(torch.float32).numpy().tobytes()).decode()
            self.out.emit("logits", position=position, float32=packed)
        self.out.emit("result", **record)


class _ByHand:
    """Tells a person: the answer on stdout (at the client), progress on stderr."""

    def __init__(self, config: RunConfig, rank: int, out: IO[str], err: IO[str]) -> None:
        self.config, self.rank, self.out, self.err = config, rank, out, err
        self.decoder: Any = None
        self.folder = run_folder(config, "") if config.report else None

    def where(self, path: str) -> None:
        print(f"party {self.rank}: {path}", file=self.err, flush=True)

    def token(self, position: int, token: int | None) -> None:
        if token is None or self.decoder is None:
            return
        self.out.write(self.decoder.push(token))
        self.out.flush()

    def dealt(self, work: DealerRecord) -> None:
        print(f"dealer: {work.dealt_bytes:,} bytes in {work.seconds:.1f} s of work", file=self.err)

    def claimed(self, session: Session) -> None:
        print(
            f"party {self.rank}: session {session.number + 1} of {session.of} from its store,"
            f" {session.dealt_bytes:,} bytes dealt ahead",
            file=self.err,
            flush=True,
        )

    def shares(self, header: Header) -> None:
        print(
            f"party {self.rank}: its share of {header.model} ({header.weights} weights), split"
            f" {header.split[:12]}",
            file=self.err,
        )
        if header.weights == "synthetic":
            print("warning: synthetic weights: the text is meaningless", file=self.err)

    def ranges(self, says: str) -> None:
        if self.config.protocol == "dealer":
            print(f"party {self.rank}: {says}", file=self.err, flush=True)

    def result(self, record: dict[str, Any], result: Generation) -> None:
        if self.decoder is not None:
            print(self.decoder.flush(), file=self.out, flush=True)
        if self.folder is not None:
            record_file = self.folder / f"party-{self.rank}.json"
            write_atomic(record_file, json.dumps(record, indent=2) + "\n")
        total = record["totals"]
        print(
            f"party {self.rank}: done; {total['rounds']:,} rounds,"
            f" {total['sent_bytes']:,} bytes sent, transcript {record['transcript'][:12]}",
            file=self.err,
        )


def _token_place(position: int) -> str:
    """Where a party is once token `position` is out."""
    return f"decode step {position + 1}"


def _run(
    config: RunConfig,
    rank: int,
    voice: Any,
    prompt: str | Sequence[int] | None,
    session: str,
    verified: bool = False,
) -> int:
    refuse_gpu(config)
    torch.set_num_threads(config.threads or max(1, (os.cpu_count() or 1) // config.parties))
    if config.protocol == "crypten":
        keep_pages()
    owner, client = rank == config.owner, rank == config.client
    shared = config.sharing == "shared"
    # The others need the model's public shape only, never its weights.
    kind = config.weights if owner and not shared else "synthetic"
    source = find(config.model, kind, config.seed)
    shares = shares_of(config, rank, source.spec, verified)
    if shares is not None:
        check_memory(config, source.spec, rank)
        voice.shares(shares.header)
    if owner:
        policy_of(config, 1).require(source.spec)
        if not shared and isinstance(voice, _ByHand):  # `launch` has looked
            voice.ranges(ranges.of_run(config, source)[1].says)
    ids = None
    if client:
        ids = _prompt_ids(config, source, prompt)
        if isinstance(voice, _ByHand):
            voice.decoder = source.tokenizer().stream()
    tensors = source.lazy() if owner and not shared else None
    ledger = Ledger(rank, config.parties)
    ledger.on_enter = lambda path: _report_progress(voice, path)
    voice.where("connect")
    gc.freeze()  # what is loaded stays: collections need not look at it again
    split = shares.header.split if shares is not None else ""
    hello = greeting(config, rank, source.spec, session, split)
    length = len(ids) if ids is not None else None
    with between_writes(), ExitStack() as stack, torch.inference_mode():
        dealt = None
        if config.store is not None:
            wires, dealt, claimed = meet_with_store(
                config, rank, source.spec, hello, ledger, length, verified, stack
            )
            voice.claimed(claimed)
        elif config.protocol == "dealer":
            wires, dealt = meet_dealer(config, rank, hello, ledger, length, stack)
        else:
            wires = stack.enter_context(connect(endpoint(config, rank), hello, ledger))
        try:
            result = run_secure(
                config, source.spec, wires, tensors, ids, voice.token, dealt, shares
            )
            if dealt is not None and isinstance(dealt.corrections, CorrectionStream):
                dealt.corrections.finish()
        except PeerError as error:
            if dealt is not None and error.peer == peer_name(DEALER):
                raise PeerError("the dealer", ledger.path, error.reason) from error
            raise
        voice.result(_record(wires, result), result)
    return 0


def deal_main(config: RunConfig, *, events: bool = False) -> int:
    """Run the dealer of a two-party run: it learns neither weights nor prompt, only lengths.

    Returns:
        The exit code, as `party_main` does.
    """
    if not events:
        return _deal(config, _ByHand(config, DEALER, sys.stdout, sys.stderr), BY_HAND)
    return _under_launch(lambda secrets, voice: _deal(config, voice, _session_of(secrets)))


def _deal(config: RunConfig, voice: Any, session: str) -> int:
    if config.protocol != "dealer":
        raise UsageError(f"protocol {config.protocol} has no dealer; set protocol: dealer")
    if config.store is not None:
        raise UsageError(
            "with a store the parties need no live dealer; leave out store, or deal one ahead"
            " with --sessions"
        )
    refuse_gpu(config)
    torch.set_num_threads(config.threads or max(1, (os.cpu_count() or 1) // config.parties))
    source = find(config.model, "synthetic", config.seed)
    voice.where("connect")
    hello = greeting(config, DEALER, source.spec, session)
    socks = meet(endpoint(config, DEALER), hello)
    timeout = config.network.timeout_s
    with between_writes(), ExitStack() as stack, torch.inference_mode():
        links = {
            rank: stack.enter_context(
                Wires({rank: sock}, Ledger(DEALER, DEALER + 1), timeout_s=timeout)
            )
            for rank, sock in socks.items()
        }
        got = links[config.client].exchange(LENGTH, {}, {config.client: [Spec((1,))]})
        count = int(got[config.client][0].item())
        check_length(config, source.spec, count)
        seeds = [system_random.token_bytes(SEED_BYTES) for _ in range(2)]
        hand_out_seeds(links, seeds)
        voice.where("dealing")
        sender, work = Sender(to_wires(links[1])), Scopes()

        def emit(correction: torch.Tensor) -> None:
            waited, entry = sender.seconds, work.entry()
            sender.emit(correction)
            entry.wait_seconds += sender.seconds - waited
            entry.dealt_bytes += correction.nbytes

        began = time.perf_counter()
        streams = Stream(seeds[0]), Stream(seeds[1])
        dealt = deal(config, source.spec, count, streams, emit, work)
        sender.finish()
        seconds = time.perf_counter() - began
        own = seconds - sender.seconds
        voice.dealt(DealerRecord.of(work, dealt, own, seconds, peak_memory_bytes()))
    return 0


def _prompt_ids(config: RunConfig, source: Source, prompt: str | Sequence[int] | None) -> list[int]:
    """The client's prompt as token ids; `launch` hands over ids it has checked, a person a text."""
    if prompt is None:
        raise UsageError(
            f"party {config.client} is the client and needs the prompt: give --prompt or"
            " --prompt-file"
        )
    if not isinstance(prompt, str):
        return [int(token) for token in prompt]
    ids = encode_prompt(config, source, prompt)
    check_prompt(source, ids, config.max_new_tokens)
    return ids


def encode_prompt(config: RunConfig, source: Source, prompt: str) -> list[int]:
    """A prompt as token ids, in the model's chat form where it has one and `chat` is on."""
    tokenizer = source.tokenizer()
    ids = tokenizer.chat(prompt) if config.chat else None
    ids = tokenizer.encode(prompt) if ids is None else ids
    # A stand-in takes one token a byte: of the built-in prompt, as many as a real one would.
    return ids[:BUILT_IN_TOKENS] if tokenizer.meaningless and prompt == BUILT_IN_PROMPT else ids


def _report_progress(voice: Any, path: str) -> None:
    """Setup and prefill are told layer by layer; a decode step is told by its token."""
    phase, *inside = path.split("/")
    told = len(inside) == 1 and (inside[0].startswith("layer") or inside[0] == "ahead")
    if phase != "decode" and (not inside or told):
        voice.where(path)


def _record(wires: Wires, result: Generation) -> dict[str, Any]:
    """What a party tells of its run: counts, times and, at the client, the answer."""
    ledger = wires.ledger
    record: dict[str, Any] = {
        "rank": wires.rank,
        "scopes": ledger.by_scope(),
        "totals": asdict(ledger.total()),
        "openings": [asdict(opening) for opening in ledger.openings],
        "transcript": ledger.transcript.hexdigest(),
        "phase_seconds": {
            "setup": ledger.total("setup").seconds,
            "prefill": result.prefill_seconds,
            "decode": result.decode_seconds,
        },
        "step_seconds": result.step_seconds,
        "kept": kept_of(result),
        "peak_memory_bytes": peak_memory_bytes(),
        "peers": {
            peer: {"sent_bytes": sent, "received_bytes": wires.received_bytes[peer]}
            for peer, sent in wires.sent_bytes.items()
        },
        "token_ids": result.ids,
    }
    return record
