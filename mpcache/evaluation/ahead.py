"""What cache policies learn ahead of any run, from a public text: layers' preferences, and gates.

Neither sees a prompt that is a secret. Both read what the full cache is asked in windows of text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import yaml
from rich.progress import track
from safetensors.torch import save_file

from mpcache import __version__
from mpcache.errors import UsageError
from mpcache.evaluation import runner
from mpcache.evaluation.lanes import Asked, Engine
from mpcache.evaluation.settings import Settings
from mpcache.evaluation.texts import Text, Windows, load_docstrings, load_text
from mpcache.eviction.attention_gate import trained_path
from mpcache.models.registry import Source
from mpcache.models.rotary_tables import rotary_tables
from mpcache.models.spec import ModelSpec
from mpcache.protocols.rotary import rotary
from mpcache.report.files import write_atomic

if TYPE_CHECKING:
    from rich.console import Console

Layers = Mapping[int, Asked]

OBSERVED = 32  # last queries of a window that tell a layer's preference
TAU = (2.0, 2.0)  # temperatures of dispersion and of shift: the smaller, the more they count
SCALE = 100  # the mean of whole-numbered preferences

SPANS = 8  # parts of a window; each of the last five is asked about by the one behind it
SINK, RECENT = 4, 32  # tokens at the ends of a prompt, which stay anyway
LEAST = 3e-5  # mean attention below which tokens are as good as each other
RIDGE = 1e-3  # of the mean square of an input


@dataclass(frozen=True)
class Lessons:
    """Windows of a text, and the model that reads them."""

    settings: Settings
    source: Source
    text: Text
    windows: Windows

    def read(self, console: Console) -> Iterator[tuple[Engine, Layers]]:
        """What every layer is asked in each window, in plaintext."""
        engine = runner.engine_of(self.settings, self.source)
        count = self.settings.windows
        for number in track(range(count), "windows", console=console):
            yield engine, engine.prefill(self.windows[number]).asked

    @property
    def made(self) -> str:
        """How, for those who read the result."""
        settings = self.settings
        return (
            f"{settings.windows} windows of {settings.context} tokens, seed {settings.seed},"
            f" of {self.text.origin} (SHA-256 {self.text.digest}...); {self.source.origin};"
            f" mpcache {__version__}"
        )


def lessons(settings: Settings) -> Lessons:
    """Check the input and cut the text: the standard library's docstrings where none is given.

    Raises:
        UsageError: an option, the text or the model does not do.
    """
    settings.check()
    least = SPANS * (SINK + RECENT)
    if settings.context < least:
        raise UsageError(f"--context {settings.context}: expected {least} tokens or more")
    text = load_text(settings.texts) if settings.texts else load_docstrings()
    source = runner.find(settings.model, settings.weights, settings.seed)
    source.check()
    if source.kind == "synthetic":
        raise UsageError(
            f"{source.spec.name} has synthetic weights here, which teach nothing; give a model"
            " with weights of its own"
        )
    settings.check_model(source, settings.context)
    windows = Windows(source.tokenizer(), text, settings.context, settings.windows, settings.seed)
    return Lessons(settings, source, text, windows)


# --- CAKE: layers' preferences -------------------------------------------------------------------


def dispersion_and_shift(asked: Asked, observed: int = OBSERVED) -> tuple[float, float]:
    """Entropy and variance of the last queries' attention to the tokens before them.

    Both summed over heads, queries and tokens, as in CAKE (arXiv 2503.12491).
    """
    queries, keys, _ = asked
    tokens, width = keys.shape[1:]
    scores = queries[:, :, -observed:] @ keys.unsqueeze(1).transpose(2, 3) / width**0.5
    later = torch.ones(observed, tokens, dtype=torch.bool, device=keys.device).triu(
        tokens - observed + 1
    )
    weights = scores.double().masked_fill(later, float("-inf")).softmax(-1)
    weights = weights[..., : tokens - observed]
    entropy = -torch.xlogy(weights, weights).sum()
    return float(entropy), float(weights.var(2, correction=0).sum())


def preferences(settings: Settings, out: Path, console: Console) -> tuple[int, ...]:
    """H^(1/tau1) V^(1/tau2) of each layer, on average over windows, as whole numbers.

    A window's preferences are brought to a mean of 1 first, so that all windows weigh the same.
    They are written to the table `out`, beside those of other models that are there.
    """
    given = lessons(settings)
    total = torch.zeros(given.source.spec.layers, dtype=torch.float64)
    for _, layers in given.read(console):
        both = torch.tensor([dispersion_and_shift(layers[layer]) for layer in sorted(layers)])
        own = both[:, 0].double() ** (1 / TAU[0]) * both[:, 1].double() ** (1 / TAU[1])
        total += own / own.mean()
    found = tuple(max(1, round(SCALE * float(x) / settings.windows)) for x in total)
    entry = {
        "model": given.source.spec.name,
        "shape": given.source.spec.digest(),
        "made": f"mpcache eval preferences: {given.made}; temperatures {TAU[0]:g} and {TAU[1]:g}",
        "preferences": list(found),
    }
    _put(out, entry)
    console.print(f"cache.preferences: {list(found)}", soft_wrap=True)
    console.print(f"written: {out}", soft_wrap=True)
    return found


def _put(file: Path, entry: dict[str, Any]) -> None:
    """Write an entry into a table; that of the same shape gives way."""
    try:
        table = yaml.safe_load(file.read_text("utf-8")) or [] if file.exists() else []
        rest = [one for one in table if one["shape"] != entry["shape"]]
    except (OSError, UnicodeDecodeError, yaml.YAMLError, TypeError, KeyError):
        raise UsageError(f"--out {file} is no table of preferences; give another file") from None
    file.parent.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump([*rest, entry], sort_keys=False, default_flow_style=None, width=96)
    write_atomic(file, text)


# --- Attention-Gate: gates -----------------------------------------------------------------------


class Squares:
    """Least squares of many targets on one set of inputs, and a constant, sample by sample."""

    def __init__(self, inputs: int, targets: int) -> None:
        self.gram = torch.zeros(inputs + 1, inputs + 1, dtype=torch.float64)
        self.right = torch.zeros(inputs + 1, targets, dtype=torch.float64)

    def add(self, x: torch.Tensor, y: torch.Tensor) -> None:
        """Samples x [samples, inputs] with targets y [samples, targets]."""
        x = torch.cat([x.double(), torch.ones(len(x), 1, dtype=torch.float64)], 1)
        self.gram += x.t() @ x
        self.right += x.t() @ y.double()

    def solved(self) -> torch.Tensor:
        """The weights [inputs, targets] without the constant, which ranks nothing."""
        ridge = RIDGE * self.gram.diagonal().mean()
        gram = self.gram + ridge * torch.eye(len(self.gram), dtype=torch.float64)
        return torch.linalg.solve(gram, self.right)[:-1]


def inputs_of(spec: ModelSpec, asked: Asked, engine: Engine) -> torch.Tensor:
    """What a gate reads [tokens, kv_heads * 2 * head_dim], as `AttentionGateCache` has it."""
    _, keys, values = asked
    if spec.positions == "rotary":
        cos, sin = rotary_tables(spec, 0, keys.shape[1])
        keys = rotary(engine.machine, keys, cos, -sin)
    return torch.cat([keys, values], 2).permute(1, 0, 2).flatten(1).cpu()


def worths(asked: Asked) -> tuple[torch.Tensor, torch.Tensor]:
    """Logarithms of the attention [tokens, kv_heads] that later queries give, and who has one.

    The window's end is asked about its beginning, for beginnings of 3, 4, .. 7 eighths: the mean
    attention that a group's queries in the next eighth give to a token, its logarithm on average
    over those beginnings in which the token is not one of the last.
    """
    queries, keys, _ = asked
    tokens, width = keys.shape[1:]
    span = tokens // SPANS
    total = torch.zeros(tokens, keys.shape[0], dtype=torch.float64)
    times = torch.zeros(tokens, 1, dtype=torch.float64)
    for end in range(3 * span, SPANS * span, span):
        scores = queries[:, :, end : end + span] @ keys.unsqueeze(1).transpose(2, 3) / width**0.5
        later = torch.ones(span, tokens, dtype=torch.bool, device=keys.device).triu(end + 1)
        weights = scores.masked_fill(later, float("-inf")).softmax(-1)
        drawn = weights.mean(2).mean(1)[:, SINK : end - RECENT].double().cpu()
        total[SINK : end - RECENT] += torch.log(drawn + LEAST).t()
        times[SINK : end - RECENT] += 1
    return total / times.clamp(min=1), times[:, 0] > 0


def gates(settings: Settings, out: Path | None, console: Console) -> Path:
    """Fit a gate for each layer, and write them to `out`, or where the policy looks first."""
    given = lessons(settings)
    spec = given.source.spec
    shape = spec.kv_heads * 2 * spec.head_dim, spec.kv_heads
    squares = [Squares(*shape) for _ in range(spec.layers)]
    for engine, layers in given.read(console):
        for layer, asked in layers.items():
            y, known = worths(asked)
            squares[layer].add(inputs_of(spec, asked, engine)[known], y[known])
    tensors = {str(i): one.solved().to(torch.float16).contiguous() for i, one in enumerate(squares)}
    target = out or trained_path(spec)
    target.parent.mkdir(parents=True, exist_ok=True)
    told = {"model": spec.name, "shape": spec.digest(), "made": f"mpcache eval gates: {given.made}"}
    save_file(tensors, target, told)
    console.print(f"written: {target}", soft_wrap=True)
    return target
