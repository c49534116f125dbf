"""How fast local arithmetic is, against torch's int64 in the same run; one core, medians.

    python benchmarks/kernels.py [--rows 512] [--repeats 7] [--clock cpu] [--json F] [--crossover]

Ways that are compared take turns, so that whatever else the machine does falls on all of them.
`G/s` are 10^9 multiply-adds mod 2^64 a second. ``cpu`` clocks count this process's time alone,
``wall`` what a user waits. Torch multiplies int64 only; `bits` are those of our weights.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mpcache.kernels import packing, questions
from mpcache.kernels.bits import bit_product, packed_bytes
from mpcache.kernels.panels import ROWS, WIDE, repeated_tile
from mpcache.kernels.prg import Stream
from mpcache.kernels.processor import has_amx, has_int8_dot, has_wide_product
from mpcache.kernels.ring import bmm, choose, matmul, prepare
from mpcache.report.machine import describe_machine

Row = dict[str, Any]
Ways = dict[str, Callable[[], object]]
DTYPES = {64: torch.int64, 32: torch.int32, 16: torch.int16}
CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def medians(ways: Ways, repeats: int, clock: str) -> dict[str, float]:
    """Median seconds of each way, taken in turns after one run that warms up."""
    now = CLOCKS[clock]
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, way in ways.items():
            began = now()
            way()
            if turn:
                seconds[name].append(now() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def weights(inputs: int, outputs: int, bits: int) -> torch.Tensor:
    """Uniform weights [inputs, outputs] of the whole width."""
    return Stream(bytes(16), bits).bits((inputs, outputs), bits, DTYPES[bits])


def turned(w: torch.Tensor) -> torch.Tensor:
    """The same matrix stored by outputs."""
    return w.transpose(-1, -2).contiguous().transpose(-1, -2)


def rows_of(case: str, work: int, seconds: dict[str, float], bits: int) -> list[Row]:
    """Table rows: each way, its speed, and how many times faster than each of torch's it is."""
    baselines = {name: value for name, value in seconds.items() if name.startswith("torch")}
    return [
        {
            "case": case,
            "bits": bits,
            "way": name,
            "milliseconds": value * 1e3,
            "g_per_second": work / value / 1e9,
        }
        | {f"times {way}": baseline / value for way, baseline in baselines.items()}
        for name, value in seconds.items()
    ]


def torch_ways(x: torch.Tensor, w: torch.Tensor) -> Ways:
    """torch's int64 product in both layouts: it has no other dtype for 64-bit sums.

    ``x @ w`` has w stored [inputs, outputs]. ``x @ W.t()`` has W stored [outputs, inputs], as
    torch.nn.Linear and CrypTen's Linear keep their weights and multiply with them.
    """
    by_inputs = w.to(torch.int64)
    by_outputs = turned(by_inputs)
    return {"torch x @ w": lambda: x @ by_inputs, "torch x @ W.t()": lambda: x @ by_outputs}


def matrix_vector(inputs: int, outputs: int, options: argparse.Namespace) -> list[Row]:
    """One row times a matrix, in both layouts; torch also as matrix times vector."""
    x, found = Stream(bytes(16)).ring((1, inputs)), []
    for bits in DTYPES:
        w = weights(inputs, outputs, bits)
        by_outputs = turned(w)
        upright, vector = by_outputs.t().to(torch.int64), x[0]
        ways = torch_ways(x, w) | {
            "torch mv": lambda w=upright, v=vector: torch.mv(w, v),
            "ours, w": lambda x=x, w=w: matmul(x, w, threads=options.threads),
            "ours, W.t()": lambda x=x, w=by_outputs: matmul(x, w, threads=options.threads),
        }
        seconds = medians(ways, options.repeats, options.clock)
        found += rows_of(f"1x{inputs}x{outputs}", inputs * outputs, seconds, bits)
    return found


def matrix_matrix(
    rows: int, inputs: int, outputs: int, options: argparse.Namespace, prepared: bool = False
) -> list[Row]:
    """Many rows in both layouts; `prepared` also every engine of digits, cut once and anew."""
    x, found = Stream(bytes(16)).ring((rows, inputs)), []
    for bits in DTYPES:
        w = weights(inputs, outputs, bits)
        by_outputs = turned(w)
        ways = torch_ways(x, w) | {
            "ours, w": lambda x=x, w=w: matmul(x, w, threads=options.threads),
            "ours, W.t()": lambda x=x, w=by_outputs: matmul(x, w, threads=options.threads),
        }
        for engine in (("amx", "int8") if has_amx() else ("int8",)) if prepared else ():
            ready = prepare(w, engine)
            ways[f"{engine} prepared"] = lambda x=x, w=ready: matmul(x, w)
            ways[engine] = lambda x=x, w=w, engine=engine: matmul(x, w, engine=engine)
        seconds = medians(ways, max(3, options.repeats // 2), options.clock)
        case = f"{rows}x{inputs}x{outputs}"
        if bits == 64:
            case += f" ({choose(rows, inputs, outputs, DTYPES[bits])})"
        found += rows_of(case, rows * inputs * outputs, seconds, bits)
    return found


def roof(options: argparse.Namespace) -> list[Row]:
    """What a core multiplies and adds at most: one tile again and again, nothing to fetch."""
    if not has_wide_product():
        return []
    depth, turns = 64, 20_000
    left, right = Stream(bytes(16)).ring((depth, ROWS)), Stream(bytes(16)).ring((depth, WIDE))
    sums = torch.zeros(ROWS, WIDE, dtype=torch.int64)
    places = [part.data_ptr() for part in (left, right, sums)]
    ways: Ways = {"one tile": lambda: repeated_tile(turns, depth, *places)}
    seconds = medians(ways, options.repeats, options.clock)["one tile"]
    work = turns * depth * ROWS * WIDE
    row = {"case": "roof, no memory", "bits": 64, "way": "one tile"}
    return [row | {"milliseconds": seconds * 1e3, "g_per_second": work / seconds / 1e9}]


def attention(options: argparse.Namespace) -> list[Row]:
    """Queries of 32 heads against 700 cached tokens of a room for 1,024, and back."""
    found = []
    for rows in (1, 4, 128):
        for inputs, outputs in ((64, 700), (700, 64)):
            x = Stream(bytes(16)).ring((32, rows, inputs))
            tokens = Stream(bytes(16), 1).ring((32, 1024, 64))[:, :700]
            w = tokens.transpose(1, 2) if inputs == 64 else tokens
            ways: Ways = {
                "torch x @ w": lambda x=x, w=w: x @ w,
                "ours, w": lambda x=x, w=w: bmm(x, w),
            }
            seconds = medians(ways, options.repeats, options.clock)
            work = 32 * rows * inputs * outputs
            found += rows_of(f"32 of {rows}x{inputs}x{outputs}", work, seconds, 64)
    return found


def digit_tables(options: argparse.Namespace) -> list[Row]:
    """Six questions of 4 bits each, the first step of a comparison on 24 bits; dense packing.

    `g_per_second` are 10^9 elements a second; torch takes a pass for each shift, AND and XOR.
    """
    found, count_of, width = [], 6, 4
    asked = np.array([(width * d, width, -1, 2, d > 0) for d in range(count_of)], dtype=np.int64)
    for count in (500, 20_000):
        stream = Stream(bytes(16))
        y = stream.bits(count, 24, torch.int32).to(torch.int64)
        tables = [stream.bits(count, 16, torch.int16) for _ in range(count_of)]

        def passes(y: Any = y, tables: Any = tables) -> torch.Tensor:
            rows = []
            for d, table in enumerate(tables):
                word = table.to(torch.int64)
                word = word ^ word << 1 ^ 1 if d else word
                rows.append((word >> (y >> (width * d) & 15) & 1).to(torch.uint8))
            return torch.stack(rows)

        def fused(y: Any = y, tables: Any = tables) -> torch.Tensor:
            bits = torch.empty((count_of, len(y)), dtype=torch.uint8)
            questions.answers(y, asked, tables, 0, bits)
            return bits

        assert torch.equal(passes(), fused())
        ways: Ways = {
            "torch": passes,
            "answers": fused,
            "pack_bits": lambda y=y: packing.pack_bits(y, 24),
        }
        seconds = medians(ways, 10 * options.repeats, options.clock)
        found += rows_of(f"{count} comparisons", count, seconds, 24)
    return found


def chosen_rows(options: argparse.Namespace) -> list[Row]:
    """Bits for each entry of a vocabulary times its embedding; the same as ring elements."""
    vocab, outputs, found = 49152, 576, []
    for rows in (1, 81, 256):
        packed = Stream(bytes(16)).bits((rows, packed_bytes(vocab)), 8)
        dense = ((packed.unsqueeze(-1) >> torch.arange(8)) & 1).reshape(rows, -1).to(torch.int64)
        for bits in DTYPES:
            w = weights(vocab, outputs, bits)
            ways: Ways = {
                "ring product": lambda x=dense, w=w: matmul(x, w),
                "bit product": lambda x=packed, w=w: bit_product(x, w),
            }
            seconds = medians(ways, max(1, options.repeats // 2), options.clock)
            for way, value in seconds.items():
                row: Row = {"case": f"{rows}x{vocab}x{outputs} of bits", "bits": bits, "way": way}
                row |= {"milliseconds": value * 1e3}
                found.append(row | {"times_ring_product": seconds["ring product"] / value})
    return found


def streams(options: argparse.Namespace) -> list[Row]:
    """Ring elements from a seed; here `g_per_second` is gigabytes a second."""
    stream, size, found = Stream(bytes(16)), 32 << 20, []
    for bits in (64, 20, 11, 4):
        count = size // stream.bits(1, bits).itemsize
        ways: Ways = {"stream": lambda bits=bits, count=count: stream.bits(count, bits)}
        seconds = medians(ways, options.repeats, options.clock)["stream"]
        row = {"case": "stream, GB/s", "bits": bits, "way": "stream"}
        found.append(row | {"milliseconds": seconds * 1e3, "g_per_second": size / seconds / 1e9})
    return found


def crossover(options: argparse.Namespace) -> list[Row]:
    """Every way for more and more rows, cutting the weights counted: what `choose` is made of."""
    side, found = 2048, []
    engines = ["matvec", "torch"] + ["panels"] * has_wide_product()
    engines += ["int8"] * has_int8_dot() + ["amx"] * has_amx()
    for bits, dtype in DTYPES.items():
        w = weights(side, side, bits)
        for rows in (1, 4, 8, 12, 16, 32, 64, 128, 256):
            x = Stream(bytes(16)).ring((rows, side))
            ways: Ways = {
                engine: lambda x=x, w=w, engine=engine: matmul(x, w, engine=engine)
                for engine in engines
            }
            seconds = medians(ways, 3, options.clock)
            best, chosen = min(seconds, key=seconds.__getitem__), choose(rows, side, side, dtype)
            row: Row = {"bits": bits, "rows": rows, "best": best, "chosen": chosen}
            found.append(row | {name: value * 1e3 for name, value in seconds.items()})
    return found


def show(rows: list[Row]) -> None:
    """Print rows as a table, a column for each key."""
    keys = list(rows[0])
    lines = [[_cell(row.get(key, "")) for key in keys] for row in rows]
    widths = [max(len(line[i]) for line in [keys, *lines]) for i in range(len(keys))]
    for line in [keys, *lines]:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


def _cell(value: object) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


OPT = ((2048, 2048), (2048, 8192), (8192, 2048))  # OPT-1.3B's matrices
SMOLLM2 = ((576, 576), (576, 192), (576, 1536), (1536, 576))  # SmolLM2-135M's
PARTS: tuple[Callable[[argparse.Namespace], list[Row]], ...] = (
    *(functools.partial(matrix_vector, *shape) for shape in (*OPT, *SMOLLM2)),
    lambda options: matrix_matrix(options.rows, 2048, 2048, options, prepared=True),
    roof,
    *(functools.partial(matrix_matrix, 128, *shape) for shape in (*OPT, *SMOLLM2)),
    attention,
    digit_tables,
    chosen_rows,
    streams,
)


def main() -> None:
    """Measure, print, and write JSON when asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])  # type: ignore[union-attr]
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1, help="of ours; torch uses as many")
    parser.add_argument("--clock", choices=sorted(CLOCKS), default="wall")
    parser.add_argument("--crossover", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    machine = describe_machine() | {"amx": has_amx(), "int8_dot": has_int8_dot()}
    machine["wide_product"] = has_wide_product()
    print(
        f"{machine['cpu']}, {options.threads} thread, torch {machine['torch']}, AMX {has_amx()}, "
        f"AVX-512DQ {has_wide_product()}, {options.clock} clock"
    )
    if options.crossover:
        rows = crossover(options)
        show(rows)
    else:
        rows = []
        for part in PARTS:
            table = part(options)
            if table:
                show(table)
            rows += table
    if options.json:
        result = {"machine": machine, "clock": options.clock, "rows": rows}
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
