"""The statistics of all depths on a GPU: projections through torch, the rest in Triton kernels.

All depths of all texts are one launch, unless their queries and keys pass a limit. The scores and
weights never reach memory. Notation as in reference.py.
"""

import math
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from maw_gym.attention.kernels import (
    SMALLEST,
    finish_kernel,
    long_kernel,
    short_kernel,
    tuned_long_kernel,
    tuned_short_kernel,
)
from maw_gym.attention.reference import CELLS, POOLED, Inputs, Statistics

PROJECTED = 1 << 31  # numbers in a launch's queries and keys
# Tokens of a text whose keys are all held at once, by the operands' type: where that is faster.
SHORT = {torch.bfloat16: 64, torch.float32: 128}

# By the weights of the queries: of which keys and versions they were made, and `Projection`.
_projections = WeakIdKeyDictionary()


class Projection(NamedTuple):
    """The weights of queries and keys as the operand of one product.

    Attributes:
        weight: (D, 2 h, h), or (D, 2 h, 3 h) in halves.
        shift: () int32, the power of 2 that halves are multiplied by; None where there are none.
    """

    weight: Tensor
    shift: Tensor | None


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


def halves(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`x` as a sum of two float16 numbers of 11 bits each, times a power of 2.

    Products of such sums, less that of the two small parts, are as exact as float32's, and tensor
    cores make them at twice the rate of TF32 (Ootomo and Yokota 2022, arXiv:2203.03341).

    Returns:
        The large parts, the small parts, and the exponent of the power, () int32.
    """
    # The largest number comes near 2^14; what is smaller by 2^38 is lost.
    shift = (14 - torch.frexp(x.abs().amax()).exponent).clamp(-60, 20)
    x = torch.ldexp(x, shift)
    large = x.half()
    return large, (x - large).half(), shift


def projection(query_weight: Tensor, key_weight: Tensor, dtype: torch.dtype) -> Projection:
    """The operand of these weights (D h, h), made once as long as they do not change."""
    of = (key_weight.data_ptr(), query_weight._version, key_weight._version, dtype)
    kept: tuple[Any, Projection] | None = _projections.get(query_weight)
    if kept is not None and kept[0] == of:
        return kept[1]
    width = query_weight.shape[1]
    weight = torch.stack([w.view(-1, width, width) for w in (query_weight, key_weight)], 1)
    weight = weight.flatten(1, 2)  # (D, 2 h, h)
    if dtype == torch.float32 and weight.is_cuda:
        large, small, shift = halves(weight)
        made = Projection(torch.cat([large, small, large], -1), shift)
    else:
        made = Projection(weight.to(dtype), None)
    if not query_weight.is_inference():
        _projections[query_weight] = (of, made)
    return made


def launch(
    projected: Tensor,
    value: Tensor,
    pooling: Tensor,
    lengths: Tensor,
    out: Partial,
    unit: Tensor,
    first_depth: int = 0,
    blocks: tuple[int, int] | None = None,
) -> None:
    """Run the first kernel over d of the D depths, B texts and H heads.

    Args:
        projected: (B S, d 2 H e) contiguous, queries and keys of each depth.
        value: (B, H, S, e) contiguous.
        pooling: (B, S) float32 contiguous.
        lengths: (B,) int64.
        out: depths `first_depth` to ``first_depth + d`` are written, all of each.
        unit: (1,) float32, what products of queries and keys are multiplied by.
        first_depth: which of the D depths is the first of the queries.
        blocks: rows and keys at once, powers of 2 and at least 16; None tunes them on the device.
    """
    batch, heads, size, width = value.shape
    depths = projected.shape[1] // (2 * heads * width)
    bucket = max(SMALLEST, triton.next_power_of_2(size))
    arguments = {
        "heads": heads,
        "width": width,
        "cells": POOLED,
        "bucket": bucket,
        "padded_width": max(SMALLEST, triton.next_power_of_2(width)),
        "padded_cells": SMALLEST,
        # Three products of TF32 are as exact as float32's.
        "precision": "tf32x3" if value.dtype == torch.float32 else "tf32",
    }
    short = bucket <= SHORT[value.dtype] if blocks is None else bucket <= blocks[1]
    kernel = tuned_short_kernel if short else tuned_long_kernel
    if blocks is not None:
        kernel = short_kernel if short else long_kernel
        arguments |= {"rows_at_once": blocks[0], "keys_at_once": blocks[1], "num_warps": 2}
    tensors = (projected, unit, value, pooling, lengths, *out)
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
    x, mask, query_weight, key_weight, value, pooling = inputs
    batch, heads, size, head_width = value.shape
    depths = inputs.depths
    lengths = mask.sum(-1)
    weight, shift = projection(query_weight, key_weight, dtype)
    unit = x.new_ones(1, dtype=torch.float32)
    if shift is None:
        tokens = x.flatten(0, 1).to(dtype)
    else:
        large, small, more = halves(x.float().masked_fill(~mask[..., None], 0).flatten(0, 1))
        # The small products first: tensor cores cut what they add to a large sum.
        tokens = torch.cat([small, large, large], -1)
        unit = torch.ldexp(unit, -2 * (shift + more))
    value = value.to(dtype).contiguous()
    pooling = pooling.float().contiguous()
    partial = empty_partial(batch, depths, heads, head_width, x.device)
    per_depth = 2 * batch * size * heads * head_width
    at_once = max(1, min(depths, PROJECTED // max(1, per_depth)))
    for start in range(0, depths, at_once):
        some = weight[start : start + at_once].flatten(0, 1).T
        if shift is None:
            projected = tokens @ some
        else:
            projected = torch.mm(tokens, some, out_dtype=torch.float32)
        launch(projected, value, pooling, lengths, partial, unit, start, blocks)
    return finish(partial, lengths)
