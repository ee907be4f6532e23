"""The statistics of all depths on a GPU: projections through torch, the rest in one Triton kernel.

All depths of all texts are one launch, unless their queries and keys pass a limit. The scores and
weights never reach memory. Notation as in attention.py.
"""

import math
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from maw_gym.attention.pooling import CELLS, POOLED
from maw_gym.attention.triton_kernels import (
    SMALLEST,
    finish_kernel,
    statistics_kernel,
    tuned_statistics_kernel,
)

PROJECTED = 1 << 30  # numbers in a launch's queries (and in its keys)


class Partial(NamedTuple):
    """What the first kernel writes.

    Attributes:
        state: (B, D, H, 8, 8), the pooled attention.
        entropy: (B, D, H), mean over rows, in bits.
        focus: (B, D, H), mean over rows.
        pooled: (B, D, H, e), the pooled attention output.
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


def launch(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pooling: Tensor,
    lengths: Tensor,
    out: Partial,
    first_depth: int = 0,
    blocks: tuple[int, int] | None = None,
) -> None:
    """Run the first kernel over d of the D depths, B texts and H heads.

    Args:
        query: (B S, d H e) contiguous.
        key: likewise.
        value: (B, H, S, e) contiguous, of the same type.
        pooling: (B, S) float32 contiguous.
        lengths: (B,) int64.
        out: depths `first_depth` to ``first_depth + d`` are written, all of each.
        first_depth: which of the D depths is the first of the queries.
        blocks: rows and keys at once, powers of 2 and at least 16; None tunes them on the device.
    """
    batch, heads, size, width = value.shape
    depths = query.shape[1] // (heads * width)
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
    kernel = tuned_statistics_kernel
    if blocks is not None:
        kernel = statistics_kernel
        arguments |= {"rows_at_once": blocks[0], "keys_at_once": blocks[1], "num_warps": 2}
    tensors = (query, key, value, pooling, lengths, *out)
    numbers = (size, depths, first_depth, out.entropy.shape[1], math.log2(math.e) / width**0.5)
    kernel[(batch * depths * heads,)](*tensors, *numbers, **arguments)


def finish(out: Partial, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Add up partial results: state (B, 64 H) of unit length, entropy (B, D), focus (B, D)."""
    batch, depths, heads = out.entropy.shape
    numbers = heads * CELLS
    state = out.state.new_empty(batch, numbers)
    entropy, focus = out.state.new_empty(2, batch, depths)
    finish_kernel[(batch,)](
        out.state,
        out.entropy,
        out.focus,
        lengths,
        state,
        entropy,
        focus,
        depths,
        heads=heads,
        numbers=numbers,
        padded_heads=triton.next_power_of_2(heads),
        padded_numbers=triton.next_power_of_2(numbers),
        depths_at_once=16,
    )
    return state, entropy, focus


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
    """The statistics of `depth_attention.depth_statistics`, forward only, on CUDA.

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
    tokens = x.reshape(-1, width).to(dtype)
    value = value.to(dtype).contiguous()
    pooling = pooling.float().contiguous()
    out = empty_partial(batch, depths, heads, head_width, x)
    at_once = max(1, min(depths, PROJECTED // max(1, tokens.numel())))
    for start in range(0, depths, at_once):
        rows = slice(start * width, (start + at_once) * width)
        query, key = (tokens @ weight[rows].to(dtype).T for weight in (query_weight, key_weight))
        launch(query, key, value, pooling, lengths, out, start, blocks)
    return *finish(out, lengths), out.pooled.flatten(2)
