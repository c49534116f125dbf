"""The nearest clusters of a query: similarities and top-k in one kernel, where they are few.

Beside it is its reference in torch, which CPU tensors take (unless Triton interprets) and which
takes over where clusters are many: then sorting them pays.
"""

from __future__ import annotations

from typing import Any

import torch

from mpcache.errors import UsageError
from mpcache.kernels.triton_cache import similarities, similarities_reference, takes_kernels

try:
    import triton
    import triton.language as tl
except ImportError:  # CPU tensors take the reference
    triton = None

FEW = 128  # clusters that are ranked by comparing them all

if triton is not None:

    @triton.jit
    def _choose_kernel(
        queries_at: Any,
        summary_at: Any,
        out_at: Any,
        choosers: Any,
        clusters: Any,
        picks: Any,
        width: Any,
        summary_head: Any,
        summary_cluster: Any,
        CLUSTERS: tl.constexpr,
        WIDTH: tl.constexpr,
    ) -> None:
        """One chooser's similarities, and the places of the greatest, by counting who is ahead."""
        chooser = tl.program_id(0).to(tl.int64)
        head = chooser // choosers
        c, d = tl.arange(0, CLUSTERS), tl.arange(0, WIDTH)
        here = c < clusters
        query = tl.load(queries_at + chooser * width + d, mask=d < width, other=0.0).to(tl.float32)
        summary = tl.load(
            summary_at + head * summary_head + c[:, None] * summary_cluster + d[None, :],
            mask=here[:, None] & (d[None, :] < width),
            other=0.0,
        ).to(tl.float32)
        near = tl.sum(summary * query[None, :], axis=1)
        near = tl.where(here, near, float("-inf"))
        ties = (near[:, None] == near[None, :]) & (c[:, None] < c[None, :])
        ahead = (near[:, None] > near[None, :]) | ties
        rank = tl.sum(ahead.to(tl.int32), axis=0)
        tl.store(out_at + chooser * picks + rank, c, mask=here & (rank < picks))


def choose(
    queries: torch.Tensor, summary: torch.Tensor, picks: int, out: torch.Tensor | None = None
) -> torch.Tensor:
    """The `picks` clusters with the greatest similarity, by rank: [kv_heads, choosers, picks].

    Of equal ones the earlier is ahead.

    Args:
        queries: [kv_heads, choosers, head_dim]. summary: [kv_heads, clusters, head_dim], the last
            dimension dense.
        out: where to write, int32 and contiguous; by default new.

    Raises:
        UsageError: shapes or dtypes do not fit.
    """
    fits = queries.ndim == summary.ndim == 3 and queries.shape[::2] == summary.shape[::2]
    if not fits or not 0 <= picks <= summary.shape[1]:
        raise UsageError(
            "tensors do not fit; expected queries [kv_heads, choosers, head_dim], a summary of the"
            " same heads and at most as many picks as clusters"
        )
    heads, choosers, width = queries.shape
    clusters, shape = summary.shape[1], (heads, choosers, picks)
    if out is None:
        out = torch.empty(shape, dtype=torch.int32, device=queries.device)
    elif out.shape != shape or out.dtype != torch.int32 or not out.is_contiguous():
        raise UsageError(f"tensors do not fit; expected int32 {list(shape)} for the result")
    if not takes_kernels(queries):
        return out.copy_(choose_reference(queries, summary, picks))
    if clusters > FEW:
        return out.copy_(greatest(similarities(queries, summary), picks))
    summary = summary if summary.stride(-1) == 1 else summary.contiguous()
    if out.numel():
        _choose_kernel[(heads * choosers,)](
            queries.contiguous(), summary, out, choosers, clusters, picks, width,
            summary.stride(0), summary.stride(1), CLUSTERS=triton.next_power_of_2(clusters),
            WIDTH=triton.next_power_of_2(width),
        )  # fmt: skip
    return out


def choose_reference(queries: torch.Tensor, summary: torch.Tensor, picks: int) -> torch.Tensor:
    """`choose` in torch."""
    return greatest(similarities_reference(queries, summary), picks)


def greatest(near: torch.Tensor, picks: int) -> torch.Tensor:
    """The places of the greatest of the last dimension, by rank; of equal ones the earlier."""
    return near.argsort(dim=-1, descending=True, stable=True)[..., :picks].to(torch.int32)
