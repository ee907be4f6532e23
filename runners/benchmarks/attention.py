"""All depths' statistics: by the 5D tensor, by depth_statistics, and the floor."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from maw_gym.attention.reference import (
    Inputs,
    depth_attention,
    depth_statistics,
    pooled_state,
    row_entropy,
    row_focus,
)
from maw_gym.runners.benchmarks.measuring import Row, interleaved, peak_memory

TENSOR, OURS, FLOOR = "5D tensor", "depth_statistics", "floor"
EXACT, COPIES = "depth_statistics, exact", "floor with copies"

HEADS = {256: 8, 384: 12}  # by width: of static embeddings and of MiniLM
# (texts of equal length, tokens, width)
SHAPES = ((4, 128, 256), (4, 128, 384), (64, 24, 256), (64, 32, 384))
CPU_SHAPES = (*SHAPES, (8, 512, 256))
CUDA_SHAPES = (*SHAPES, (1024, 32, 384), (256, 128, 256), (256, 128, 384), (64, 512, 256))
QUICK_SHAPES = ((2, 9, 256),)


def cases(shapes: Sequence[tuple[int, int, int]], device: torch.device) -> dict[str, Inputs]:
    """Random inputs of these shapes for 32 depths, by name."""
    return {
        f"{texts} x {tokens}{'' if width == 256 else f', h = {width}'}": random_inputs(
            [tokens] * texts, HEADS[width], 32, width, device
        )
        for texts, tokens, width in shapes
    }


def random_inputs(
    lengths: Sequence[int], heads: int, depths: int, width: int, device: torch.device
) -> Inputs:
    """Normally distributed inputs for texts of these lengths."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    batch, size = len(lengths), max(lengths)
    mask = torch.arange(size) < torch.tensor(lengths)[:, None]
    pooling = torch.rand(batch, size, generator=generator) * mask
    return Inputs(
        normal(batch, size, width),
        mask.to(device),
        normal(depths * width, width) / width**0.5,
        normal(depths * width, width) / width**0.5,
        normal(batch, heads, size, width // heads),
        (pooling / pooling.sum(-1, keepdim=True)).to(device),
    )


def tensor_way(inputs: Inputs) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The 5D tensor of the whole batch, then its reductions."""
    x, mask, query_weight, key_weight, value, pooling = inputs
    weights = depth_attention(x, mask, query_weight, key_weight, value.shape[1])
    by_depth = weights.movedim(-1, 2)  # (B, H, D, S, S), as it lies in memory
    row = (pooling[:, None, None, None] @ by_depth).squeeze(-2)  # (B, H, D, S)
    pooled = (row @ value).transpose(1, 2).flatten(2)
    state = pooled_state(by_depth.mean(2), mask)
    return state, row_entropy(by_depth, mask), row_focus(by_depth, mask), pooled


def floor(inputs: Inputs, *, copies: bool = False) -> Callable[[], Tensor]:
    """What no way can do without: the depth projections and torch's own attention."""
    x, mask, *weights, value, _ = inputs
    batch, heads, size, head_width = value.shape
    depths = inputs.depths
    if x.is_cuda:
        x, value = x.bfloat16(), value.bfloat16()
        weights = [weight.bfloat16() for weight in weights]
    repeated = value[:, None].expand(-1, depths, -1, -1, -1).flatten(1, 2).contiguous()
    keys = None if bool(mask.all()) else mask[:, None, None]

    def run() -> Tensor:
        query, key = (
            (x @ weight.T).view(batch, size, depths * heads, head_width).transpose(1, 2)
            for weight in weights
        )
        if copies:
            query, key = query.contiguous(), key.contiguous()
        return scaled_dot_product_attention(query, key, repeated, attn_mask=keys)

    return run


@torch.no_grad()
def attention_rows(case: str, inputs: Inputs, rounds: int, budget: float) -> list[Row]:
    """Time and memory of every way on one problem."""
    device = inputs.x.device
    functions: dict[str, Callable[[], object]] = {
        TENSOR: lambda: tensor_way(inputs),
        OURS: lambda: depth_statistics(inputs),
        FLOOR: floor(inputs),
    }
    if device.type == "cuda":  # on a CPU it is depth_statistics itself
        functions[EXACT] = lambda: depth_statistics(inputs, exact=True)
        functions[COPIES] = floor(inputs, copies=True)
    memory = {}
    for name, function in list(functions.items()):
        try:
            function()  # compiling allocates too
            memory[name] = peak_memory(function, device)
        except torch.OutOfMemoryError:
            del functions[name]
    times = interleaved(functions, device, rounds, budget)
    return [
        Row("attention", case, name, found, times[FLOOR], len(inputs.x), "queries", memory[name])
        for name, found in times.items()
    ]
