"""All depths' statistics: depth by depth, by the 5D tensor, by depth_statistics, and the floor."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, normalize, scaled_dot_product_attention

from maw_gym.attention.reference import (
    Inputs,
    depth_attention,
    depth_statistics,
    pooled_state,
    row_entropy,
    row_focus,
)
from maw_gym.runners.benchmarks.measuring import Row, interleaved, peak_memory, row

BY_DEPTH, TENSOR, OURS, FLOOR = "depth by depth", "5D tensor", "depth_statistics", "floor"
EXACT, COPIES = "depth_statistics, exact", "floor with copies"


class Shape(NamedTuple):
    """Texts of equal length; width and heads as of static embeddings, or `MINILM`'s."""

    texts: int
    tokens: int
    heads: int = 8
    width: int = 256

    def __str__(self) -> str:
        width = "" if self.width == Shape._field_defaults["width"] else f", h = {self.width}"
        return f"{self.texts} x {self.tokens}{width}"

    def inputs(self, device: torch.device) -> Inputs:
        """Random ones of this shape for 32 depths."""
        return random_inputs([self.tokens] * self.texts, self.heads, 32, self.width, device)


MINILM = {"heads": 12, "width": 384}
SHAPES = (Shape(4, 128), Shape(4, 128, **MINILM), Shape(64, 24), Shape(64, 32, **MINILM))
CPU_SHAPES = (*SHAPES, Shape(8, 512))
LARGE = (Shape(1024, 32, **MINILM), Shape(256, 128), Shape(256, 128, **MINILM), Shape(64, 512))
CUDA_SHAPES = (*SHAPES, *LARGE)
QUICK_SHAPES = (Shape(2, 9),)


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


def depth_by_depth(inputs: Inputs) -> tuple[Tensor, list[list[tuple[float, float, Tensor]]]]:
    """A loop over depths into a zeroed 5D tensor, then one text at a time."""
    x, mask, query_weight, key_weight, value, pooling = inputs
    batch, heads, size, head_width = value.shape
    depths = inputs.depths
    shape = (batch, size, depths, heads, head_width)
    query = (x @ query_weight.T).view(shape).permute(0, 3, 1, 4, 2)  # (B, H, S, e, D)
    key = (x @ key_weight.T).view(shape).permute(0, 3, 1, 4, 2)
    weights = x.new_zeros(batch, heads, size, size, depths)
    for d in range(depths):
        scores = query[..., d] @ key[..., d].transpose(-1, -2) / math.sqrt(head_width)
        scores = scores.masked_fill(~mask[:, None, None], float("-inf"))
        weights[..., d] = scores.softmax(-1)
    mean = weights.mean(-1)
    states, outcomes = [], []
    for text, n in enumerate(mask.sum(-1).tolist()):
        pooled = adaptive_avg_pool2d(mean[text, :, :n, :n], 8)
        states.append(normalize(pooled.flatten(), dim=0))
        rewards = []
        for d in range(depths):
            chosen = weights[text, :, :n, :n, d]
            entropy = -(chosen * (chosen + 1e-12).log()).sum(-1).mean() / math.log(max(n, 2))
            focus = chosen.amax(-1).mean()
            output = chosen @ value[text, :, :n]  # (H, n, e)
            embedding = (pooling[text, :n, None] * output).sum(1)
            rewards.append((entropy.item(), focus.item(), embedding))
        outcomes.append(rewards)
    return torch.stack(states), outcomes


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
        BY_DEPTH: lambda: depth_by_depth(inputs),
        TENSOR: lambda: tensor_way(inputs),
        OURS: lambda: depth_statistics(inputs),
        EXACT: lambda: depth_statistics(inputs, exact=True),
        FLOOR: floor(inputs),
        COPIES: floor(inputs, copies=True),
    }
    if device.type != "cuda":
        del functions[EXACT]  # depth_statistics itself
    memory = {}
    for name, function in list(functions.items()):
        try:
            if device.type == "cuda":
                function()  # compiling allocates too
            memory[name] = peak_memory(function, device)
        except torch.OutOfMemoryError:
            del functions[name]
    times = interleaved(functions, device, rounds, budget)
    return [
        row("attention", case, name, found, times[FLOOR], len(inputs.x), "queries/s", memory[name])
        for name, found in times.items()
    ]
