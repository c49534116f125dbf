"""The clustered cache's kernels on a GPU, beside torch and its own attention; medians.

    python benchmarks/triton_cache.py [--tokens 1024,8192] [--keep 0.1] [--repeats 50] [--json F]
    TRITON_INTERPRET=1 python benchmarks/triton_cache.py --check --tokens 64 --heads 2 --head-dim 16

One decode step of one layer: queries of one token, keys and values stored. ``sdpa full`` attends
to every token with torch's fused attention, ``sdpa gathered`` gathers the chosen clusters first
(how a step would be written without a kernel), ``torch masked`` is the kernel's reference. ``a
step`` is all that the twin does in one, by kernels and by the text that every machine reads.
Before it is timed, each way is held against the others. Times are of a GPU's events, all ways in
turns, buffers larger than its cache touched in between. ``--check`` times nothing, and takes the
CPU where there is no GPU: then Triton has to interpret.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from mpcache.eviction.mpcache import MANY, MPCache, MPCacheCache
from mpcache.kernels import triton_cache as cache
from mpcache.kernels.triton_choose import choose, choose_reference
from mpcache.models.spec import ModelSpec
from mpcache.protocols.operation import PlainMachine
from mpcache.protocols.setting import Setting
from mpcache.report.machine import describe_machine

Ways = dict[str, Callable[[], Any]]
FLUSH_BYTES = 1 << 28


def medians(ways: Ways, repeats: int) -> dict[str, float]:
    """Median seconds of each way, after three runs that compile and warm up."""
    flush = torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda")
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 3):
        for name, way in ways.items():
            flush.zero_()
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            begin.record()
            way()
            end.record()
            torch.cuda.synchronize()
            if turn >= 3:
                seconds[name].append(begin.elapsed_time(end) / 1e3)
    return {name: statistics.median(values) for name, values in seconds.items()}


def gathered(
    queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, chosen: torch.Tensor,
    size: int,
) -> torch.Tensor:  # fmt: skip
    """Attention over gathered clusters; every cluster is whole."""
    heads, group, width = queries.shape
    choosers, picks = chosen.shape[1:]
    places = (chosen[..., None] * size + torch.arange(size, device=chosen.device)).flatten(2)
    index = places.flatten(1)[..., None].expand(-1, -1, width)
    shape = (heads * choosers, picks * size, width)
    near, far = (x.gather(1, index).reshape(shape) for x in (keys, values))
    rows = queries.reshape(heads * choosers, group // choosers, width)
    return scaled_dot_product_attention(rows, near, far).reshape(heads, group, width)


def ways_of(options: argparse.Namespace, tokens: int, device: str) -> dict[str, Ways]:
    """What is compared, by operation."""
    heads, group, width, size = options.heads, options.group, options.head_dim, options.size
    draw, dtype = torch.Generator(device).manual_seed(tokens), getattr(torch, options.dtype)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw, device=device).to(dtype)

    queries = normal(heads, group, width)
    keys, values = normal(heads, tokens, width), normal(heads, tokens, width)
    clusters = tokens // size
    picks = max(1, round(options.keep * clusters))
    near = torch.rand((heads, group, clusters), generator=draw, device=device)
    each = near.topk(picks).indices
    shared = each[:, :1].contiguous()
    scale = width**-0.5
    mean = cache.summaries(keys, size)[2]
    found: dict[str, Ways] = {
        "summaries": {
            "kernel": lambda: cache.summaries(keys, size),
            "torch": lambda: cache.summaries_reference(keys, size),
        },
        "similarities": {
            "kernel": lambda: cache.similarities(queries, mean),
            "torch": lambda: cache.similarities_reference(queries, mean),
        },
        "choice": {
            "kernel": lambda: choose(queries, mean, picks),
            "torch": lambda: choose_reference(queries, mean, picks),
            "torch topk": lambda: cache.similarities_reference(queries, mean).topk(picks).indices,
        },
    }
    for name, chosen in (("attention, a choice a query head", each), ("a choice a group", shared)):
        given = queries, keys, values, chosen, size
        found[name] = {
            "kernel": lambda given=given: cache.cluster_attention(*given, scale),
            "torch masked": lambda given=given: cache.cluster_attention_reference(*given, scale),
            "sdpa gathered": lambda given=given: gathered(*given),
            FULL: lambda: scaled_dot_product_attention(queries, keys, values),
        }
    found["a step"] = step_of(options, queries, keys, values)
    return found


FULL = "sdpa full"


def step_of(
    options: argparse.Namespace, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor
) -> Ways:
    """Choice and attention of one layer, its summaries known but for the newest cluster."""
    heads, group, width = queries.shape
    spec = ModelSpec(
        "one-layer", "llama", layers=1, hidden=heads * group * width, heads=heads * group,
        kv_heads=heads, head_dim=width, ffn=1, vocab=1, context=keys.shape[1], norm="rms",
        norm_eps=1e-5,
    )  # fmt: skip
    sizes = (options.size, options.size)
    policy = MPCache(clusters=sizes, dynamic_keep=options.keep, most_clusters=MANY)
    cache_, machine = MPCacheCache(spec, policy, True), PlainMachine(Setting(), keys.device)
    cache_.keys[0], cache_.values[0] = keys, values
    pages, choice = cache_.pages, policy.choice(keys.shape[1])
    assert pages is not None
    return {
        "kernel": lambda: pages.attend(0, queries, keys, values, choice),
        "text": lambda: cache_.step(machine, 0, queries.unsqueeze(2)).squeeze(2),
        FULL: lambda: scaled_dot_product_attention(queries, keys, values),
    }


def check(operation: str, ways: Ways, dtype: str) -> None:
    """Every way against the kernel, but for full attention, which is another result.

    A choice is compared as a set, since near ties may be ranked either way. In half precision the
    text's step adds up in half precision too, and may choose others: it is not compared.
    """
    got = listed(ways["kernel"]())
    for name, way in ways.items():
        if name == FULL or (name == "text" and dtype != "float32"):
            continue
        for one, other in zip(got, listed(way()), strict=True):
            if operation == "choice":
                one, other = one.sort().values, other.sort().values
            torch.testing.assert_close(one, other.to(one.dtype), atol=2e-3, rtol=2e-3)


def listed(value: Any) -> list[torch.Tensor]:
    return list(value) if isinstance(value, tuple) else [value]


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).split("\n")[0])
    parser.add_argument("--tokens", default="1024,8192,32768", help="stored tokens, with commas")
    parser.add_argument("--heads", type=int, default=8, help="key/value heads")
    parser.add_argument("--group", type=int, default=4, help="query heads each")
    parser.add_argument("--head-dim", type=int, default=128)
    parser.add_argument("--size", type=int, default=16, help="tokens of a cluster")
    parser.add_argument("--keep", type=float, default=0.1, help="share of clusters attended to")
    parser.add_argument("--dtype", choices=("float32", "float16", "bfloat16"), default="float16")
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--check", action="store_true", help="compare the ways, time nothing")
    options = parser.parse_args()
    there = torch.cuda.is_available()
    if not there and not (options.check and os.environ.get("TRITON_INTERPRET") == "1"):
        parser.error(
            "torch sees no GPU here; this benchmark needs one (or --check and TRITON_INTERPRET=1)"
        )
    device, sizes = "cuda" if there else "cpu", [int(t) for t in options.tokens.split(",")]
    if options.check:
        for tokens in sizes:
            for name, ways in ways_of(options, tokens, device).items():
                check(name, ways, options.dtype)
        print("equal")
        return
    rows = []
    print("| operation | tokens | way | microseconds | kernel is faster by |")
    print("| --- | ---: | --- | ---: | ---: |")
    for tokens in sizes:
        for name, ways in ways_of(options, tokens, device).items():
            check(name, ways, options.dtype)
            seconds = medians(ways, options.repeats)
            for way, value in seconds.items():
                ratio = value / seconds["kernel"]
                print(f"| {name} | {tokens:,} | {way} | {value * 1e6:.1f} | {ratio:.2f} |")
                rows.append({"operation": name, "tokens": tokens, "way": way, "seconds": value})
    machine = {**describe_machine(), "gpu": torch.cuda.get_device_name()}
    print(
        f"\n{options.heads} heads, {options.group} queries each, head_dim {options.head_dim},"
        f" clusters of {options.size}, {options.keep:.0%} of them, {options.dtype};"
        f" medians of {options.repeats} on {machine['gpu']}, torch {machine['torch']}."
    )
    if options.json:
        shown = {name: value for name, value in vars(options).items() if name != "json"}
        content = {"machine": machine, "options": shown, "rows": rows}
        options.json.write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
