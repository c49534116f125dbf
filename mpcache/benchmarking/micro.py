"""How fast this machine multiplies ring matrices by shape, and exchanges frames by size."""

from __future__ import annotations

import itertools
import multiprocessing
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from mpcache.errors import MpcacheError
from mpcache.fitting import nonnegative
from mpcache.heap import free_at_once, keep_pages
from mpcache.kernels.prg import SEED_BYTES, Stream
from mpcache.kernels.ring import ring_product
from mpcache.parties.dealing import CHUNK
from mpcache.parties.handshake import Hello
from mpcache.parties.local import loopback_addresses
from mpcache.parties.tls import Identity, make_keys
from mpcache.parties.transport import Endpoint, Wires, connect
from mpcache.protocols.channel import Spec
from mpcache.protocols.ledger import Ledger
from mpcache.speeds import Grid, Kernels, Wire

ROWS = (1, 3, 8, 16, 64, 256)
INPUTS = OUTPUTS = (64, 256, 1024, 4096)
TORCH_ROWS = (1, 8, 64)
MOST = 600_000_000  # multiply-adds of one product; larger ones go at the speed of fewer rows
LEAST = 3e-11  # seconds a multiply-add: where the call is all that can be measured
COLD = 96_000_000  # bytes of right sides in turn, so that none is in a cache
MOST_COPIES = 64
REPEATS = 5
MASK = 1 << 26  # bytes of a weight's mask
WORK, ALONE = 4096, 3000  # elements of a small operation, and how many are made alone
TINY = 8  # rows, inputs and outputs of a product with next to nothing to do
BATCH, ENOUGH = 32, 500_000  # products at once at most, and operands from which one is enough
SIZES = (8, 4_096, 65_536, 1_048_576, 4_194_304)  # bytes of a frame
EXCHANGES = 300
PAIRS = 3  # of processes that keep pages, and as many of such that do not

Row = tuple[float, float, float]  # bytes, seconds, busy seconds of an exchange
Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
Axes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


def measure_kernels(axes: Axes = (ROWS, INPUTS, OUTPUTS)) -> Kernels:
    """Processor seconds of ring products, on right sides that are in no cache."""
    rows, inputs, outputs = axes
    few = tuple(row for row in TORCH_ROWS if row <= rows[-1])
    return Kernels(
        measure_grid(ring_product, rows, inputs, outputs),
        measure_grid(ring_product, rows, inputs, outputs, by_outputs=True),
        measure_grid(ring_product, rows, inputs, outputs, dtype=torch.int16),
        measure_grid(torch.matmul, few, inputs, outputs),
        _measure_expanding(),
    )


def measure_grid(
    product: Product,
    rows: Sequence[int],
    inputs: Sequence[int],
    outputs: Sequence[int],
    by_outputs: bool = False,
    dtype: torch.dtype = torch.int64,
) -> Grid:
    """Seconds a multiply-add at every shape of the grid, and what a call costs besides.

    Args:
        by_outputs, dtype: how the right side lies in memory.
    """

    def right(shape: tuple[int, ...], copies: int) -> list[torch.Tensor]:
        *batch, inputs, outputs = shape
        if not by_outputs:
            return [_ring(shape, dtype) for _ in range(copies)]
        turned = *batch, outputs, inputs
        return [_ring(turned, dtype).transpose(-1, -2) for _ in range(copies)]

    torch.set_num_threads(1)
    call = _seconds(product, (TINY,), right((TINY, TINY), 1), 5 * REPEATS)
    found: dict[tuple[int, int, int], float] = {}
    for k, n in itertools.product(inputs, outputs):
        batch = max(1, min(BATCH, ENOUGH // (k * n)))  # small ones come by the dozen, as heads do
        copies = max(1, min(MOST_COPIES, COLD // (dtype.itemsize * batch * k * n)))
        operands, rate = right((batch, k, n), copies), None
        for row in rows:
            adds = batch * row * k * n
            if rate is None or adds <= MOST:
                spent = _seconds(product, (batch, row), operands)
                rate = max((spent - call) / adds, LEAST)
            found[row, k, n] = rate
    rates = tuple(tuple(tuple(found[r, k, n] for n in outputs) for k in inputs) for r in rows)
    return Grid(tuple(rows), tuple(inputs), tuple(outputs), rates, call)


def _ring(shape: tuple[int, ...], dtype: torch.dtype = torch.int64) -> torch.Tensor:
    most = torch.iinfo(dtype).max >> 1
    return torch.randint(-most, most, shape, dtype=dtype)


def _seconds(
    product: Product,
    left: tuple[int, ...],
    right: Sequence[torch.Tensor],
    repeats: int = REPEATS,
) -> float:
    """The median of products with one right side after the other."""
    x = _ring((*left, right[0].shape[-2]))
    product(x, right[0])
    times = []
    for turn in range(repeats):
        began = time.process_time()
        product(x, right[(turn + 1) % len(right)])
        times.append(time.process_time() - began)
    return statistics.median(times)


def _measure_expanding() -> float:
    """Processor seconds for a byte of a weight's mask, expanded from a seed."""
    stream, times = Stream(bytes(SEED_BYTES)), []
    for _ in range(REPEATS):
        began = time.process_time()
        stream.ring((MASK // 8,))
        times.append(time.process_time() - began)
    return statistics.median(times) / MASK


# --- exchanges -----------------------------------------------------------------------------------


def measure_wires(sizes: Sequence[int] = SIZES, exchanges: int = EXCHANGES) -> tuple[Wire, Wire]:
    """Exchanges of two processes of this host, over plain TCP and over TLS."""
    with tempfile.TemporaryDirectory(prefix="mpcache-") as folder:
        keys = make_keys(Path(folder) / "keys", 2, days=1)
        plain = _wire([None, None], sizes, exchanges)
        return plain, _wire(list(keys), sizes, exchanges)


def _wire(identities: list[Identity | None], sizes: Sequence[int], exchanges: int) -> Wire:
    """Between pairs of processes that keep pages and pairs that map them anew: in a run it goes one
    way or the other for a process's whole life, and a byte takes half as long again."""
    pairs = [
        _pair(identities, sizes, exchanges, pages)
        for _ in range(PAIRS)
        for pages in (keep_pages, free_at_once)
    ]
    rows = [_mean(same) for same in zip(*(rows for rows, _ in pairs), strict=True)]
    sent, taken = (statistics.mean(column) for column in zip(*(w for _, w in pairs), strict=True))
    return fit_wire(rows, sent, taken)


def _mean(rows: Sequence[Row]) -> Row:
    size, seconds, busy = (statistics.mean(column) for column in zip(*rows, strict=True))
    return size, seconds, busy


def _pair(
    identities: list[Identity | None],
    sizes: Sequence[int],
    exchanges: int,
    pages: Callable[[], bool],
) -> tuple[list[Row], tuple[float, float]]:
    """Two processes' exchanges by size, of the end that took longer; what frames that go one way
    take at either end."""
    addresses = loopback_addresses(2)
    context = multiprocessing.get_context("fork")
    ends, processes = [], []
    for rank in range(2):
        near, far = context.Pipe(duplex=False)
        endpoint = Endpoint(rank, addresses, identities[rank])
        process = context.Process(
            target=_end, args=(endpoint, sizes, exchanges, pages, far), daemon=True
        )
        process.start()
        far.close()
        ends.append(near)
        processes.append(process)
    try:
        rows, ways = zip(*(end.recv() for end in ends), strict=True)
    except EOFError:
        raise MpcacheError("the exchanges could not be measured: a process ended") from None
    finally:
        for process in processes:
            process.join()
    return [max(pair) for pair in zip(*rows, strict=True)], ways


def _end(
    endpoint: Endpoint,
    sizes: Sequence[int],
    exchanges: int,
    pages: Callable[[], bool],
    out: Any,
) -> None:
    """One end of the wire: sends (bytes, seconds, busy seconds) of an exchange of each size, and
    its busy seconds a byte of frames that go one way."""
    torch.set_num_threads(1)
    pages()
    hello = Hello("micro", "", "", endpoint.rank, 2, "micro")
    with connect(endpoint, hello, Ledger(endpoint.rank, 2)) as wires:
        rows = [(size, *_exchanged(wires, size, exchanges)) for size in sizes]
        out.send((rows, _one_way(wires, max(2, exchanges // 2))))


def _exchanged(wires: Wires, size: int, exchanges: int) -> tuple[float, float]:
    """Seconds and busy seconds of an exchange: the lower quartile, and the mean."""
    frame, peer = torch.zeros(size, dtype=torch.uint8), 1 - wires.rank
    count = max(5, min(exchanges, exchanges * 65_536 // size))
    seconds = []
    for turn in range(count + 3):
        if turn == 3:
            busy = time.process_time()
        began = time.perf_counter()
        wires.exchange("micro", {peer: [frame]}, {peer: [Spec.of(frame)]})
        seconds.append(time.perf_counter() - began)
    spent = (time.process_time() - busy) / count
    return statistics.quantiles(seconds[3:], n=4)[0], spent


def _one_way(wires: Wires, frames: int) -> float:
    """Busy seconds a byte at this end while party 0 sends frames as a dealer does, and party 1
    takes them in a thread beside its own work, whose interpreter both need."""
    if wires.rank == 0:
        frame = torch.zeros(CHUNK, dtype=torch.uint8)
        began = time.process_time()
        for _ in range(frames):
            wires.exchange("micro", {1: [frame]}, {})
        return (time.process_time() - began) / (frames * CHUNK)

    def take() -> None:
        for _ in range(frames):
            wires.exchange("micro", {}, {0: [Spec((CHUNK,), torch.uint8)]})

    work = torch.arange(WORK)
    began = time.process_time()
    for _ in range(ALONE):
        work * work
    alone = (time.process_time() - began) / ALONE
    thread, count, began = threading.Thread(target=take), 0, time.process_time()
    thread.start()
    while thread.is_alive():
        work * work
        count += 1
    return max(0.0, time.process_time() - began - count * alone) / (frames * CHUNK)


def fit_wire(rows: Sequence[Row], sent_busy: float, taken_busy: float) -> Wire:
    """Lines through (bytes, seconds, busy seconds), by relative error; the rest is as measured."""
    lines = [_line([(size, row[place]) for size, *row in rows]) for place in (0, 1)]
    (seconds, each), (busy, busy_each) = lines
    return Wire(seconds, each, busy, busy_each, sent_busy, taken_busy)


def _line(points: Sequence[tuple[float, float]]) -> Iterator[float]:
    sizes, values = (
        torch.tensor(column, dtype=torch.float64) for column in zip(*points, strict=True)
    )
    scaled = torch.stack([torch.ones_like(sizes), sizes], 1) / values.unsqueeze(1)
    return map(float, nonnegative(scaled.numpy(), torch.ones_like(values).numpy()))
