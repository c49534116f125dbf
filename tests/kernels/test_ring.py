"""Every way of a ring product gives the bits of Python's integers."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mpcache.errors import UsageError
from mpcache.kernels import digits, matvec, panels, ring
from mpcache.kernels.processor import has_amx
from tests.kernels.operands import (
    WEIGHTS,
    by_outputs,
    dtypes,
    extremes,
    operand,
    reference,
    seeds,
)

ENGINES = ["matvec", "torch", "int8", "panels"] + (["amx"] if has_amx() else [])
PREPARED = [engine for engine in ENGINES if engine in ("int8", "amx")]
needs_amx = pytest.mark.skipif(not has_amx(), reason="no AMX tiles here")


def test_reference_is_the_ring() -> None:
    x, w = operand((3, 20), torch.int64, 1), operand((20, 5), torch.int64, 2)
    assert torch.equal(reference(x, w), x @ w)
    assert reference(torch.tensor([[2**63 - 1]]), torch.tensor([[2]])).item() == -2


@pytest.mark.parametrize("engine", ENGINES)
@settings(max_examples=40)
@given(
    rows=st.integers(1, 35),
    inputs=st.integers(1, 70),
    outputs=st.integers(1, 40),
    dtype=dtypes,
    seed=seeds,
    transposed=st.booleans(),
)
def test_every_engine_is_exact(
    engine: ring.Engine,
    rows: int,
    inputs: int,
    outputs: int,
    dtype: torch.dtype,
    seed: int,
    transposed: bool,
) -> None:
    x, w = operand((rows, inputs), torch.int64, seed), operand((inputs, outputs), dtype, seed + 1)
    stored = by_outputs(w) if transposed else w
    assert torch.equal(ring.matmul(x, stored, engine=engine), reference(x, w))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", WEIGHTS)
def test_every_pair_of_extreme_values(engine: ring.Engine, dtype: torch.dtype) -> None:
    x, w = extremes(torch.int64).unsqueeze(1), extremes(dtype).unsqueeze(0)
    assert torch.equal(ring.matmul(x, w, engine=engine), reference(x, w))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("dtype", WEIGHTS)
@pytest.mark.parametrize("shape", [(1, 500, 63), (2, 1300, 500), (63, 2100, 70), (70, 500, 300)])
def test_odd_shapes_beyond_one_block(
    engine: ring.Engine, dtype: torch.dtype, shape: tuple[int, int, int]
) -> None:
    rows, inputs, outputs = shape
    x, w = operand((rows, inputs), torch.int64, 5), operand((inputs, outputs), dtype, 6)
    expected = x @ w.to(torch.int64)
    assert torch.equal(ring.matmul(x, w, engine=engine), expected)
    assert torch.equal(ring.matmul(x, by_outputs(w), engine=engine), expected)


@pytest.mark.parametrize("engine", PREPARED)
@pytest.mark.parametrize("rows", [1, 3])
def test_sums_of_the_largest_digits_do_not_overflow(engine: digits.Engine, rows: int) -> None:
    # every digit of x and of w is -128, over more inputs than one int32 sum may take
    word = sum(-128 << (8 * i) for i in range(8)) % 2**64
    x = torch.full((rows, 40_000), word - 2**64 if word >> 63 else word, dtype=torch.int64)
    w = torch.full((40_000, 3), -(2**63), dtype=torch.int64)
    w[:, 1] = -(2**63) + 1
    assert torch.equal(ring.matmul(x, digits.prepare(w, engine)), x @ w)


@pytest.mark.parametrize("engine", PREPARED)
@given(inputs=st.integers(1, 130), outputs=st.integers(1, 70), dtype=dtypes, seed=seeds)
@settings(max_examples=20)
def test_prepared_weights_serve_any_number_of_rows(
    engine: digits.Engine, inputs: int, outputs: int, dtype: torch.dtype, seed: int
) -> None:
    w = operand((inputs, outputs), dtype, seed)
    prepared = ring.prepare(w, engine)
    for rows in (0, 1, 2, 3, 33):
        x = operand((rows, inputs), torch.int64, seed + rows)
        assert torch.equal(ring.matmul(x, prepared), x @ w.to(torch.int64))
    one = operand((inputs,), torch.int64, seed)
    assert torch.equal(ring.ring_product(one, prepared), one @ w.to(torch.int64))


@pytest.mark.parametrize("threads", [1, 2, 3, 50])
@pytest.mark.parametrize("dtype", WEIGHTS)
def test_matvec_in_both_layouts_and_with_threads(threads: int, dtype: torch.dtype) -> None:
    w = operand((63, 500), dtype, 3)
    for x in (operand((63,), torch.int64, 4), operand((7, 63), torch.int64, 5)):
        expected = x @ w.to(torch.int64)
        assert torch.equal(matvec.matvec(x, w, threads=threads), expected)
        assert torch.equal(matvec.matvec(x, by_outputs(w), threads=threads), expected)
        assert torch.equal(matvec.matvec(x, operand((63, 1000), dtype, 3)[:, ::2]),
                           x @ operand((63, 1000), dtype, 3)[:, ::2].to(torch.int64))  # fmt: skip


@given(
    batch=st.integers(0, 3),
    rows=st.integers(0, 40),
    inputs=st.integers(1, 40),
    outputs=st.integers(0, 40),
    dtype=dtypes,
    seed=seeds,
)
@settings(max_examples=40)
def test_batches(
    batch: int, rows: int, inputs: int, outputs: int, dtype: torch.dtype, seed: int
) -> None:
    x = operand((batch, rows, inputs), torch.int64, seed)
    w = operand((batch, inputs, outputs), dtype, seed)
    expected = x @ w.to(torch.int64)
    assert torch.equal(ring.bmm(x, w), expected)
    assert torch.equal(ring.bmm(x, by_outputs(w)), expected)
    four = ring.ring_product(x.unsqueeze(0), by_outputs(w.unsqueeze(0)))
    assert torch.equal(four, expected.unsqueeze(0))


def test_batches_of_many_rows_take_the_matrix_way() -> None:
    x, w = operand((2, 40, 64), torch.int64, 1), operand((2, 64, 63), torch.int16, 2)
    assert torch.equal(ring.bmm(x, w), x @ w.to(torch.int64))
    assert torch.equal(ring.bmm(x, by_outputs(w)), x @ w.to(torch.int64))


def test_leading_dimensions_and_strided_left_operands() -> None:
    x, w = operand((2, 3, 5, 63), torch.int64, 1), operand((63, 20), torch.int32, 2)
    assert torch.equal(ring.ring_product(x, w), x @ w.to(torch.int64))
    turned = operand((63, 40), torch.int64, 3).T
    for engine in ENGINES:
        product = ring.ring_product(turned, w, engine=engine)
        assert torch.equal(product, turned @ w.to(torch.int64))


@pytest.mark.parametrize(
    ("amx", "wide", "dot", "few", "many"),
    [
        (False, False, False, "torch", "torch"),
        (False, False, True, "torch", "int8"),
        (False, True, True, "panels", "panels"),
        (True, True, True, "panels", "amx"),
    ],
)
def test_choice_depends_on_the_processor_only_in_speed(
    monkeypatch: pytest.MonkeyPatch, amx: bool, wide: bool, dot: bool, few: str, many: str
) -> None:
    monkeypatch.setattr(ring, "has_amx", lambda: amx)
    monkeypatch.setattr(ring, "has_wide_product", lambda: wide)
    monkeypatch.setattr(ring, "has_int8_dot", lambda: dot)
    assert ring.choose(1, 2048, 2048, torch.int64) == "matvec"
    assert ring.choose(20, 2048, 2048, torch.int64) == few
    assert ring.choose(512, 2048, 2048, torch.int16) == many
    x, w = operand((2, 20, 64), torch.int64, 1), operand((2, 64, 63), torch.int16, 2)
    assert torch.equal(ring.bmm(x, w), x @ w.to(torch.int64))


@settings(max_examples=40)
@given(
    batch=st.integers(0, 3),
    rows=st.sampled_from([0, 1, 13, 14, 15, 29, 255]),
    inputs=st.sampled_from([0, 1, 7, 63, 520]),
    outputs=st.sampled_from([0, 1, 15, 17, 63, 500]),
    dtype=dtypes,
    seed=seeds,
    layout=st.sampled_from(["inputs", "outputs", "longer", "longer outputs", "neither"]),
    threads=st.integers(1, 3),
)
def test_batches_of_any_layout(
    batch: int,
    rows: int,
    inputs: int,
    outputs: int,
    dtype: torch.dtype,
    seed: int,
    layout: str,
    threads: int,
) -> None:
    x = operand((batch, inputs, rows), torch.int64, seed).transpose(1, 2)
    room = operand((batch, 2 * inputs + 3, 2 * outputs + 5), dtype, seed + 1)
    if layout == "neither":
        w = room[:, : 2 * inputs : 2, : 2 * outputs : 2]
    else:
        w = room[:, 2 : 2 + inputs, 1 : 1 + outputs]
        w = w.contiguous() if "longer" not in layout else w
        w = by_outputs(room)[:, 2 : 2 + inputs, 1 : 1 + outputs] if "outputs" in layout else w
    expected = x @ w.to(torch.int64)
    assert torch.equal(panels.multiply(x, w, threads), expected)
    if rows < 20:
        assert torch.equal(matvec.bmm(x, w, threads=threads), expected)


@pytest.mark.parametrize(
    ("x", "w", "said"),
    [
        (torch.zeros(2, 3), torch.zeros(3, 4, dtype=torch.int64), "torch.float32"),
        (torch.zeros(2, 3, dtype=torch.int64), torch.zeros(3, 4, dtype=torch.int8), "torch.int8"),
        (torch.zeros(2, 3, dtype=torch.int64), torch.zeros(4, 4, dtype=torch.int64), "[4, 4]"),
        (torch.zeros(2, 3, dtype=torch.int64), torch.zeros(3, dtype=torch.int64), "[3]"),
    ],
)
def test_operands_that_do_not_fit_are_refused(x: torch.Tensor, w: torch.Tensor, said: str) -> None:
    for call in (ring.matmul, ring.ring_product, matvec.matvec):
        with pytest.raises(UsageError) as error:
            call(x, w)
        assert said in str(error.value)


def test_engines_that_do_not_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w = operand((2, 3), torch.int64, 1), operand((3, 4), torch.int64, 2)
    with pytest.raises(UsageError, match="vpu"):
        ring.ring_product(x, w, engine="vpu")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="prepared for int8"):
        ring.matmul(x, ring.prepare(w, "int8"), engine="matvec")
    with pytest.raises(UsageError, match=r"\[rows, 3\]"):
        ring.matmul(x[:, :2], ring.prepare(w, "int8"))
    monkeypatch.setattr(digits, "has_amx", lambda: False)
    with pytest.raises(UsageError, match="no AMX"):
        ring.prepare(w, "amx")
    assert ring.prepare(w).engine == "int8"


def test_prepared_weights_show_no_value() -> None:
    assert repr(ring.prepare(torch.full((3, 4), 77, dtype=torch.int16), "int8")) == (
        "Prepared(int8, [3, 4], 16 bits)"
    )
