"""How near a model comes to the ends of suite `dealer`'s ranges: measured, kept, and read again.

What is kept is public: powers of two above the greatest magnitudes, and no activation. It holds for
the weights and the version that it was measured with, and the text says how much it was shown.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from mpcache import __version__
from mpcache.config import RunConfig
from mpcache.errors import UsageError
from mpcache.evaluation.texts import Text, Windows
from mpcache.generation import Request, generate
from mpcache.models.decoder import load_weights
from mpcache.models.folding import FOLDING
from mpcache.models.registry import Source
from mpcache.program import policy_of, setting_of
from mpcache.report.compare import FULL
from mpcache.report.files import write_atomic
from mpcache.watching import Place, WatchingMachine, bits_of

FILE = "mpcache-ranges.json"
STEPS = 16  # decode steps at the end of a window
VERSION = f"{__version__}, weights {FOLDING}"  # of what was measured
AGAIN = "run mpcache calibrate"


@dataclass(frozen=True)
class Row:
    """Everything that a quantity of an operation in a layer has met is below 2^met."""

    operation: str
    what: str
    layer: int | None
    met: int
    bits: int
    wraps: int | None

    @property
    def margin(self) -> int:
        """Bits that are left."""
        return self.bits - self.met

    @property
    def breaks(self) -> bool:
        """Whether the ring wraps."""
        return self.wraps is not None and self.met > self.wraps

    @property
    def where(self) -> str:
        place = "outside of the layers" if self.layer is None else f"layer {self.layer}"
        return f"{self.operation}, {self.what}, {place}"


@dataclass(frozen=True)
class Ranges:
    """What a model's operations met.

    Attributes:
        digest: of the weights; see `digest_of`.
        tokens: of each window, through each of the `caches`.
    """

    version: str
    model: str
    digest: str
    text: str
    text_sha256: str
    windows: int
    tokens: int
    caches: tuple[str, ...]
    rows: tuple[Row, ...]

    @property
    def shown(self) -> str:
        """What was read: ``2 windows of 512 tokens of TEXT``."""
        plural = "s" * (self.windows > 1)
        return f"{self.windows} window{plural} of {self.tokens} tokens of {self.text}"

    @cached_property
    def nearest(self) -> Row:
        """The row with the least margin."""
        return min(self.rows, key=lambda row: row.margin)

    @property
    def broken(self) -> list[Row]:
        """Where the ring would wrap, in the order of layers: what is behind follows from it."""
        rows = (row for row in self.rows if row.breaks)
        return sorted(rows, key=lambda row: (row.layer is None, row.layer or 0, row.margin))

    def bits(self, operation: str, layer: int | None) -> int | None:
        """All that `operation` met in a layer is below 2^bits; None where it was not seen there."""
        met = [r.met for r in self.rows if (r.operation, r.layer) == (operation, layer)]
        return max(met, default=None)

    @staticmethod
    def read(values: Mapping[str, Any]) -> Ranges:
        """From plain values, as a file has them."""
        rows = tuple(Row(**row) for row in values["rows"])
        known = {**values, "rows": rows, "caches": tuple(values["caches"])}
        if not rows or not all(isinstance(row.margin, int) for row in rows):
            raise ValueError("no rows")
        return Ranges(**known)


def digest_of(source: Source) -> str:
    """Names a model's weights: SHA-256 of its shape and of all weights of three layers."""
    spec = source.spec
    digest = hashlib.sha256(spec.digest().encode())
    layers = {0, spec.layers // 2, spec.layers - 1}
    prefixes = tuple(f"layers.{layer}." for layer in layers)
    for name in spec.shapes():
        if name.startswith(prefixes):
            digest.update(name.encode())
            digest.update(source.tensor(name).contiguous().numpy().tobytes())
    return digest.hexdigest()


# --- measuring ------------------------------------------------------------------------------------


def measure(config: RunConfig, source: Source, text: Text, windows: int, tokens: int) -> Ranges:
    """Run the model in plaintext on windows of a text, and note how far its operations go.

    Each window goes through the full cache and through the configured one; its last `STEPS`
    tokens are decoded one by one.

    Raises:
        UsageError: the window does not fit, or the text is too short.
    """
    spec = source.spec
    if not STEPS < tokens <= spec.context:
        raise UsageError(
            f"windows of {tokens} tokens were asked for; expected more than {STEPS} and at most"
            f" {spec.context}, the context of {spec.name}"
        )
    read = Windows(source.tokenizer(), text, tokens, windows, config.seed)
    caches = tuple(dict.fromkeys((FULL, config.cache.policy)))
    machine = WatchingMachine(setting_of(config), config.device)
    with torch.inference_mode():
        model = load_weights(machine, spec, source.lazy())
        for window in (read[number] for number in range(windows)):
            for cache in caches:
                chosen = config.cache.model_copy(update={"policy": cache})
                policy = policy_of(config.model_copy(update={"cache": chosen}), tokens - STEPS)
                prompt, forced = window[:-STEPS], window[-STEPS:]
                request = Request(prompt, len(prompt), STEPS + 1, forced)
                generate(machine, model, policy, request)
    return Ranges(
        version=VERSION,
        model=spec.name,
        digest=digest_of(source),
        text=text.origin,
        text_sha256=text.sha256,
        windows=windows,
        tokens=tokens,
        caches=caches,
        rows=rows_of(machine.met),
    )


def rows_of(met: Mapping[Place, float]) -> tuple[Row, ...]:
    """Powers of two above what was met, in the order of operations and layers."""
    rows = (
        Row(
            place.operation,
            place.reach.what,
            place.layer,
            bits_of(greatest),
            place.reach.bits,
            place.reach.wraps,
        )
        for place, greatest in met.items()
    )
    return tuple(sorted(rows, key=_order))


def _order(row: Row) -> tuple[str, str, int, int]:
    return row.operation, row.what, row.bits, -1 if row.layer is None else row.layer


def worst(rows: Iterable[Row]) -> list[Row]:
    """The row with the least margin of every quantity, nearest to its end first."""
    least: dict[tuple[str, str, int], Row] = {}
    for row in rows:
        key = row.operation, row.what, row.bits
        if key not in least or row.margin < least[key].margin:
            least[key] = row
    return sorted(least.values(), key=lambda row: (row.margin, _order(row)))


# --- keeping --------------------------------------------------------------------------------------


def cache_file(digest: str) -> Path:
    """Where the user's own cache has the ranges of a model."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
    return Path(root) / "mpcache" / "ranges" / f"{digest}.json"


def save(ranges: Ranges, source: Source, out: Path | None = None) -> Path:
    """Write to `out`, else beside the model's own folder, else to the user's cache.

    Raises:
        UsageError: `out` cannot be written.
    """
    beside = source.folder
    target = cache_file(ranges.digest)
    if beside is not None and os.access(beside, os.W_OK):
        target = beside / FILE
    target = out or target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(target, json.dumps(asdict(ranges), indent=1) + "\n")
    except OSError as error:
        raise UsageError(f"{target}: cannot be written ({error.strerror}); give --out") from None
    return target


def load(source: Source) -> tuple[Ranges | None, str]:
    """The ranges of a model, or None and why there are none."""
    why = f"not calibrated: {AGAIN}"
    beside = source.folder is not None and (source.folder / FILE).exists()
    if not beside and not cache_file("").parent.is_dir():
        return None, why  # nothing was ever kept: no need to read weights for their digest
    digest = digest_of(source)
    places = [cache_file(digest)]
    if source.folder is not None:
        places.insert(0, source.folder / FILE)
    for place in places:
        try:
            found = Ranges.read(json.loads(place.read_text(encoding="utf-8")))
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            why = f"not calibrated: {place} is damaged and was ignored; {AGAIN}"
            continue
        if found.version != VERSION:
            why = f"not calibrated: {place} is of mpcache {found.version} and was ignored; {AGAIN}"
        elif found.digest != digest:
            why = f"not calibrated: {place} is of other weights and was ignored; {AGAIN}"
        else:
            return found, ""
    return None, why


@dataclass(frozen=True)
class Known:
    """What a run says of its model's ranges."""

    says: str
    margin_bits: int | None = None
    operation: str | None = None
    what: str | None = None
    layer: int | None = None


def known(ranges: Ranges | None, why: str) -> Known:
    """For the report.

    Raises:
        UsageError: the model goes where the ring wraps.
    """
    if ranges is None:
        return Known(why)
    if ranges.broken:
        row = ranges.broken[0]
        raise UsageError(
            f"{ranges.model} does not fit suite dealer's ring: {row.where} reached"
            f" 2^{row.met - 1} and wraps at 2^{row.wraps} ({len(ranges.broken)} such places on"
            f" {ranges.text}); its answers would be wrong. Use protocol crypten, or another model"
        )
    row = ranges.nearest
    margin = f"calibrated: margin of {row.margin} bits at least ({row.where})"
    if row.margin < 0:
        margin = f"calibrated: {row.where} goes {-row.margin} bits beyond its range and saturates"
    return Known(f"{margin}, on {ranges.shown}", row.margin, row.operation, row.what, row.layer)


def of_run(config: RunConfig, source: Source) -> tuple[Ranges | None, Known]:
    """What a calibration says of the weights of a run, to whom they are at hand.

    Raises:
        UsageError: suite dealer's ring does not hold what the model's operations met.
    """
    if source.kind == "synthetic" or config.protocol != "dealer":
        return None, Known("not calibrated: the weights are synthetic")
    found, why = load(source)
    return found, known(found, why)
