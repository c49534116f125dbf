"""What a run sends and is dealt, without walking what repeats: layers of one kind cost the same.

A frame's label names its layer, so that ``layer10`` sends a byte a message more than ``layer9``.
Decode steps are all walked: each has one stored token more than the one before.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from mpcache.calibration import loads_of
from mpcache.config import RunConfig
from mpcache.eviction.base import Policy
from mpcache.models.spec import ModelSpec
from mpcache.program import first_layers, policy_of, predict
from mpcache.protocols.ahead import AT_ONCE
from mpcache.protocols.ledger import Entry, Prediction
from mpcache.protocols.work import Work, worked
from mpcache.report.record import PHASES
from mpcache.speeds import Load

_LAYER = re.compile(r"^(\w+)/layer(\d+)(/.*)?$")


@dataclass(frozen=True)
class Quick:
    """A prediction by party and scope; received bytes are not told.

    Attributes:
        ranks: by party, path of a scope -> its counts.
        work: path of a scope -> what a processor is asked for in it.
    """

    ranks: tuple[dict[str, Entry], ...]
    work: dict[str, Work]

    def total(self, rank: int, prefix: str) -> Entry:
        """Sum over the scope `prefix` and everything inside it, at one party."""
        total = Entry()
        for path, entry in self.ranks[rank].items():
            if path == prefix or path.startswith(prefix + "/"):
                total.add(entry)
        return total

    def worked(self, prefix: str) -> Work:
        """Work in the scope `prefix` and everything inside it."""
        return worked(self.work, prefix)

    def phases(self) -> dict[str, Any]:
        """Rounds, and bytes by party, of setup, prefill and decode."""
        result = {}
        for phase in PHASES:
            totals = [self.total(rank, phase) for rank in range(len(self.ranks))]
            result[phase] = {
                "rounds": totals[0].rounds,
                "sent_bytes": [total.sent_bytes for total in totals],
                "dealt_bytes": [total.dealt_bytes for total in totals],
            }
        return result

    def loads(self, decode_steps: int) -> dict[str, Load]:
        """What prefill and a decode step ask of a party."""
        ranks = range(len(self.ranks))
        totals = {
            phase: ([self.total(rank, phase) for rank in ranks], self.worked(phase))
            for phase in PHASES
        }
        return loads_of(totals, decode_steps)

    def token(self) -> Load:
        """What the one decode step of a short run would ask for among many others."""
        return replace(self.loads(1)["token"], together=AT_ONCE)


def quick(
    config: RunConfig, spec: ModelSpec, prompt_tokens: int, policy: Policy | None = None
) -> Quick:
    """Count the first layer of each kind, and multiply.

    Args:
        policy: instead of the configuration's.
    """
    policy = (policy or policy_of(config, prompt_tokens)).fitted(spec)
    first = first_layers(policy, spec)
    walked = max(first.values()) + 1
    prediction = predict(config, spec, prompt_tokens, walked=walked, policy=policy)
    copies = {layer: first[policy.layer_kind(layer)] for layer in range(walked, spec.layers)}
    ranks = tuple(_spread(ledger.entries, copies) for ledger in prediction.ranks)
    return Quick(ranks, _spread_work(prediction, copies))


def _spread(entries: dict[str, Entry], copies: dict[int, int]) -> dict[str, Entry]:
    """The entries of all layers, from those that were walked.

    Args:
        copies: layer -> the walked layer that is like it.
    """
    result = {path: replace(entry, received_bytes=0) for path, entry in entries.items()}
    for layer, source in copies.items():
        longer = len(str(layer)) - len(str(source))
        for path, entry in entries.items():
            copy = _renamed(path, source, layer)
            if copy is not None:
                sent = entry.sent_bytes + longer * entry.messages
                result[copy] = replace(entry, sent_bytes=sent, received_bytes=0)
    return result


def _spread_work(prediction: Prediction, copies: dict[int, int]) -> dict[str, Work]:
    result = dict(prediction.work)
    for layer, source in copies.items():
        for path, work in prediction.work.items():
            copy = _renamed(path, source, layer)
            if copy is not None:
                result[copy] = work.copy()
    return result


def _renamed(path: str, source: int, layer: int) -> str | None:
    """The path in `layer` of what `path` is in layer `source`; None if it is not in that."""
    found = _LAYER.match(path)
    if found is None or int(found[2]) != source:
        return None
    return f"{found[1]}/layer{layer}{found[3] or ''}"
