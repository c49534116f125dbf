"""What a run leaves behind for its report: plain numbers, gathered from all parties."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from mpcache.config import RunConfig
from mpcache.errors import MpcacheError
from mpcache.models.spec import ModelSpec

if TYPE_CHECKING:
    from mpcache.protocols.ledger import Ledger, Scopes

PHASES = ("setup", "prefill", "decode")
TIMES = ("seconds", "wait_seconds", "transfer_seconds", "dealer_seconds", "busy_seconds")
COUNTS = ("rounds", "messages", "sent_bytes", "received_bytes", "dealt_bytes")

ScopeTable = Mapping[str, Mapping[str, float]]
Kept = Mapping[str, list[int | list[int]]]


@dataclass(frozen=True)
class Opened:
    """`values` elements left the shares, for `to`, because of `why`."""

    why: str
    to: str
    values: int


@dataclass(frozen=True)
class PredictedParty:
    """The ledger of one party as the twin predicts it.

    Attributes:
        scopes: path, such as ``decode/layer3/attention/softmax``, -> counts (see `COUNTS`).
        transcript: digest over labels, directions and shapes, in hexadecimal.
        openings: what is to be opened; None where the prediction does not say.
    """

    rank: int
    scopes: ScopeTable
    transcript: str
    openings: tuple[Opened, ...] | None = None

    @staticmethod
    def of(ledger: Ledger) -> PredictedParty:
        """What a counting ledger says of its rank."""
        return PredictedParty(
            ledger.rank,
            ledger.by_scope(),
            ledger.transcript.hexdigest(),
            tuple(Opened(item.why, item.to, item.values) for item in ledger.openings),
        )


@dataclass(frozen=True)
class PartyRecord:
    """The ledger of one party as it was measured.

    Attributes:
        scopes: as in `PredictedParty`, with the `TIMES` besides the counts.
        phase_seconds: wall time of ``setup``, ``prefill`` and ``decode``.
        step_seconds: the same of each decode step.
        kept: public token counts: ``static`` by layer, ``dynamic`` by decode step, and by layer
            within a step where layers differ.
        peers: rank of a peer -> ``sent_bytes`` and ``received_bytes`` on that wire, where counted.
    """

    rank: int
    scopes: ScopeTable
    openings: tuple[Opened, ...]
    transcript: str
    phase_seconds: Mapping[str, float]
    kept: Kept
    peak_memory_bytes: int
    peers: Mapping[int, Mapping[str, int]] = field(default_factory=dict)
    step_seconds: tuple[float, ...] = ()

    @staticmethod
    def read(values: Mapping[str, Any]) -> PartyRecord:
        """From plain values, as a party's process tells them in JSON; other keys are ignored.

        Raises:
            MpcacheError: a field is missing or has another form.
        """
        try:
            return PartyRecord(
                rank=int(values["rank"]),
                scopes=values["scopes"],
                openings=tuple(
                    Opened(item["why"], item["to"], int(item["values"]))
                    for item in values["openings"]
                ),
                transcript=values["transcript"],
                phase_seconds=values["phase_seconds"],
                kept={level: list(counts) for level, counts in values["kept"].items()},
                peak_memory_bytes=int(values["peak_memory_bytes"]),
                peers={int(peer): wire for peer, wire in values.get("peers", {}).items()},
                step_seconds=tuple(map(float, values.get("step_seconds", ()))),
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            raise MpcacheError("a party's record of its run is not complete") from None


@dataclass(frozen=True)
class PlainRun:
    """What the plaintext twin generated, and how fast."""

    token_ids: tuple[int, ...]
    prefill_seconds: float
    decode_seconds_per_token: float


@dataclass(frozen=True)
class NearTie:
    """A position at which the two runs differ, with the twin's logit margin between the tokens."""

    position: int
    secure_id: int
    plain_id: int
    margin: float


@dataclass(frozen=True)
class Agreement:
    """How far the secret-shared run follows the twin; logit errors only with ``--verify``.

    Those are the twin's under the parties' choices: `choices` counts what the cache chose (rows of
    one-hot matrices, and evictions), `differing_choices` where the twin would choose otherwise.
    `followed_tokens` counts tokens that are the twin's likeliest under the parties' choices: where
    two clusters are about equally near a query, either choice follows the policy.
    Sampled tokens are held against the twin's likeliest on the same prefix.
    """

    equal_tokens: int
    total_tokens: int
    max_logit_error: float | None = None
    mean_logit_error: float | None = None
    near_ties: tuple[NearTie, ...] = ()
    choices: int = 0
    differing_choices: int = 0
    followed_tokens: int | None = None


@dataclass(frozen=True)
class DealerRecord:
    """What the dealer of suite `dealer` says of its own work.

    Attributes:
        dealt_bytes: corrections that it emitted for party 1.
        seconds: its work in this run; `elapsed_seconds` also holds its waits for party 1.
        source: ``live``, or ``store`` where all was dealt ahead and no dealer ran.
        phases: ``setup``, ``prefill``, ``decode`` -> seconds of work and bytes dealt for each.
        peak_memory_bytes: of its process; None where no dealer ran.
    """

    dealt_bytes: int
    seconds: float = 0.0
    elapsed_seconds: float = 0.0
    source: Literal["live", "store"] = "live"
    phases: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    peak_memory_bytes: int | None = None

    @staticmethod
    def ahead(dealt_bytes: int) -> DealerRecord:
        """Of a run that takes everything from a store."""
        return DealerRecord(dealt_bytes, source="store")

    @staticmethod
    def of(
        work: Scopes, dealt_bytes: int, seconds: float, elapsed: float, peak_memory_bytes: int
    ) -> DealerRecord:
        """From the dealer's own ledger, whose waits are those for party 1."""
        totals = {phase: work.total(phase) for phase in PHASES}
        phases = {
            phase: {
                "seconds": total.seconds - total.wait_seconds,
                "dealt_bytes": total.dealt_bytes,
            }
            for phase, total in totals.items()
        }
        return DealerRecord(dealt_bytes, seconds, elapsed, "live", phases, peak_memory_bytes)

    @staticmethod
    def read(values: Mapping[str, Any]) -> DealerRecord:
        """From the event that the dealer, or a party with a store, wrote.

        Raises:
            MpcacheError: it lacks a field.
        """
        try:
            return DealerRecord(
                int(values["dealt_bytes"]),
                float(values["seconds"]),
                float(values["elapsed_seconds"]),
                "store" if values["source"] == "store" else "live",
                {phase: dict(part) for phase, part in values["phases"].items()},
                None if values["peak_memory_bytes"] is None else int(values["peak_memory_bytes"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError):
            raise MpcacheError("the dealer's record of its work is not complete") from None


@dataclass(frozen=True)
class RunRecord:
    """Everything that the report is made from.

    Attributes:
        run_id: names the run and its default folder.
        weights: ``pretrained`` or ``synthetic``; `weights_origin` says where they came from.
        decode_steps: how often the decode loop ran (the first token comes out of prefill).
        predicted: one entry a party, in the order of ranks.
        dealer: what the dealer did, in suite `dealer`.
        expected_kept: the counts that the budget asks for, in the form of `PartyRecord.kept`.
        predicted_seconds: of ``prefill`` and a ``token``, where this machine is calibrated.
        outlook: what a token would take at other lengths: see `mpcache.outlook`.
        launcher_peak_bytes: the most memory that the launcher's process had, twin included.
        together_peak_bytes: the most that all processes had resident at one time while the parties
            ran, looked at twice a second; None where the system does not say.
        ranges: what a calibration says of the model (`mpcache.ranges`); None in suite `crypten`.
        truncation: the odds of local truncation (`mpcache.odds`); None where it is exact.
    """

    run_id: str
    config: RunConfig
    spec: ModelSpec
    weights: Literal["pretrained", "synthetic"]
    weights_origin: str
    prompt_tokens: int
    text: str
    token_ids: tuple[int, ...]
    decode_steps: int
    plaintext: PlainRun
    agreement: Agreement
    parties: tuple[PartyRecord, ...]
    predicted: tuple[PredictedParty, ...]
    expected_kept: Kept
    dealer: DealerRecord | None = None
    predicted_seconds: Mapping[str, float] | None = None
    outlook: Sequence[Mapping[str, Any]] = ()
    launcher_peak_bytes: int = 0
    together_peak_bytes: int | None = None
    ranges: Mapping[str, Any] | None = None
    truncation: Mapping[str, Any] | None = None


def nonzero(scopes: ScopeTable) -> dict[str, dict[str, int]]:
    """Scopes that count anything, with their counts alone: times and empty scopes dropped."""
    counted = {
        path: {name: int(values.get(name, 0)) for name in COUNTS} for path, values in scopes.items()
    }
    return {path: values for path, values in counted.items() if any(values.values())}


def in_phase(scopes: ScopeTable, phase: str) -> Iterable[tuple[str, Mapping[str, float]]]:
    """(path inside the phase, entry) of every scope of `phase`; the phase itself is ``self``."""
    for path, values in scopes.items():
        head, _, rest = path.partition("/")
        if head == phase:
            yield rest or "self", values
