"""A clustered key/value cache on a GPU, in plaintext: summaries, similarities, sparse attention.

Clusters are pages: cluster i of a head is its stored tokens from i * size on, and the last one may
be short. Each function has a reference in torch, which CPU tensors take (unless Triton interprets).
Kernels read keys and values once, as they are stored, and add up in float32.
"""

from __future__ import annotations

import math
import os
from typing import Any

import torch

from mpcache.errors import UsageError

try:
    import triton
    import triton.language as tl
except ImportError:  # CPU tensors take the references
    triton = None

_SPLITS = 16  # programs that share one chooser's pages, at most
_NARROWEST = 16  # sides of a product in a kernel

if triton is not None:

    @triton.jit
    def _summary_kernel(
        keys_at: Any,
        most_at: Any,
        least_at: Any,
        mean_at: Any,
        tokens: Any,
        width: Any,
        clusters: Any,
        key_head: Any,
        key_token: Any,
        SIZE: tl.constexpr,
        TOKENS: tl.constexpr,
        WIDTH: tl.constexpr,
    ) -> None:
        """Maximum, minimum and mean of one cluster's keys, by dimension."""
        cluster, head = tl.program_id(0), tl.program_id(1).to(tl.int64)
        t, d = tl.arange(0, TOKENS), tl.arange(0, WIDTH)
        at = cluster * SIZE + t
        stands = (t < SIZE) & (at < tokens)
        here = stands[:, None] & (d[None, :] < width)
        place = keys_at + head * key_head + at[:, None].to(tl.int64) * key_token + d[None, :]
        keys = tl.load(place, mask=here, other=0.0).to(tl.float32)
        count = tl.sum(stands.to(tl.float32), axis=0)
        out = (head * clusters + cluster) * width + d
        most = tl.max(tl.where(here, keys, float("-inf")), axis=0)
        least = tl.min(tl.where(here, keys, float("inf")), axis=0)
        tl.store(most_at + out, most, mask=d < width)
        tl.store(least_at + out, least, mask=d < width)
        tl.store(mean_at + out, tl.sum(keys, axis=0) / count, mask=d < width)

    @triton.jit
    def _similarity_kernel(
        queries_at: Any,
        summaries_at: Any,
        out_at: Any,
        group: Any,
        clusters: Any,
        width: Any,
        GROUP: tl.constexpr,
        CLUSTERS: tl.constexpr,
        WIDTH: tl.constexpr,
    ) -> None:
        """Products of one head's queries with a block of its summaries."""
        head = tl.program_id(1).to(tl.int64)
        g, d = tl.arange(0, GROUP), tl.arange(0, WIDTH)
        c = tl.program_id(0) * CLUSTERS + tl.arange(0, CLUSTERS)
        queries = tl.load(
            queries_at + (head * group + g[:, None]) * width + d[None, :],
            mask=(g[:, None] < group) & (d[None, :] < width),
            other=0.0,
        ).to(tl.float32)
        summaries = tl.load(
            summaries_at + (head * clusters + c[:, None]) * width + d[None, :],
            mask=(c[:, None] < clusters) & (d[None, :] < width),
            other=0.0,
        ).to(tl.float32)
        near = tl.dot(queries, tl.trans(summaries), input_precision="ieee")
        here = (g[:, None] < group) & (c[None, :] < clusters)
        tl.store(out_at + (head * group + g[:, None]) * clusters + c[None, :], near, mask=here)

    @triton.jit
    def _attend_kernel(
        queries_at: Any,
        keys_at: Any,
        values_at: Any,
        chosen_at: Any,
        parts_at: Any,
        tops_at: Any,
        totals_at: Any,
        scale: Any,
        rows: Any,
        choosers: Any,
        picks: Any,
        share: Any,
        tokens: Any,
        width: Any,
        key_head: Any,
        key_token: Any,
        value_head: Any,
        value_token: Any,
        SIZE: tl.constexpr,
        TOKENS: tl.constexpr,
        ROWS: tl.constexpr,
        WIDTH: tl.constexpr,
    ) -> None:
        """Attention of one chooser's queries over `share` of its pages: not yet normalised.

        Softmax as it goes: what was added up fades when a greater score comes.
        """
        chooser, split = tl.program_id(0), tl.program_id(1)
        head = (chooser // choosers).to(tl.int64)
        r, t, d = tl.arange(0, ROWS), tl.arange(0, TOKENS), tl.arange(0, WIDTH)
        inside = (r[:, None] < rows) & (d[None, :] < width)
        place = (chooser.to(tl.int64) * rows + r[:, None]) * width + d[None, :]
        queries = tl.load(queries_at + place, mask=inside, other=0.0).to(tl.float32) * scale
        top = tl.full((ROWS,), float("-inf"), tl.float32)
        total = tl.zeros((ROWS,), tl.float32)
        context = tl.zeros((ROWS, WIDTH), tl.float32)
        for pick in range(split * share, tl.minimum((split + 1) * share, picks)):
            page = tl.load(chosen_at + chooser.to(tl.int64) * picks + pick).to(tl.int64)
            at = page * SIZE + t
            stands = (t < SIZE) & (at >= 0) & (at < tokens)  # page -1: none
            here = stands[:, None] & (d[None, :] < width)
            key_place = keys_at + head * key_head + at[:, None] * key_token + d[None, :]
            value_place = values_at + head * value_head + at[:, None] * value_token + d[None, :]
            keys = tl.load(key_place, mask=here, other=0.0).to(tl.float32)
            values = tl.load(value_place, mask=here, other=0.0).to(tl.float32)
            scores = tl.dot(queries, tl.trans(keys), input_precision="ieee")
            scores = tl.where(stands[None, :], scores, float("-inf"))
            higher = tl.maximum(top, tl.max(scores, axis=1))
            level = tl.where(higher == float("-inf"), 0.0, higher)
            fade = tl.exp(top - level)
            weights = tl.exp(scores - level[:, None])
            total = total * fade + tl.sum(weights, axis=1)
            context = context * fade[:, None]
            context += tl.dot(weights, values, input_precision="ieee")
            top = higher
        part = (chooser.to(tl.int64) * tl.num_programs(1) + split) * rows + r
        tl.store(tops_at + part, top, mask=r < rows)
        tl.store(totals_at + part, total, mask=r < rows)
        tl.store(parts_at + part[:, None] * width + d[None, :], context, mask=inside)

    @triton.jit
    def _join_kernel(
        parts_at: Any,
        tops_at: Any,
        totals_at: Any,
        out_at: Any,
        splits: Any,
        rows: Any,
        width: Any,
        ROWS: tl.constexpr,
        WIDTH: tl.constexpr,
    ) -> None:
        """One chooser's parts as its context, normalised; 0 where no page stands."""
        chooser = tl.program_id(0).to(tl.int64)
        r, d = tl.arange(0, ROWS), tl.arange(0, WIDTH)
        inside = (r[:, None] < rows) & (d[None, :] < width)
        top = tl.full((ROWS,), float("-inf"), tl.float32)
        total = tl.zeros((ROWS,), tl.float32)
        context = tl.zeros((ROWS, WIDTH), tl.float32)
        for split in range(splits):
            part = (chooser * splits + split) * rows + r
            other = tl.load(tops_at + part, mask=r < rows, other=float("-inf"))
            higher = tl.maximum(top, other)
            level = tl.where(higher == float("-inf"), 0.0, higher)
            fade, weight = tl.exp(top - level), tl.exp(other - level)
            total = total * fade + tl.load(totals_at + part, mask=r < rows, other=0.0) * weight
            place = parts_at + part[:, None] * width + d[None, :]
            more = tl.load(place, mask=inside, other=0.0)
            context = context * fade[:, None] + more * weight[:, None]
            top = higher
        total = tl.where(total == 0.0, 1.0, total)
        out = (chooser * rows + r[:, None]) * width + d[None, :]
        tl.store(out_at + out, context / total[:, None], mask=inside)


Summaries = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def summaries(keys: torch.Tensor, size: int, out: Summaries | None = None) -> Summaries:
    """Maxima, minima and means of clusters of `size` keys, each [kv_heads, clusters, head_dim].

    Args:
        keys: [kv_heads, tokens, head_dim], floating point, the last dimension dense.
        out: where to write, float32 and contiguous; by default new.

    Raises:
        UsageError: shapes or dtypes do not fit.
    """
    _check(size >= 1 and keys.ndim == 3 and keys.shape[1] > 0, "keys [kv_heads, tokens, head_dim]")
    heads, tokens, width = keys.shape
    clusters = math.ceil(tokens / size)
    shape = (heads, clusters, width)
    if not takes_kernels(keys):
        found = summaries_reference(keys, size)
        if out is None:
            return found
        for target, part in zip(out, found, strict=True):
            target.copy_(part)
        return out
    keys = _dense(keys)
    if out is None:
        most, least, mean = (_new(keys, shape) for _ in range(3))
        out = most, least, mean
    for target in out:
        _check_out(target, shape)
    _summary_kernel[(clusters, heads)](
        keys, *out, tokens, width, clusters, keys.stride(0), keys.stride(1), SIZE=size,
        TOKENS=_power(size), WIDTH=_power(width),
    )  # fmt: skip
    return out


def summaries_reference(keys: torch.Tensor, size: int) -> Summaries:
    """`summaries` in torch."""
    parts = [part.float() for part in keys.split(size, 1)]
    most = torch.stack([part.amax(1) for part in parts], 1)
    least = torch.stack([part.amin(1) for part in parts], 1)
    return most, least, torch.stack([part.mean(1) for part in parts], 1)


def similarities(
    queries: torch.Tensor, summary: torch.Tensor, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Products [kv_heads, group, clusters] of queries and cluster summaries, in float32.

    Args:
        queries: [kv_heads, group, head_dim]. summary: [kv_heads, clusters, head_dim].
        out: where to write, float32 and contiguous; by default new.

    Raises:
        UsageError: shapes or dtypes do not fit.
    """
    fits = queries.ndim == summary.ndim == 3 and queries.shape[0] == summary.shape[0]
    _check(fits and queries.shape[2] == summary.shape[2], "queries and summaries of equal heads")
    heads, group, width = queries.shape
    clusters = summary.shape[1]
    if not takes_kernels(queries):
        found = similarities_reference(queries, summary)
        return found if out is None else out.copy_(found)
    out = _new(queries, (heads, group, clusters)) if out is None else out
    _check_out(out, (heads, group, clusters))
    block = min(64, _side(clusters))
    if out.numel():
        _similarity_kernel[(triton.cdiv(clusters, block), heads)](
            queries.contiguous(), summary.contiguous(), out, group, clusters, width,
            GROUP=_side(group), CLUSTERS=block, WIDTH=_side(width),
        )  # fmt: skip
    return out


def similarities_reference(queries: torch.Tensor, summary: torch.Tensor) -> torch.Tensor:
    """`similarities` in torch."""
    return queries.float() @ summary.float().transpose(1, 2)


def cluster_attention(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    chosen: torch.Tensor,
    size: int,
    scale: float = 1.0,
    out: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attention [kv_heads, group, head_dim] of one token's queries over chosen clusters alone.

    Args:
        queries: [kv_heads, group, head_dim].
        keys, values: [kv_heads, tokens, head_dim], the last dimension dense.
        chosen: whole numbers [kv_heads, choosers, picks], where choosers is the group (each query
            head reads its own clusters) or 1 (all read the same); no cluster twice, -1 for none.
        scale: what scores are multiplied with.
        out: where to write, float32 and contiguous; by default new.

    Raises:
        UsageError: shapes or dtypes do not fit.
    """
    heads, group, width = queries.shape if queries.ndim == 3 else (0, 0, 0)
    fits = keys.ndim == 3 and keys.shape == values.shape and keys.shape[::2] == (heads, width)
    _check(fits, "queries [kv_heads, group, head_dim] with keys and values of equal shapes")
    _check(
        chosen.ndim == 3 and chosen.shape[0] == heads and chosen.shape[1] in (1, group)
        and chosen.dtype in (torch.int32, torch.int64),
        "chosen clusters as whole numbers [kv_heads, group or 1, picks]",
    )  # fmt: skip
    if not takes_kernels(queries):
        found = cluster_attention_reference(queries, keys, values, chosen, size, scale)
        return found if out is None else out.copy_(found)
    keys, values, chosen = _dense(keys), _dense(values), chosen.contiguous()
    choosers, picks = chosen.shape[1:]
    rows = group // choosers
    out = _new(queries, (heads, group, width)) if out is None else out
    _check_out(out, (heads, group, width))
    share = max(1, math.ceil(picks / _SPLITS))
    splits = max(1, math.ceil(picks / share))
    parts = _new(queries, (heads * choosers, splits, rows, width))
    tops, totals = (_new(queries, (heads * choosers, splits, rows)) for _ in range(2))
    blocks = {"ROWS": _side(rows), "WIDTH": _side(width)}
    if out.numel():
        _attend_kernel[(heads * choosers, splits)](
            queries.contiguous(), keys, values, chosen, parts, tops, totals, scale, rows, choosers,
            picks, share, keys.shape[1], width, keys.stride(0), keys.stride(1), values.stride(0),
            values.stride(1), SIZE=size, TOKENS=_side(size), **blocks,
        )  # fmt: skip
        _join_kernel[(heads * choosers,)](parts, tops, totals, out, splits, rows, width, **blocks)
    return out


def cluster_attention_reference(
    queries: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    chosen: torch.Tensor,
    size: int,
    scale: float = 1.0,
) -> torch.Tensor:
    """`cluster_attention` in torch: all scores, those of other clusters hidden."""
    tokens = keys.shape[1]
    cluster = torch.arange(tokens, device=keys.device) // size
    visible = (chosen[..., None] == cluster).any(2)
    scores = queries.float() @ keys.float().transpose(1, 2) * scale
    weights = torch.softmax(scores.masked_fill(~visible, float("-inf")), -1)
    return torch.nan_to_num(weights) @ values.float()


def takes_kernels(tensor: torch.Tensor) -> bool:
    """Whether a kernel runs on this tensor: on a GPU, or interpreted.

    Raises:
        UsageError: a GPU's tensor without Triton.
    """
    if tensor.is_cuda and triton is None:
        raise UsageError("kernels on a GPU need Triton; install mpcache[cuda], or use the CPU")
    return tensor.is_cuda or (triton is not None and os.environ.get("TRITON_INTERPRET") == "1")


def _check(fits: bool, expected: str) -> None:
    if not fits:
        raise UsageError(f"tensors do not fit; expected {expected}")


def _check_out(out: torch.Tensor, shape: tuple[int, ...]) -> None:
    fits = out.shape == shape and out.dtype == torch.float32 and out.is_contiguous()
    _check(fits, f"a contiguous float32 tensor of {list(shape)} for the result")


def _new(like: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.float32, device=like.device)


def _dense(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor with its last dimension dense."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def _power(count: int) -> int:
    return 1 << max(count - 1, 0).bit_length()


def _side(count: int) -> int:
    """A power of 2 that a product's side may have."""
    return max(_NARROWEST, _power(count))
