"""SPU (SecretFlow) on the operators and the decoder layer that `mpcache bench` measures.

Runs in an environment of its own (`make bench-peers`) and knows nothing of mpcache. One process a
party, loopback, FM64, every input secret. Bytes and send actions are those that SPU itself logs.
One JSON object a line on standard output.

    python benchmarks/peers/spu_peer.py [--protocols ABY3,SEMI2K] [--only TEXT] [--repeat 3]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

WORLDS = {"ABY3": 3, "SEMI2K": 2}
LINK = re.compile(r"total send bytes (\d+).*?send actions (\d+)", re.S)
HIDDEN, HEADS, WIDTH, FFN = 2048, 32, 64, 8192


def operators() -> dict[str, tuple[list[tuple[int, ...]], Callable[..., Any]]]:
    """Name, as in `mpcache bench ops`, -> shapes of its inputs and the function."""
    import jax
    import jax.numpy as jnp

    def norm(x: Any, gain: Any, bias: Any) -> Any:
        centred = x - x.mean(-1, keepdims=True)
        return centred * jax.lax.rsqrt((centred**2).mean(-1, keepdims=True) + 1e-5) * gain + bias

    def softmax(x: Any) -> Any:
        # jax.nn.softmax divides every element, which SPU pays for; one inverse a row is kinder
        e = jnp.exp(x - x.max(-1, keepdims=True))
        return e * (1.0 / e.sum(-1, keepdims=True))

    def attend(q: Any, k: Any, v: Any) -> Any:
        scores = jnp.matmul(q, jnp.swapaxes(k, 1, 2)) / 8.0
        return jnp.matmul(softmax(scores), v)

    def layer(x: Any, k: Any, v: Any, w: Any, o: Any, up: Any, down: Any, g: Any, b: Any) -> Any:
        q, key, value = jnp.split(norm(x, g, b) @ w, 3, -1)
        split = (HEADS, 1, WIDTH)
        keys = jnp.concatenate([k, key.reshape(split)], 1)
        values = jnp.concatenate([v, value.reshape(split)], 1)
        x = x + attend(q.reshape(split), keys, values).reshape(1, HIDDEN) @ o
        return x + jax.nn.relu(norm(x, g, b) @ up) @ down

    rows = (32, 1024)

    def cache(tokens: int) -> list[tuple[int, ...]]:
        return [(HEADS, tokens, WIDTH)] * 2

    found: dict[str, tuple[list[tuple[int, ...]], Callable[..., Any]]] = {
        "greater than 0, 32x1024": ([rows], lambda x: x > 0),
        "maximum over 1024, 32 rows": ([rows], lambda x: x.max(-1)),
        "exp of x <= 0, 32x1024": ([rows], jnp.exp),
        "softmax over 1024, 32 rows": ([rows], softmax),
        "top 16 of 64, 32 rows": ([(32, 64)], lambda x: jax.lax.top_k(x, 16)[1]),
        "q K^T, 32 heads, 1024 keys": (
            [(32, 1, 64), (32, 1024, 64)],
            lambda q, k: jnp.matmul(q, jnp.swapaxes(k, 1, 2)),
        ),
        "linear 1x2048x2048": ([(1, 2048), (2048, 2048)], jnp.matmul),
        "layernorm 2048": ([(1, 2048), (2048,), (2048,)], norm),
        "relu 8192": ([(1, 8192)], jax.nn.relu),
        "silu 8192": ([(1, 8192)], jax.nn.silu),
        "argmax over 50272": ([(1, 50272)], lambda x: jnp.argmax(x, -1)),
    }
    for tokens in (512, 1024):
        name = f"attention, 32 heads, T={tokens}, full"
        found[name] = ([(HEADS, 1, WIDTH), *cache(tokens)], attend)
    weights = [(HIDDEN, 3 * HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, FFN), (FFN, HIDDEN)]
    shapes = [(1, HIDDEN), *cache(1024), *weights, (HIDDEN,), (HIDDEN,)]
    found["one decoder layer, T=1024, full"] = (shapes, layer)
    return found


def inputs(shapes: list[tuple[int, ...]]) -> list[np.ndarray]:
    """Normal values; matrices over the square root of their inputs."""
    rng = np.random.default_rng(1)
    return [
        (rng.standard_normal(s) / (np.sqrt(s[0]) if len(s) == 2 and s[0] >= HIDDEN else 1)).astype(
            np.float32
        )
        for s in shapes
    ]


def party(rank: int, ports: list[int], protocol: str, name: str, repeat: int, folder: str) -> None:
    """One party: runs the operator `repeat` + 1 times and writes what it measured."""
    log = os.open(f"{folder}/log{rank}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    import spu
    from spu import libspu
    from spu.utils import frontend

    shapes, function = operators()[name]
    values = inputs(shapes)
    if name.startswith("exp of x <= 0"):
        values = [-np.abs(value) for value in values]
    kind = getattr(libspu.ProtocolKind, protocol)
    config = libspu.RuntimeConfig(protocol=kind, field=libspu.FieldType.FM64)
    config.enable_pphlo_profile = True
    names = [f"in{i}" for i in range(len(values))]
    program, _ = frontend.compile(
        frontend.Kind.JAX,
        function,
        values,
        {},
        names,
        [libspu.Visibility.VIS_SECRET] * len(values),
        lambda out: [f"out{i}" for i in range(len(out))],
    )
    description = libspu.link.Desc()
    for place, port in enumerate(ports):
        description.add_party(f"p{place}", f"127.0.0.1:{port}")
    link = libspu.link.create_brpc(description, rank)
    runtime = spu.api.Runtime(link, config)
    share_of = spu.api.Io(len(ports), config)
    # party 0 makes all shares and hands them over in a folder of this run: for timing alone
    for label, value in zip(names, values, strict=True):
        path = Path(f"{folder}/{label}")
        if rank == 0:
            pieces = share_of.make_shares(value, libspu.Visibility.VIS_SECRET)
            for place, piece in enumerate(pieces):
                meta, chunks = piece.meta, piece.share_chunks
                Path(f"{path}.{place}").write_bytes(_packed(meta, chunks))
        link.barrier()
        runtime.set_var(label, _unpacked(libspu, Path(f"{path}.{rank}").read_bytes()))
    seconds = []
    for _ in range(repeat + 1):
        link.barrier()
        began = time.perf_counter()
        runtime.run(program)
        seconds.append(time.perf_counter() - began)
    Path(f"{folder}/seconds{rank}").write_text(json.dumps(seconds[1:]))
    link.barrier()
    time.sleep(0.5)  # a peer may still wait for what this one sent last
    os._exit(0)


def _packed(meta: Any, chunks: Any) -> bytes:
    import pickle

    return pickle.dumps((meta, list(chunks)))


def _unpacked(libspu: Any, data: bytes) -> Any:
    import pickle

    meta, chunks = pickle.loads(data)  # noqa: S301  written by party 0 of this very run
    share = libspu.Share()
    share.meta, share.share_chunks = meta, chunks
    return share


def free_ports(count: int) -> list[int]:
    socks = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [sock.getsockname()[1] for sock in socks]
    for sock in socks:
        sock.close()
    return ports


def measure(protocol: str, name: str, repeat: int) -> dict[str, Any]:
    """Run all parties of one operator."""
    import spu

    world = WORLDS[protocol]
    context = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as folder:
        ports = free_ports(world)
        arguments = [(rank, ports, protocol, name, repeat, folder) for rank in range(world)]
        processes = [context.Process(target=party, args=given) for given in arguments]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        done = [Path(f"{folder}/seconds{rank}") for rank in range(world)]
        if not all(path.exists() for path in done):
            codes = [process.exitcode for process in processes]
            logs = "\n".join(Path(f"{folder}/log{r}").read_text()[-1500:] for r in range(world))
            raise SystemExit(f"{protocol}, {name}: exit codes {codes}\n{logs}")
        times = [json.loads(Path(f"{folder}/seconds{r}").read_text()) for r in range(world)]
        steps = [max(step) for step in zip(*times, strict=True)]
        logged = [LINK.findall(Path(f"{folder}/log{r}").read_text()) for r in range(world)]
    last = [found[-1] if found else None for found in logged]
    known = all(last)
    return {
        "system": f"SPU {spu.__version__}",
        "protocol": f"{protocol}, {world} parties, FM64",
        "operator": name,
        "seconds": {
            "median": statistics.median(steps),
            "min": min(steps),
            "max": max(steps),
            "count": len(steps),
        },
        "sent_bytes": [int(found[0]) for found in last if found] if known else None,
        "send_actions": max(int(found[1]) for found in last if found) if known else None,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--protocols", default="ABY3,SEMI2K")
    parser.add_argument("--only", default="", help="operators with this in their name")
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    protocols = options.protocols.split(",")
    names = [name for name in operators() if options.only in name]
    if not names or set(protocols) - set(WORLDS) or options.repeat < 1:
        parser.error(f"expected protocols of {', '.join(WORLDS)}, operators, and a repeat over 0")
    for protocol in protocols:
        for name in names:
            print(json.dumps(measure(protocol, name, options.repeat)), flush=True)
            print(f"{protocol}: {name}", file=sys.stderr)


if __name__ == "__main__":
    main()
