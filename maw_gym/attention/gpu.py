"""The statistics of all depths on a GPU: projections through torch, the rest in Triton kernels.

All depths of all texts are one launch, unless their queries and keys pass a limit. The scores and
weights never reach memory. Small batches wait for their launches: there are four, of few tensors.
Notation as in reference.py.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from maw_gym.attention.kernels import SMALLEST, finish_kernel, prepare_kernel, statistics_kernel
from maw_gym.attention.reference import CELLS, POOLED, DepthStatistics, Inputs

PROJECTED = 1 << 31  # numbers in a launch's queries and keys

Blocks = tuple[int, int, int, int, int | None, int]
# Rows and keys of a block, warps, stages of the pipeline, registers of a thread, depths in turn, by
# the longest text (rounded up to a power of 2), in bfloat16 and exact: the fastest of some dozens
# on an H200.
BLOCKS: dict[int, tuple[Blocks, Blocks]] = {
    16: ((16, 16, 1, 2, None, 8), (16, 16, 1, 2, None, 8)),
    32: ((32, 32, 1, 3, None, 16), (32, 32, 1, 1, None, 1)),
    64: ((64, 64, 4, 2, 96, 8), (64, 64, 2, 2, None, 8)),
    128: ((128, 128, 4, 1, 168, 1), (64, 128, 4, 1, 168, 1)),
    1 << 30: ((128, 64, 4, 3, 224, 1), (128, 64, 4, 2, None, 1)),
}

# For bfloat16 and exact, by the weights of the queries: which they and the keys were, the operand.
_projections = (WeakIdKeyDictionary(), WeakIdKeyDictionary())


class _Launcher:
    """A kernel whose launches after the first of a kind go past Triton's look at the arguments."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.compiled: dict[tuple[object, ...], Any] = {}

    def __call__(
        self,
        programs: int,
        tensors: tuple[Tensor, ...],
        numbers: tuple[float, ...],
        constants: tuple[int, ...],
        *,
        others: int = 0,
        **options: int | None,
    ) -> None:
        """`others`: how many tensors come first that are the caller's, of any type and place."""
        kinds = tuple((one.dtype, one.data_ptr() % 16) for one in tensors[:others])
        key = (tensors[0].device, constants, kinds, *options.values())
        compiled = self.compiled.get(key)
        if compiled is None:
            launch = self.kernel[(programs,)]
            self.compiled[key] = launch(*tensors, *numbers, *constants, **options)
        else:
            compiled[(programs, 1, 1)](*tensors, *numbers, *constants)


_prepare, _statistics, _finish = map(_Launcher, (prepare_kernel, statistics_kernel, finish_kernel))


def projection(query_weight: Tensor, key_weight: Tensor, exact: bool) -> tuple[Tensor, Tensor]:
    """The weights (D h, h) as the operand of one product, made once while they do not change.

    Returns:
        (h, D 2 h) bfloat16, or (3 h, D 2 h) float16: large, small and large halves; and (1,)
        float32, what the halves are multiples of.
    """
    cache, of = _projections[exact], None
    if not (query_weight.is_inference() or key_weight.is_inference()):  # those have no version
        of = key_weight.data_ptr(), query_weight._version, key_weight._version
        known: tuple[Any, tuple[Tensor, Tensor]] | None = cache.get(query_weight)
        if known is not None and known[0] == of:
            return known[1]
    width = query_weight.shape[1]
    weight = torch.stack([w.view(-1, width, width) for w in (query_weight, key_weight)], 1)
    weight = weight.view(-1, width)  # (D 2 h, h)
    scale = weight.new_ones(1, dtype=torch.float32)
    if exact:
        scale = 1024 / weight.abs().amax().float().clamp(min=1e-30).view(1)
        large = (weight * scale).half()
        small = (weight * scale - large).half()
        weight = torch.cat([large, small, large], -1)
    else:
        weight = weight.bfloat16()
    made = weight.T, 1 / scale
    if of is not None:
        cache[query_weight] = (of, made)
    return made


def _power_of_2(number: int, least: int = 1) -> int:
    """`number` rounded up to a power of 2, at least `least`."""
    return max(least, 1 << (number - 1).bit_length())


def fused_statistics(
    inputs: Inputs, exact: bool = False, blocks: Blocks | None = None
) -> DepthStatistics:
    """The statistics of `reference.depth_statistics`, float32, forward only, on CUDA."""
    x, mask, query_weight, key_weight, value, pooling = inputs
    batch, heads, size, head_width = value.shape
    width, depths = x.shape[-1], inputs.depths
    weight, weight_unit = projection(query_weight, key_weight, exact)
    padded_width = _power_of_2(head_width, SMALLEST)
    padded_columns = _power_of_2(padded_width + POOLED + 1)  # the cells and ones beside V
    bucket = _power_of_2(size, SMALLEST)
    tokens = torch.empty(batch * size, weight.shape[0], dtype=weight.dtype, device=x.device)
    count = batch * heads * size * (2 if exact else 1) * padded_columns
    columns = torch.empty(count, dtype=weight.dtype, device=x.device)
    # state, sums, of_token, of_text of the kernels
    counts = (batch * depths * heads * CELLS, 2 * batch * depths * heads, 2 * batch * size)
    rooms = [-(-count // 4) * 4 for count in (*counts, 2 * batch * heads)]  # whole 16 bytes
    state_parts, sums, of_token, of_text = torch.empty(sum(rooms), device=x.device).split(rooms)
    made = (tokens, columns, of_token, of_text)
    pooled = torch.empty(batch, depths, width, device=x.device)
    _prepare(
        batch * (heads + size),
        (x.contiguous(), mask.contiguous(), value, pooling.contiguous(), weight_unit, *made),
        (size, batch, *value.stride()),
        (heads, head_width, width, padded_columns, padded_width, _power_of_2(width), exact),
        others=4,
    )
    constants = (heads, head_width, bucket, padded_columns, padded_width, exact)
    if blocks is None:
        blocks = next(both[exact] for longest, both in BLOCKS.items() if bucket <= longest)
    rows, keys, warps, stages, registers, in_turn = blocks
    at_once = max(1, min(depths, PROJECTED // max(1, 2 * batch * size * width)))
    for first in range(0, depths, at_once):
        count = min(at_once, depths - first)
        turn = math.gcd(count, in_turn)
        some = weight
        if count < depths:
            some = weight[:, first * 2 * width : (first + count) * 2 * width]
        if not x.is_cuda:  # Triton's interpreter
            projected = tokens.float() @ some.float()
        elif exact:
            projected = torch.mm(tokens, some, out_dtype=torch.float32)
        else:
            projected = torch.mm(tokens, some)
        _statistics(
            batch * (count // turn) * heads,
            (projected, columns, of_token, of_text, state_parts, sums, pooled),
            (size, first, depths, math.log2(math.e) / head_width**0.5),
            (count, *constants, rows, keys, turn),
            num_warps=warps,
            num_stages=stages,
            maxnreg=registers,
        )
    state = torch.empty(batch, heads * CELLS, device=x.device)
    entropy, focus = (torch.empty(batch, depths, device=x.device) for _ in range(2))
    padded = _power_of_2(heads * CELLS)
    _finish(
        batch,
        (of_text, state_parts, sums, state, entropy, focus),
        (depths,),
        # A block of the state that stays in registers, however many heads there are.
        (heads, heads * CELLS, _power_of_2(heads), padded, max(1, 8192 // padded)),
    )
    return DepthStatistics(state, entropy, focus, pooled)
