"""The statistics of all depths on a GPU: projections through torch, the rest in one Triton kernel.

All depths of all texts are one launch, unless their queries and keys pass a limit. The scores and
weights never reach memory. Notation as in reference.py.
"""

import math
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from maw_gym.attention.kernels import (
    SMALLEST,
    finish_kernel,
    statistics_kernel,
    tuned_statistics_kernel,
)
from maw_gym.attention.reference import CELLS, POOLED, Inputs, Statistics

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


def empty_partial(
    batch: int, depths: int, heads: int, head_width: int, device: torch.device
) -> Partial:
    """Room for the kernel's results, in float32."""
    tails = ((POOLED, POOLED), (), (), (head_width,))
    return Partial(*(torch.empty((batch, depths, heads, *tail), device=device) for tail in tails))


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


def finish(partial: Partial, lengths: Tensor) -> Statistics:
    """Add up partial results of texts of these lengths (B,)."""
    batch, depths, heads = partial.entropy.shape
    numbers = heads * CELLS
    padded_numbers = triton.next_power_of_2(numbers)
    device = lengths.device
    state = torch.empty(batch, numbers, device=device)
    entropy, focus = torch.empty(2, batch, depths, device=device)
    finish_kernel[(batch,)](
        partial.state,
        partial.entropy,
        partial.focus,
        lengths,
        state,
        entropy,
        focus,
        depths,
        heads=heads,
        numbers=numbers,
        padded_heads=triton.next_power_of_2(heads),
        padded_numbers=padded_numbers,
        # A block of the state that stays in registers, however many heads there are.
        depths_at_once=max(1, 8192 // padded_numbers),
    )
    return Statistics(state, entropy, focus, partial.pooled.flatten(2))


@torch.no_grad()
def fused_statistics(
    inputs: Inputs, dtype: torch.dtype = torch.bfloat16, blocks: tuple[int, int] | None = None
) -> Statistics:
    """The statistics of `reference.depth_statistics`, float32, forward only, on CUDA.

    Args:
        inputs: texts and projections.
        dtype: of the operands of matrix products, bfloat16 or float32; sums are float32.
        blocks: see `launch`.
    """
    x, mask, _, _, value, pooling = inputs
    batch, heads, _, head_width = value.shape
    depths = inputs.depths
    lengths = mask.sum(-1)
    tokens = x.flatten(0, 1).to(dtype)
    value = value.to(dtype).contiguous()
    pooling = pooling.float().contiguous()
    partial = empty_partial(batch, depths, heads, head_width, x.device)
    at_once = max(1, min(depths, PROJECTED // max(1, tokens.numel())))
    for start in range(0, depths, at_once):
        some = inputs.of_depths(start, at_once)
        query, key = (
            tokens @ weight.to(dtype).T for weight in (some.query_weight, some.key_weight)
        )
        launch(query, key, value, pooling, lengths, partial, start, blocks)
    return finish(partial, lengths)
