"""The fixed reading beside real parties: equal where their protocol leaves no choice, else close.

Both run the same text on the same inputs, out of range too. What is random in a protocol (how a
truncation rounds, which table entry's rounding counts) is all that may differ.
"""

from __future__ import annotations

import json
from collections.abc import Generator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from eviction.harness import random_activations, walk
from hypothesis import given
from hypothesis import strategies as st
from protocols.harness import UNIT, grid, listed
from protocols.test_dealer import BEYOND, own_bound, perform
from protocols.test_dealer_runs import LOGITS
from protocols.test_operations import CASES, Case, between, exact, normal, one_cut, operate
from protocols.tiny import FULL, MPCACHE, PROMPT, SPECS, config, run, weights

from mpcache.errors import MpcacheError
from mpcache.evaluation import runner
from mpcache.evaluation.clear import ClearDealer, Dice, Matrix, whole
from mpcache.evaluation.fixed import FixedMachine
from mpcache.eviction.attention_gate import AttentionGate, Gates
from mpcache.eviction.oblivious import below_mean
from mpcache.eviction.registry import POLICIES, policy_at
from mpcache.generation import Request, generate
from mpcache.models.decoder import load_weights
from mpcache.models.spec import ModelSpec
from mpcache.program import Twin, kept_of, policy_of, setting_of
from mpcache.protocols.arithmetic import linear, product
from mpcache.protocols.comparison import negative, pick
from mpcache.protocols.dealer import DealerSuite
from mpcache.protocols.functions import inverse
from mpcache.protocols.norm import norm
from mpcache.protocols.secret import Secret
from mpcache.protocols.selection import best
from protocols import bounds

from .reading import SETTING, on_fixed
from .tiny import call, source

ONE_UNIT = (one_cut, bounds.scale, bounds.rotary)  # a rounded factor is rounded alike


def _unsettled(machine: Any, x: Any, weight: Any, bias: Any) -> Any:
    return linear(machine, x, weight, bias, settled=False)


def _sign_of_narrow(machine: Any, x: Any, y: Any) -> Any:
    """What 25 of a product's 32 bits say."""
    return negative(machine, product(machine, x, y, width=32), magnitude=8, keep=16)


def _normed(machine: Any, x: Any, gain: Any = None, centered: bool = False) -> Any:
    return norm(machine, x, gain, None, 1e-5, centered)


def _stepped(machine: Any, x: Any) -> Any:
    """The primitive itself, at and around its thresholds, and beyond its bits."""
    return list(machine.suite.steps(x, machine.encode(EDGES), 30))


EDGES = torch.tensor([-3.5, 0.0, 0.25, 700.0], dtype=torch.float64)
AROUND = torch.cat([EDGES, EDGES - UNIT, EDGES + UNIT, 2.0**14 + EDGES, -(2.0**21) - EDGES])
COUNTED = torch.tensor([[7], [9]])
MORE = [
    Case("product", product, (normal(2, 3, 7), normal(2, 7, 5)), torch.matmul),
    Case("product-narrow", _sign_of_narrow, (normal(3, 7), normal(7, 5)), None, fracs=(8, 8)),
    Case("linear-unsettled", _unsettled, (normal(3, 63), normal(63, 5), normal(5)),
         lambda x, w, b: x @ w + b),
    Case("pick", pick, (torch.tensor([0.0, 1, 1]), normal(4, 3)), torch.mul, fracs=(0, 16)),
    *(Case(f"best-{k}", partial(best, k=k), (normal(2, 9),), None) for k in (1, 4, 9)),
    Case("steps", _stepped, (AROUND,), None),
    Case("below-mean", partial(below_mean, counted=COUNTED), (between(0, 1, 2, 9),), None),
    *(Case(f"inverse-{high}", partial(inverse, low=-6, high=high, frac=26),
           (between(0.02, 0.75 * 2**high, 500),), None, bounds.inverse) for high in (1, 9)),
    *(Case(f"norm-{n}", _normed, (normal(3, n), 1 + normal(n, spread=0.3)), None,
           lambda x, gain, cut: bounds.norm(x, gain, 1e-5, False, cut)) for n in (1, 8, 63, 576)),
    *(Case(f"layer-norm-{n}", partial(_normed, centered=True),
           (normal(3, n), 1 + normal(n, spread=0.3)), None,
           lambda x, gain, cut: bounds.norm(x, gain, 1e-5, True, cut)) for n in (8, 63)),
]  # fmt: skip


def allowed(case: Case, inputs: list[torch.Tensor]) -> torch.Tensor | float:
    """Units by which fixed and parties may differ: what is random in the operation's bound."""
    if case.bound is exact:
        return 0.0
    if case.bound in ONE_UNIT or case.name.startswith("scale"):
        return 1.0
    return 2 * stated(case, inputs)  # each is within it of the same true value


def stated(case: Case, inputs: list[torch.Tensor]) -> torch.Tensor | float:
    """The operation's own bound, in units."""
    own = own_bound(case, inputs)
    return case.bound(*inputs, cut=1.0) if own is None else own


@pytest.mark.parametrize("case", [*CASES, *MORE], ids=lambda case: case.name)
def test_every_operation_is_what_two_parties_compute(case: Case) -> None:
    fracs = case.fracs or (SETTING.frac,) * len(case.inputs)
    inputs = [grid(x, frac) for x, frac in zip(case.inputs, fracs, strict=True)]
    parties = perform(operate(case), inputs, fracs).values
    fixed = on_fixed(operate(case), inputs, fracs)
    bound = torch.as_tensor(allowed(case, inputs))
    for ours, theirs in zip(fixed, parties, strict=True):
        assert tuple(ours.shape) == tuple(theirs.shape)
        off = (ours - theirs).abs() / UNIT
        assert bool((off <= bound).all()), f"{float(off.max())} units"
    if case.reference is None or case.name in BEYOND:
        return
    for ours, true in zip(fixed, listed(case.reference(*inputs)), strict=True):
        off = (ours - true).abs() / UNIT
        assert bool((off <= torch.as_tensor(stated(case, inputs))).all()), float(off.max())


# --- what is drawn -------------------------------------------------------------------------------


def secret(x: torch.Tensor, frac: int) -> Secret:
    return Secret(torch.round(x * 2.0**frac).long(), frac)


def test_a_truncation_rounds_up_with_the_odds_of_what_it_cuts() -> None:
    """Of 100,000 the share that is rounded up is within 6 standard deviations of its odds."""
    count = 100_000
    for cut_off in (0, 1, 13, 128, 255):
        x = torch.full((count,), -5 * 256 + cut_off)
        odds = cut_off / 256
        for up in (
            ClearDealer(SETTING).truncate(Secret(x, 24), 8).share + 5,
            perform(lambda machine, x: machine.settle(x), [x / 2.0**24], (24,)).values[0] / UNIT
            + 5,
        ):
            assert set(up.tolist()) <= {0, 1}
            spread = (odds * (1 - odds) / count) ** 0.5
            assert abs(float(up.double().mean()) - odds) <= 6 * spread


def test_low_bits_are_lost_share_by_share() -> None:
    """What is dropped without a protocol is floor(x), or one less: as two random shares have it."""
    x = torch.arange(-512, 512).repeat(200)
    theirs = torch.randint(-(2**63), 2**63 - 1, x.shape)
    shares = [part >> 4 & (1 << 60) - 1 for part in (x - theirs, theirs)]
    want = sum(shares) - (x >> 4) & (1 << 60) - 1
    got = ClearDealer(SETTING)._dropped(Secret(x, 16), 4) - (x >> 4)
    assert set(got.tolist()) == {0, -1} and set(want.tolist()) == {0, (1 << 60) - 1}
    # by what is cut off, the share of those that lose the carry
    for low in range(16):
        places = (x & 15) == low
        ours, real = (float((part[places] != 0).double().mean()) for part in (got, want))
        assert abs(ours - (15 - low) / 16) <= 6 * 0.5 / int(places.sum()) ** 0.5
        assert abs(ours - real) <= 9 * 0.5 / int(places.sum()) ** 0.5


def test_one_seed_is_one_result() -> None:
    x = normal(500, spread=3)
    first, again = (on_fixed(lambda machine, x: machine.multiply(x, x), [x]) for _ in range(2))
    assert torch.equal(first[0], again[0])
    other = FixedMachine(SETTING, seed=1)
    product_ = other.multiply(secret(x, 16), secret(x, 16)).share
    assert not torch.equal(product_, torch.round(first[0] / UNIT).long())


# --- primitives written out beside the parties' own text -----------------------------------------


def test_comparisons_equal_the_text_s() -> None:
    """The base class's text runs on whole values too."""
    x = torch.cat([normal(3, 30, spread=4), torch.tensor([0.0, 7.9, -8.0, 100]).repeat(3, 1)], 1)
    value = secret(x, 16)
    for magnitude in (3, 4, 9):  # the first two are too few
        for name in ("comparing", "pairs_negative", "positive"):
            ours, text = (listed(read(name, value, magnitude)) for read in (in_clear, in_text))
            for one, other in zip(ours, text, strict=True):
                assert torch.equal(whole(one), whole(other)) and one.frac == other.frac


def in_clear(name: str, *given_: Any) -> Any:
    return _played(ClearDealer(SETTING), ClearDealer, name, *given_)


def in_text(name: str, *given_: Any) -> Any:
    """As the parties' text has it, with the whole of each correlation."""
    return _played(ClearDealer(SETTING, 5), DealerSuite, name, *given_)


def _played(suite: ClearDealer, kind: Any, name: str, *given_: Any) -> Any:
    done = getattr(kind, name)(suite, *given_)
    return suite.play(done) if isinstance(done, Generator) else done


def test_comparisons_tell_apart_what_they_keep() -> None:
    """Bits below 2^-keep go share by share: a value may be read one lower, never two."""
    x = torch.arange(-3 * 128, 3 * 128).repeat(20)
    low, high = (x >> 7) - 1, x >> 7
    value = Secret(x, 16 + 7)
    for name, wanted in (
        ("comparing", lambda t: (t < 0).long()),
        ("positive", lambda t: t.clamp(min=0)),
    ):
        found = [listed(read(name, value))[0].share for read in (in_clear, in_text)]
        for got in found:
            assert bool(((got == wanted(low)) | (got == wanted(high))).all())
        assert not torch.equal(*found)  # drawn apart


@pytest.mark.parametrize("width", [28, 33, 64])
def test_a_short_ring_wraps_where_it_ends(width: int) -> None:
    """Values in and beyond a ring of few bits: compared, cut and multiplied as the text does."""
    x = torch.cat([torch.tensor([0, 5, -7, 1 << 26, -(1 << 26)]), Dice(3).bits((200,), 40)])
    short = Secret(x, 16, width)
    assert torch.equal(whole(short), whole(Secret(x & ((1 << width) - 1), 16, width)))
    for name, given_ in (("comparing", (11,)), ("positive", (11,)), ("clamp", (4, 8))):
        ours, text = (listed(read(name, short, *given_)) for read in (in_clear, in_text))
        for one, other in zip(ours, text, strict=True):
            near = (whole(one) - whole(other)).abs()
            assert int(near.max()) <= (name == "clamp")  # its low bits are drawn apart
    inside = whole(short).abs() < 1 << (width - 2)
    ours, text = (read("truncating", short, 9, 64) for read in (in_clear, in_text))
    assert int((whole(ours) - whole(text))[inside].abs().max()) <= 1
    product_ = [whole(read("multiplying", short, short)) for read in (in_clear, in_text)]
    assert torch.equal(*product_)


def test_tables_equal_the_text_s() -> None:
    x = torch.cat([between(0, 1, 3, 40), torch.tensor([0.0, 0.5, 0.999]).repeat(3, 1)], 1)
    value, coarse = secret(x, 30), secret(torch.floor(x * 64) / 64, 6)
    tables = torch.arange(2 * 64).reshape(2, 64)
    for exactly, given_ in ((True, coarse), (False, value)):
        ours, text = (read("looking_up", given_, 6, 6, tables)[0] for read in (in_clear, in_text))
        for one, other in zip(ours, text, strict=True):
            off = (one.share - other.share).abs()
            assert int(off.remainder(62).max()) <= (not exactly)
    for name, given_ in (("one_hot", (6, 6)), ("tally", (6, 6, None, 16)),
                         ("tally", (6, 6, torch.tensor([1, 0]).repeat(22)[:43], 16))):  # fmt: skip
        ours, text = (read(name, coarse, *given_) for read in (in_clear, in_text))
        assert torch.equal(whole(ours), whole(text))
    _, moved = in_clear("looking_up", value, 6, 6, tables, 14)
    assert moved.frac == 16 and int((moved.share - (value.share >> 14)).abs().max()) <= 1


def test_exp_is_the_text_s_to_its_rounding() -> None:
    x = secret(torch.tensor([-40.0, -16, -15.5, -14.9, -3, -0.5, 0, 0.9, 1.1, 30]).repeat(50), 20)
    ours, text = (read("exponentiating", x) for read in (in_clear, in_text))
    assert ours.frac == text.frac
    values = [part.share.double() / 2.0**part.frac for part in (ours, text)]
    true = torch.exp((x.share / 2.0**20).clamp(max=1))  # nearly exp(1) beyond
    assert float((values[0] - values[1]).abs().sub(true * 2.0**-14).max()) <= 2.0**-17
    for value in values:
        assert not value[x.share < -15.2 * 2**20].any()
        assert float((value - true).abs()[x.share >= -(15 << 20)].max()) <= 0.05


def test_beyond_a_ring_a_truncation_wraps_and_is_counted() -> None:
    suite = ClearDealer(SETTING)
    x = torch.tensor([1 << 62, -(1 << 62) - 5, 5 << 20])
    cut = suite.truncate(Secret(x, 32), 16)
    assert suite.lost == 2 and int(cut.share[2]) == 5 << 4
    suite.truncate(Secret(x, 32, 30), 16)
    assert suite.lost == 2  # there the first two are 0 and -5
    suite.truncate(Secret(torch.tensor([1 << 28]), 32, 30), 16)
    assert suite.lost == 3
    assert suite.negative(Secret(torch.tensor([3 << 20]), 16), magnitude=5).share.item() == 1
    assert suite.lost == 4


@given(
    seed=st.integers(0, 1 << 32),
    bits=st.tuples(st.integers(1, 63), st.integers(1, 50)),
    sizes=st.tuples(*[st.integers(0, 9)] * 3),
)
def test_products_are_exact_whatever_their_size(
    seed: int, bits: tuple[int, int], sizes: tuple[int, int, int]
) -> None:
    dice, (n, k, m) = Dice(seed), sizes
    x = dice.bits((2, n, k), bits[0]) - (1 << bits[0] - 1)
    w = dice.bits((k, m), bits[1]) - (1 << bits[1] - 1)
    suite = ClearDealer(SETTING)
    want = x @ w
    assert torch.equal(suite.matmul(Secret(x, 16), Matrix(w, 16)).share, want)
    assert torch.equal(suite.matmul(Secret(x, 16), Secret(w, 16)).share, want)


# --- whole runs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("cache", [MPCACHE, FULL], ids=["mpcache", "full"])
@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_a_run_is_that_of_two_parties(spec: ModelSpec, cache: dict[str, object]) -> None:
    settings = config(2, cache, protocol="dealer", verify=True)
    client = run(settings, spec)[1].generation
    machine = FixedMachine(setting_of(settings))
    model = load_weights(machine, spec, weights(spec))
    request = Request(
        PROMPT, len(PROMPT), settings.max_new_tokens, forced=client.ids, keep_logits=True
    )
    fixed = generate(machine, model, policy_of(settings, len(PROMPT)), request)
    exact_ = Twin(settings, spec, weights(spec)).generate(PROMPT, forced=client.ids)
    assert fixed.ids == client.ids and kept_of(fixed) == kept_of(client) and machine.lost == 0
    for opened, got, plain in zip(client.logits, fixed.logits, exact_.logits, strict=True):
        got = got.reshape(-1)
        assert float((opened - got).abs().max()) < LOGITS
        assert 0 < float((plain.reshape(-1) - got).abs().max()) < LOGITS


@pytest.mark.parametrize("name", [name for name in POLICIES if POLICIES[name].oblivious])
def test_every_policy_keeps_what_the_parties_keep(name: str) -> None:
    """Stored rows and contexts, but where a decision was as good as a tie."""
    activations = random_activations(4, (2, 3), 1, 2, 24, 3, 6)
    policy = policy_at(name, 9, activations.prompt)
    if isinstance(policy, AttentionGate):
        policy = replace(
            policy, gates=Gates("drawn", tuple(normal(12, 1).float() for _ in range(4)))
        )
    program = walk(policy, activations)
    fixed, parties = on_fixed(program, activations.tensors), perform(program, activations.tensors)
    near = [
        (ours - theirs).abs().amax(-1).flatten() < 0.01
        for ours, theirs in zip(fixed, parties.values, strict=True)
    ]
    assert float(torch.cat(near).double().mean()) > 0.95


def test_tokens_that_are_missing_are_refused() -> None:
    with pytest.raises(MpcacheError, match="expected 2 token ids"):
        FixedMachine(SETTING).tokens([1], 2, 9)
    with pytest.raises(MpcacheError, match=r"no value of shape \[2\]"):
        FixedMachine(SETTING).weight("w", None, (2,))


@pytest.mark.parametrize("task", ["perplexity", "agreement", "recall", "passkey"])
def test_every_task_reads_it(
    task: str, tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "find", source)
    shared = ("--policies", "mpcache,h2o", "--budgets", 40, "--text", text, "--out", tmp_path)
    size = ("--context", 250, "--keys" if task == "passkey" else "--windows", 1)
    decode = () if task == "passkey" else ("--decode", 3)
    figures = []
    for arithmetic in ("fixed", "float"):
        done = call(task, *shared, *size, *decode, "--arithmetic", arithmetic)
        assert done.exit_code == 0, done.output
        assert "were beyond" not in done.output
        figures.append((tmp_path / f"{task}.json").read_text())
    name = {"perplexity": "perplexity", "agreement": "agreement", "recall": "mass",
            "passkey": "digits"}[task]  # fmt: skip
    rows = [json.loads(figure)["rows"] for figure in figures]
    for one, other in zip(*rows, strict=True):
        assert one[name] == pytest.approx(other[name], rel=0.02, abs=0.02)
    assert task in ("passkey", "agreement") or rows[0] != rows[1]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("--policies oracle", "oracle: in plaintext only, and --arithmetic fixed reads what runs"),
        ("--device cuda", "--arithmetic fixed works on the CPU, as the parties do, not on cuda"),
    ],
)
def test_what_has_no_fixed_reading_is_refused(
    arguments: str, says: str, tmp_path: Path, text: Path
) -> None:
    options = ("--arithmetic", "fixed", "--text", text, "--out", tmp_path / "out")
    done = call("perplexity", *options, *arguments.split())
    assert done.exit_code == 2 and says in done.output.replace("\n", " ")
    assert not (tmp_path / "out").exists()
