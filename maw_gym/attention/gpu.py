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
    statistics_kernel,
    tokens_kernel,
    tuned_statistics_kernel,
    values_kernel,
)
from maw_gym.attention.reference import CELLS, POOLED, Inputs, Statistics

PROJECTED = 1 << 31  # numbers in a launch's queries and keys

# By the weights of the queries: of which keys and versions they were made, and `Projection`.
_projections = WeakIdKeyDictionary()


class Projection(NamedTuple):
    """The weights of queries and keys as the operand of one product.

    Attributes:
        weight: (D, 2 h, h), or float16 (D, 2 h, 3 h): large, small and large halves.
        unit: (1,) float32, what the halves are multiples of.
    """

    weight: Tensor
    unit: Tensor


class Columns(NamedTuple):
    """V beside the cells of each token, and the texts' lengths; see `values_kernel`.

    Attributes:
        numbers: (B, H, S, columns), or float16 (B, H, S, 2, columns): large and small halves.
        unit: (B H,) float32, what the halves are multiples of.
        lengths: (B,) int32.
    """

    numbers: Tensor
    unit: Tensor
    lengths: Tensor


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


def projection(query_weight: Tensor, key_weight: Tensor, exact: bool) -> Projection:
    """The operand of these weights (D h, h), made once as long as they do not change."""
    counted = not (query_weight.is_inference() or key_weight.is_inference())  # have a version
    of = (
        (key_weight.data_ptr(), query_weight._version, key_weight._version, exact)
        if counted
        else ()
    )
    cached: tuple[Any, Projection] | None = _projections.get(query_weight) if counted else None
    if cached is not None and cached[0] == of:
        return cached[1]
    width = query_weight.shape[1]
    weight = torch.stack([w.view(-1, width, width) for w in (query_weight, key_weight)], 1)
    weight = weight.flatten(1, 2)  # (D, 2 h, h)
    scale = weight.new_ones(1, dtype=torch.float32)
    if exact:
        scale = 1024 / weight.abs().amax().float().clamp(min=1e-30).view(1)
        large = (weight * scale).half()
        small = (weight * scale - large).half()
        weight = torch.cat([large, small, large], -1)
    else:
        weight = weight.bfloat16()
    made = Projection(weight, 1 / scale)
    if counted:
        _projections[query_weight] = (of, made)
    return made


def columns(value: Tensor, mask: Tensor, exact: bool) -> Columns:
    """`Columns` of `value` (B, H, S, e) and `mask` (B, S)."""
    batch, heads, size, width = value.shape
    padded = triton.next_power_of_2(max(SMALLEST, width + POOLED))
    shape = (batch, heads, size, 2, padded) if exact else (batch, heads, size, padded)
    numbers = value.new_empty(shape, dtype=torch.float16 if exact else torch.bfloat16)
    unit = value.new_empty(batch * heads if exact else 1, dtype=torch.float32)
    lengths = value.new_empty(batch, dtype=torch.int32)
    values_kernel[(batch * heads,)](
        value,
        mask.contiguous(),
        lengths,
        numbers,
        unit,
        size,
        *value.stride(),
        heads=heads,
        width=width,
        cells=POOLED,
        padded_columns=padded,
        exact=exact,
        at_once=32,
    )
    return Columns(numbers, unit, lengths)


def launch(
    projected: Tensor,
    unit: Tensor,
    beside: Columns,
    pooling: Tensor,
    out: Partial,
    exact: bool,
    first_depth: int = 0,
    blocks: tuple[int, int] | None = None,
) -> None:
    """Run the first kernel over d of the D depths, B texts and H heads."""
    batch, all_depths, heads, width = out.pooled.shape
    size = pooling.shape[1]
    depths = projected.shape[1] // (2 * heads * width)
    arguments = {
        "heads": heads,
        "width": width,
        "cells": POOLED,
        "bucket": max(SMALLEST, triton.next_power_of_2(size)),
        "padded_columns": beside.numbers.shape[-1],
        "padded_width": max(SMALLEST, triton.next_power_of_2(width)),
        "padded_cells": SMALLEST,
        "exact": exact,
    }
    kernel = tuned_statistics_kernel
    if blocks is not None:
        kernel = statistics_kernel
        arguments |= {"rows_at_once": blocks[0], "keys_at_once": blocks[1], "num_warps": 2}
    tensors = (projected, unit, beside.numbers, beside.unit, pooling, beside.lengths, *out)
    numbers = (size, depths, first_depth, all_depths, math.log2(math.e) / width**0.5)
    kernel[(batch * depths * heads,)](*tensors, *numbers, **arguments)


def finish(partial: Partial, lengths: Tensor) -> Statistics:
    """Add up partial results of texts of these lengths (B,)."""
    batch, depths, heads = partial.entropy.shape
    numbers = heads * CELLS
    padded_numbers = triton.next_power_of_2(numbers)
    state = partial.state.new_empty(batch, numbers)
    entropy, focus = partial.state.new_empty(2, batch, depths)
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
    inputs: Inputs, exact: bool = False, blocks: tuple[int, int] | None = None
) -> Statistics:
    """The statistics of `reference.depth_statistics`, float32, forward only, on CUDA."""
    x, mask, query_weight, key_weight, value, pooling = inputs
    batch, heads, size, head_width = value.shape
    width, depths = x.shape[-1], inputs.depths
    weight, weight_unit = projection(query_weight, key_weight, exact)
    beside = columns(value, mask, exact)
    if exact:
        tokens = x.new_empty((batch * size, 3 * width), dtype=torch.float16)
        unit = weight_unit.new_empty(batch * size)
        tokens_kernel[(batch * size,)](
            x.contiguous(),
            weight_unit,
            tokens,
            unit,
            width=width,
            padded_width=triton.next_power_of_2(width),
        )
    else:
        tokens, unit = x.flatten(0, 1).bfloat16(), weight_unit
    pooling = pooling.float().contiguous()
    partial = empty_partial(batch, depths, heads, head_width, x.device)
    per_depth = 2 * batch * size * width
    at_once = max(1, min(depths, PROJECTED // max(1, per_depth)))
    for start in range(0, depths, at_once):
        some = weight[start : start + at_once].flatten(0, 1).T
        if exact and x.is_cuda:
            projected = torch.mm(tokens, some, out_dtype=torch.float32)
        elif exact:  # Triton's interpreter
            projected = tokens.float() @ some.float()
        else:
            projected = tokens @ some
        launch(projected, unit, beside, pooling, partial, exact, start, blocks)
    return finish(partial, beside.lengths)
