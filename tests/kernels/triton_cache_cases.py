"""Run the cache's kernels against their references; says ``equal`` at the end.

A program of its own, since Triton reads ``TRITON_INTERPRET`` when it is first imported.

    python -m tests.kernels.triton_cache_cases cpu|cuda
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import torch

from mpcache.kernels import triton_cache as cache
from mpcache.kernels import triton_choose

# kv_heads, group, tokens, head_dim, size
SHAPES = [(3, 3, 63, 20, 16), (1, 1, 500, 64, 16), (2, 4, 33, 7, 5), (2, 17, 16, 33, 16),
          (1, 2, 1, 16, 32), (2, 1, 129, 1, 1)]  # fmt: skip
POISON = float("nan")
GUARD = 12345.0


def guarded(shape: torch.Size, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """A poisoned buffer between two guards, and all of it."""
    count = shape.numel()
    every = torch.full((count + 32,), GUARD, device=device)
    inner = every[16 : 16 + count]
    inner.fill_(POISON)
    return inner.view(shape), every


def check(run: Callable[[Any], Any], want: torch.Tensor, device: str, bound: float) -> None:
    out, every = guarded(want.shape, device)
    run(out)
    assert float((out.cpu() - want.cpu()).abs().max()) <= bound, (want.shape, out, want)
    assert (every[:16] == GUARD).all() and (every[-16:] == GUARD).all()


def pages(generator: torch.Generator, heads: int, choosers: int, clusters: int, picks: int) -> Any:
    """Different clusters for each chooser, in any order; the last place of each may be empty."""
    rows = [
        torch.randperm(clusters, generator=generator)[:picks] for _ in range(heads * choosers)
    ]  # fmt: skip
    chosen = torch.stack(rows).reshape(heads, choosers, picks)
    if picks > 1:
        chosen[0, 0, -1] = -1
    return chosen


def one_shape(shape: tuple[int, ...], dtype: torch.dtype, device: str, seed: int) -> None:
    heads, group, tokens, width, size = shape
    generator = torch.Generator().manual_seed(seed)

    def draw(*sides: int) -> torch.Tensor:
        return torch.randn(sides, generator=generator).to(dtype).to(device)

    # keys and values side by side: rows that do not lie close together
    both = draw(heads, tokens, 2 * width)
    keys, values, queries = both[..., :width], both[..., width:], draw(heads, group, width)
    want = cache.summaries_reference(keys, size)
    for place in range(3):

        def summarise(out: torch.Tensor, place: int = place) -> None:
            others = [torch.empty_like(part) for part in want]
            others[place] = out
            cache.summaries(keys, size, (others[0], others[1], others[2]))

        check(summarise, want[place], device, 0.0 if place < 2 else 1e-6)
    near = cache.similarities_reference(queries, want[2])
    check(lambda out: cache.similarities(queries, want[2], out), near, device, 1e-4)
    clusters = want[0].shape[1]
    # a part of the summaries, as a cache without its first and last cluster has them
    inner = want[2][:, 1:] if clusters > 1 else want[2]
    for choosers, count in ((1, 1), (group, max(1, clusters // 2)), (group, inner.shape[1])):
        check_choice(queries[:, :choosers], inner, min(count, inner.shape[1]), device)
    for choosers in {1, group}:
        for picks in {1, max(1, clusters // 2), clusters}:
            chosen = pages(generator, heads, choosers, clusters, picks).to(device)
            given = queries, keys, values, chosen, size, 0.3
            expected = cache.cluster_attention_reference(*given)
            check(lambda out, given=given: cache.cluster_attention(*given, out), expected, device,
                  1e-5)  # fmt: skip


def check_choice(queries: torch.Tensor, summary: torch.Tensor, picks: int, device: str) -> None:
    """Each chooser's clusters in falling order of similarity, none of the others before them.

    Similarities are those of the reference, to 1e-4: near ties may stand in either order.
    """
    near = cache.similarities_reference(queries, summary)
    shape = (*near.shape[:2], picks)
    every = torch.full((near[..., :1].numel() * picks + 32,), 12345, dtype=torch.int32)
    every = every.to(device)
    out = every[16:-16].view(shape)
    out.fill_(1 << 30)
    triton_choose.choose(queries, summary, picks, out)
    assert (every[:16] == 12345).all() and (every[-16:] == 12345).all()
    assert out.min() >= 0 and out.max() < summary.shape[1], out
    assert all(len(set(row.tolist())) == picks for row in out.flatten(0, 1))
    best = near.sort(dim=-1, descending=True).values[..., :picks]
    assert float((near.gather(-1, out.long()) - best).abs().max()) <= 1e-4


def ties(device: str) -> None:
    """Of equal clusters the earlier is ahead, in the kernel as in the reference."""
    for clusters in (3, 64, 127, 200):
        summary = torch.ones(2, clusters, 4, device=device)
        summary[:, clusters // 2] = 2
        queries = torch.ones(2, 1, 4, device=device)
        want = [clusters // 2, *(i for i in range(clusters) if i != clusters // 2)][:3]
        for way in (triton_choose.choose, triton_choose.choose_reference):
            assert way(queries, summary, 3).tolist() == [[want]] * 2, (clusters, way)


def extremes(device: str) -> None:
    """Scores of hundreds do not overflow, and nothing chosen gives 0."""
    keys = torch.full((1, 32, 16), 30.0, device=device)
    keys[:, ::2] *= -1
    values = torch.arange(32.0, device=device)[None, :, None].expand(1, 32, 16).contiguous()
    chosen = torch.tensor([[[1, 0]]], device=device)
    got = cache.cluster_attention(keys[:, 1:2], keys, values, chosen, 16)
    assert torch.allclose(got.cpu(), torch.full((1, 1, 16), 16.0)), got
    nothing = cache.cluster_attention(keys[:, 1:2], keys, values, chosen * 0 - 1, 16)
    assert (nothing == 0).all()


def main(device: str) -> None:
    for seed, shape in enumerate(SHAPES):
        for dtype in (torch.float32, torch.float16):
            one_shape(shape, dtype, device, seed)
    ties(device)
    extremes(device)
    print("equal")


if __name__ == "__main__":
    main(sys.argv[1])
