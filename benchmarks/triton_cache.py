"""The clustered cache's kernels on a GPU, beside torch and its own attention; medians.

    python benchmarks/triton_cache.py [--tokens 1024,8192] [--keep 0.1] [--repeats 50] [--json F]

One decode step of one layer: queries of one token, keys and values stored. ``sdpa full`` attends
to every token with torch's fused attention, ``sdpa gathered`` gathers the chosen clusters first
(how a step would be written without a kernel), ``torch masked`` is the kernel's reference. Before
it is timed, each kernel is held against its reference. Times are of a GPU's events, all ways in
turns, buffers larger than its cache touched in between.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention

from mpcache.kernels import triton_cache as cache
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


def ways_of(options: argparse.Namespace, tokens: int, dtype: torch.dtype) -> dict[str, Ways]:
    """What is compared, by operation."""
    heads, group, width, size = options.heads, options.group, options.head_dim, options.size
    draw = torch.Generator("cuda").manual_seed(tokens)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=draw, device="cuda").to(dtype)

    queries = normal(heads, group, width)
    keys, values = normal(heads, tokens, width), normal(heads, tokens, width)
    clusters = tokens // size
    picks = max(1, round(options.keep * clusters))
    near = torch.rand((heads, group, clusters), generator=draw, device="cuda")
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
    }
    for name, chosen in (("attention, a choice a query head", each), ("a choice a group", shared)):
        given = queries, keys, values, chosen, size
        found[name] = {
            "kernel": lambda given=given: cache.cluster_attention(*given, scale),
            "torch masked": lambda given=given: cache.cluster_attention_reference(*given, scale),
            "sdpa gathered": lambda given=given: gathered(*given),
            "sdpa full": lambda: scaled_dot_product_attention(queries, keys, values),
        }
    return found


def check(ways: Ways) -> None:
    """The kernel against its reference."""
    got, want = ways["kernel"](), ways.get("torch", ways.get("torch masked", ways["kernel"]))()
    got, want = (x if isinstance(x, tuple) else (x,) for x in (got, want))
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, atol=2e-3, rtol=2e-3)


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
    options = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("torch sees no GPU here; this benchmark needs one")
    rows = []
    print("| operation | tokens | way | microseconds | kernel is faster by |")
    print("| --- | ---: | --- | ---: | ---: |")
    for tokens in map(int, options.tokens.split(",")):
        for name, ways in ways_of(options, tokens, getattr(torch, options.dtype)).items():
            check(ways)
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
