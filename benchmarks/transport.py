"""How fast the wires are: small exchanges and large transfers, plain against TLS, on loopback.

Two processes exchange tensors both ways at once. Prints one table; times are medians.

    python benchmarks/transport.py [--megabytes 256] [--repeats 3000]
"""

from __future__ import annotations

import argparse
import multiprocessing
import platform
import statistics
import tempfile
import time
from multiprocessing.queues import Queue
from pathlib import Path

import torch

from mpcache.parties.handshake import Hello
from mpcache.parties.local import loopback_addresses
from mpcache.parties.tls import Identity, make_keys
from mpcache.parties.transport import Address, Endpoint, Wires, connect
from mpcache.protocols.channel import Spec
from mpcache.protocols.ledger import Ledger

Row = dict[str, float]


def exchanges(wires: Wires, elements: int, repeats: int) -> float:
    """Median seconds of an exchange of `elements` int64 both ways."""
    peer = 1 - wires.rank
    tensor = torch.zeros(elements, dtype=torch.int64)
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        wires.exchange("bench", {peer: [tensor]}, {peer: [Spec((elements,))]})
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def one_way(wires: Wires, elements: int, repeats: int) -> float:
    """Median seconds for `elements` int64 from party 0 to party 1, with a byte back."""
    tensor, byte = torch.zeros(elements, dtype=torch.int64), torch.zeros(1, dtype=torch.uint8)
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        if wires.rank == 0:
            wires.exchange("out", {1: [tensor]}, {})
            wires.exchange("back", {}, {1: [Spec((1,), torch.uint8)]})
        else:
            wires.exchange("out", {}, {0: [Spec((elements,))]})
            wires.exchange("back", {0: [byte]}, {})
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def party(
    rank: int,
    addresses: tuple[Address, ...],
    identity: Identity | None,
    args: argparse.Namespace,
    rows: Queue[Row],
) -> None:
    hello = Hello("benchmark", "", "", rank, 2, "benchmark")
    elements = args.megabytes * 125_000
    with connect(Endpoint(rank, addresses, identity), hello, Ledger(rank, 2)) as wires:
        exchanges(wires, 32, 200)
        row = {
            "256 B": exchanges(wires, 32, args.repeats),
            "16 kB": exchanges(wires, 2048, args.repeats),
            "1 MB": exchanges(wires, 131_072, max(3, args.repeats // 100)),
            "both": exchanges(wires, elements, 3),
            "one": one_way(wires, elements, 3),
        }
    if rank == 0:
        rows.put(row)


def measure(identities: list[Identity] | None, args: argparse.Namespace) -> Row:
    context = multiprocessing.get_context("spawn")
    rows: Queue[Row] = context.Queue()
    addresses = loopback_addresses(2)
    processes = [
        context.Process(
            target=party,
            args=(rank, addresses, identities and identities[rank], args, rows),
            daemon=True,
        )
        for rank in range(2)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        if process.exitcode:
            raise SystemExit(f"a party ended with exit code {process.exitcode}")
    return rows.get()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--megabytes", type=int, default=256, help="size of the large transfer")
    parser.add_argument("--repeats", type=int, default=3000, help="number of small exchanges")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        identities = make_keys(Path(folder) / "keys", 2)
        rows = {"plain": measure(None, args), "TLS 1.3": measure(identities, args)}
    size = args.megabytes / 1e3
    print(f"{platform.machine()}, {multiprocessing.cpu_count()} cores, loopback, two processes\n")
    print("| | 256 B exchange | 16 kB exchange | 1 MB exchange | both ways, each | one way |")
    print("| --- | --- | --- | --- | --- | --- |")
    for name, row in rows.items():
        small = " | ".join(f"{row[key] * 1e6:.1f} us" for key in ("256 B", "16 kB", "1 MB"))
        large = " | ".join(f"{size / row[key]:.2f} GB/s" for key in ("both", "one"))
        print(f"| {name} | {small} | {large} |")


if __name__ == "__main__":
    main()
