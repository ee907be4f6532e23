"""The statistics of all depths on a GPU: one Triton kernel over queries and keys.

A program takes one depth of one head of one text. It walks over the text's tokens as flash
attention does (Dao et al. 2022, arXiv:2205.14135), with a running maximum m, normaliser Z and the
product of the weights with V, and beside them the sum of p s for the entropy and the product with
the 8 cells of the state. So the scores live in registers only:

    entropy of a row = ln Z + m - sum(p s) / Z        largest weight of a row = 1 / Z

Programs write partial results of their own and torch adds them up, in a fixed order: the same input
gives the same output. Notation as in attention.py.
"""

import math
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from maw_gym.pooling import POOLED

PROJECTED = 1 << 30  # numbers in a launch's queries (and in its keys)
BITS = math.log2(math.e)  # scores are in bits: the hardware's exponential is exp2
SMALLEST = 16  # tensor cores multiply 16 x 16 blocks at least


class Partial(NamedTuple):
    """What the kernel writes, for d depths.

    Attributes:
        state: (B, d, H, 8, 8), the pooled attention.
        entropy: (B, d, H), mean over rows, in nats.
        focus: (B, d, H), mean over rows.
        pooled: (B, d, H, e), the pooled attention output.
    """

    state: Tensor
    entropy: Tensor
    focus: Tensor
    pooled: Tensor


def empty_partial(batch: int, depths: int, heads: int, head_width: int, like: Tensor) -> Partial:
    """Room for the kernel's results, in float32 on the device of `like`."""
    shape = (batch, depths, heads)
    tails = ((POOLED, POOLED), (), (), (head_width,))
    return Partial(*(torch.empty(shape + tail, device=like.device) for tail in tails))


@triton.jit
def _kernel(  # type: ignore[no-untyped-def]
    query,  # (B S, d H e), scaled
    key,  # (B S, d H e)
    value,  # (B, H, S, e)
    pooling,  # (B, S) float32
    lengths,  # (B,) int32
    state,  # (B, d, H, 8, 8)
    entropy,  # (B, d, H)
    focus,  # (B, d, H)
    pooled,  # (B, d, H, e)
    size,  # S
    depths,  # d
    heads: tl.constexpr,
    width: tl.constexpr,  # e
    cells: tl.constexpr,  # 8
    bucket: tl.constexpr,  # S rounded up to a power of 2
    padded_width: tl.constexpr,
    padded_cells: tl.constexpr,
    precision: tl.constexpr,
    rows_at_once: tl.constexpr,
    keys_at_once: tl.constexpr,
):
    program = tl.program_id(0)
    head = program % heads
    depth = (program // heads) % depths
    text = (program // heads // depths).to(tl.int64)
    n = tl.load(lengths + text)
    stride = depths * heads * width
    here = text * size * stride + (depth * heads + head) * width
    queries, keys = query + here, key + here
    values = value + (text * heads + head) * size * width

    column = tl.arange(0, padded_width)
    inside = column < width
    cell = tl.arange(0, padded_cells)
    first = cell * n // cells
    last = tl.where(cell < cells, ((cell + 1) * n + cells - 1) // cells, 0)  # exclusive

    cell_sum = tl.zeros([padded_cells, padded_cells], tl.float32)
    row_sum = tl.zeros([padded_width], tl.float32)
    entropy_sum = tl.zeros([rows_at_once], tl.float32)
    focus_sum = tl.zeros([rows_at_once], tl.float32)
    # Not to n: with bounds read from memory Triton 3.6 made kernels that leave shared memory. Where
    # one block holds the text, constant bounds leave no loop at all.
    last_row = size if bucket > rows_at_once else rows_at_once
    last_key = size if bucket > keys_at_once else keys_at_once
    for from_row in range(0, last_row, rows_at_once):
        row = from_row + tl.arange(0, rows_at_once)
        real = row < n
        q = tl.load(
            queries + row[:, None] * stride + column[None, :],
            mask=real[:, None] & inside[None, :],
            other=0.0,
        )
        # A finite start: the difference of two infinities is not a number.
        top = tl.full([rows_at_once], -1.0e30, tl.float32)
        total = tl.zeros([rows_at_once], tl.float32)
        product = tl.zeros([rows_at_once], tl.float32)  # sum of p s
        into_cells = tl.zeros([rows_at_once, padded_cells], tl.float32)
        output = tl.zeros([rows_at_once, padded_width], tl.float32)
        for from_key in range(0, last_key, keys_at_once):
            token = from_key + tl.arange(0, keys_at_once)
            known = token < n
            there = known[:, None] & inside[None, :]
            k = tl.load(keys + token[:, None] * stride + column[None, :], mask=there, other=0.0)
            v = tl.load(values + token[:, None] * width + column[None, :], mask=there, other=0.0)
            s = tl.dot(q, tl.trans(k), input_precision=precision)
            s = tl.where(known[None, :], s, -1.0e30)
            new_top = tl.maximum(top, tl.max(s, 1))
            shrink = tl.exp2(top - new_top)
            p = tl.exp2(s - new_top[:, None])
            total = total * shrink + tl.sum(p, 1)
            product = product * shrink + tl.sum(p * s, 1)
            of_cell = (token[:, None] >= first[None, :]) & (token[:, None] < last[None, :])
            p = p.to(v.dtype)
            into_cells = into_cells * shrink[:, None]
            into_cells += tl.dot(p, of_cell.to(v.dtype), input_precision=precision)
            output = output * shrink[:, None] + tl.dot(p, v, input_precision=precision)
            top = new_top
        share = tl.where(real, 1.0 / total, 0.0)
        entropy_sum += tl.where(real, tl.log2(total) + top - product * share, 0.0)
        focus_sum += share
        in_cell = (row[None, :] >= first[:, None]) & (row[None, :] < last[:, None])
        cell_sum += tl.dot(
            in_cell.to(tl.float32), into_cells * share[:, None], input_precision=precision
        )
        weight = tl.load(pooling + text * size + row, mask=real, other=0.0) * share
        row_sum += tl.sum(output * weight[:, None], 0)

    count = tl.maximum(n, 1).to(tl.float32)
    at = (text * depths + depth) * heads + head
    tl.store(entropy + at, tl.sum(entropy_sum, 0) / count * 0.6931471805599453)
    tl.store(focus + at, tl.sum(focus_sum, 0) / count)
    tl.store(pooled + at * width + column, row_sum, mask=inside)
    tokens_in = tl.maximum(last - first, 1).to(tl.float32)
    mean = cell_sum / (tokens_in[:, None] * tokens_in[None, :])
    kept = (cell[:, None] < cells) & (cell[None, :] < cells)
    tl.store(state + at * cells * cells + cell[:, None] * cells + cell[None, :], mean, mask=kept)


def _configurations() -> list[triton.Config]:
    return [
        triton.Config(
            {"rows_at_once": rows, "keys_at_once": keys}, num_warps=warps, num_stages=stages
        )
        for rows, keys, warps in (
            (16, 16, 1),
            (32, 32, 1),
            (32, 32, 2),
            (64, 64, 2),
            (64, 64, 4),
            (64, 128, 4),
            (128, 32, 4),
            (128, 64, 4),
            (128, 128, 4),
            (128, 128, 8),
        )
        for stages in (1, 2, 3)
    ]


def _not_larger_than_the_text(
    configurations: list[triton.Config], arguments: dict[str, Any], **others: Any
) -> list[triton.Config]:
    """Blocks that a text of the bucket's length fills; more stages only where a loop has turns."""
    bucket = others.get("bucket", arguments.get("bucket"))
    return [
        configuration
        for configuration in configurations
        if max(configuration.kwargs.values()) <= bucket
        and 4 * configuration.kwargs["rows_at_once"] >= min(bucket, 128)
        and (configuration.num_stages == 1 or configuration.kwargs["keys_at_once"] < bucket)
    ]


_tuned_kernel = triton.autotune(
    _configurations(),
    key=["bucket", "heads", "width", "precision"],
    prune_configs_by={"early_config_prune": _not_larger_than_the_text},
)(_kernel)


def launch(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pooling: Tensor,
    lengths: Tensor,
    out: Partial,
    blocks: tuple[int, int] | None = None,
) -> None:
    """Run the kernel over d depths, B texts and H heads.

    Args:
        query: (B S, d H e) contiguous, times `BITS` / sqrt(e).
        key: (B S, d H e) contiguous.
        value: (B, H, S, e) contiguous, of the same type.
        pooling: (B, S) float32 contiguous.
        lengths: (B,) int32.
        out: written whole.
        blocks: rows and keys at once, powers of 2 and at least 16; None tunes them on the device.
    """
    batch, heads, size, width = value.shape
    depths = out.entropy.shape[1]
    exact = value.dtype == torch.float32
    arguments = {
        "heads": heads,
        "width": width,
        "cells": POOLED,
        "bucket": max(SMALLEST, triton.next_power_of_2(size)),
        "padded_width": max(SMALLEST, triton.next_power_of_2(width)),
        "padded_cells": SMALLEST,
        "precision": "ieee" if exact else "tf32",  # of float32 operands; bfloat16 has one way
    }
    kernel = _tuned_kernel
    if blocks is not None:
        kernel, arguments = (
            _kernel,
            arguments
            | {
                "rows_at_once": blocks[0],
                "keys_at_once": blocks[1],
            },
        )
    tensors = (query, key, value, pooling, lengths, *out)
    kernel[(batch * depths * heads,)](*tensors, size, depths, **arguments)


@torch.no_grad()
def fused_statistics(
    x: Tensor,
    mask: Tensor,
    query_weight: Tensor,
    key_weight: Tensor,
    value: Tensor,
    pooling: Tensor,
    dtype: torch.dtype = torch.bfloat16,
    blocks: tuple[int, int] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The statistics of `maw_gym.attention.depth_statistics`, forward only, on CUDA.

    Args:
        x: (B, S, h).
        mask: (B, S) bool, real tokens first.
        query_weight: (D h, h).
        key_weight: (D h, h).
        value: (B, H, S, e).
        pooling: (B, S).
        dtype: of the operands of matrix products, bfloat16 or float32; sums are float32.
        blocks: see `launch`.

    Returns:
        state (B, 64 H), entropy (B, D), focus (B, D), pooled output (B, D, H e), in float32.
    """
    batch, heads, _, head_width = value.shape
    width = x.shape[-1]
    depths = query_weight.shape[0] // width
    lengths = mask.sum(-1)
    tokens = x.reshape(-1, width)
    # Scaled before it is rounded: nothing is lost.
    scaled = (tokens.float() * (BITS / math.sqrt(head_width))).to(dtype)
    tokens = tokens.to(dtype)
    out = empty_partial(batch, depths, heads, head_width, x)
    at_once = max(1, min(depths, PROJECTED // max(1, tokens.numel())))
    value = value.to(dtype).contiguous()
    pooling = pooling.float().contiguous()
    for start in range(0, depths, at_once):
        stop = min(start + at_once, depths)
        rows = slice(start * width, stop * width)
        query = scaled @ query_weight[rows].to(dtype).T
        key = tokens @ key_weight[rows].to(dtype).T
        whole = at_once == depths
        part = out if whole else empty_partial(batch, stop - start, heads, head_width, x)
        launch(query, key, value, pooling, lengths.int(), part, blocks)
        if not whole:
            for target, found in zip(out, part, strict=True):
                target[:, start:stop] = found
    state = torch.nn.functional.normalize(out.state.sum(1).flatten(1), dim=-1)
    scale = lengths.clamp(min=2).log().reciprocal()[:, None]  # a single token has entropy 0
    entropy = (out.entropy.mean(-1) * scale).clamp(0, 1)
    return state, entropy, out.focus.mean(-1).clamp(0, 1), out.pooled.flatten(2)
