"""All depths' statistics: depth by depth, by the 5D tensor, by depth_statistics, and the floor."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d, normalize, scaled_dot_product_attention

from maw_gym.attention.reference import (
    Inputs,
    block_statistics,
    depth_attention,
    depth_statistics,
    pooled_state,
    row_entropy,
    row_focus,
)
from runners.benchmarks.measuring import Row, interleaved, peak_memory, row

BY_DEPTH, TENSOR, OURS, FLOOR = "depth by depth", "5D tensor", "depth_statistics", "floor"
COMPILED = "torch.compile"
COMPILED_DEPTHS = 4  # depths at once: all of them do not fit at the larger shapes
DEPTHS = 32


class Shape(NamedTuple):
    """A batch of texts of equal length, and the width and heads of their hidden states.

    The default is that of static embeddings; `MINILM` is that of MiniLM and its like.
    """

    texts: int
    tokens: int
    heads: int = 8
    width: int = 256

    def __str__(self) -> str:
        width = "" if self.width == Shape._field_defaults["width"] else f", h = {self.width}"
        return f"{self.texts} x {self.tokens}{width}"

    def problem(self, device: torch.device) -> "Problem":
        """Random inputs of this shape for 32 depths."""
        return random_problem([self.tokens] * self.texts, self.heads, DEPTHS, self.width, device)


MINILM = {"heads": 12, "width": 384}
CPU_SHAPES = (
    Shape(4, 128),
    Shape(4, 128, **MINILM),
    Shape(64, 24),
    Shape(64, 32, **MINILM),
    Shape(8, 512),
)
CUDA_SHAPES = (
    *CPU_SHAPES[:-1],
    Shape(256, 128),
    Shape(256, 128, **MINILM),
    Shape(64, 512),
)
QUICK_SHAPES = (Shape(2, 9),)


class Problem(NamedTuple):
    """Inputs of `depth_statistics`, and the lengths of the texts."""

    inputs: Inputs
    lengths: list[int]


def random_problem(
    lengths: Sequence[int], heads: int, depths: int, width: int, device: torch.device
) -> Problem:
    """Normally distributed inputs for texts of these lengths."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    batch, size = len(lengths), max(lengths)
    mask = torch.arange(size) < torch.tensor(lengths)[:, None]
    pooling = torch.rand(batch, size, generator=generator) * mask
    inputs = Inputs(
        normal(batch, size, width),
        mask.to(device),
        normal(depths * width, width) / width**0.5,
        normal(depths * width, width) / width**0.5,
        normal(batch, heads, size, width // heads),
        (pooling / pooling.sum(-1, keepdim=True)).to(device),
    )
    return Problem(inputs, list(lengths))


def depth_by_depth(problem: Problem) -> tuple[Tensor, list[list[tuple[float, float, Tensor]]]]:
    """A loop over depths into a zeroed 5D tensor, then one text at a time.

    Returns:
        The states, and for every text and depth entropy, focus and the pooled attention output:
        what `step` needs for the reward of each possible action.
    """
    x, mask, query_weight, key_weight, value, pooling = problem.inputs
    batch, heads, size, head_width = value.shape
    depths = query_weight.shape[0] // x.shape[-1]
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
    for text, n in enumerate(problem.lengths):
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


def tensor_way(problem: Problem) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The 5D tensor of the whole batch, then its reductions."""
    x, mask, query_weight, key_weight, value, pooling = problem.inputs
    weights = depth_attention(x, mask, query_weight, key_weight, value.shape[1])
    by_depth = weights.movedim(-1, 2)  # (B, H, D, S, S), as it lies in memory
    row = (pooling[:, None, None, None] @ by_depth).squeeze(-2)  # (B, H, D, S)
    pooled = (row @ value).transpose(1, 2).flatten(2)
    state = pooled_state(by_depth.mean(2), mask)
    return state, row_entropy(by_depth, mask), row_focus(by_depth, mask), pooled


def floor(problem: Problem) -> Callable[[], Tensor]:
    """What no way can do without: the depth projections and torch's own attention.

    Depth is an extra head axis of scaled_dot_product_attention. V is repeated for each depth
    beforehand. Its masks are additive or none; on a GPU the operands are bfloat16.
    """
    x, mask, query_weight, key_weight, value, _ = problem.inputs
    batch, heads, size, head_width = value.shape
    depths = query_weight.shape[0] // x.shape[-1]
    if x.is_cuda:
        x, query_weight, key_weight, value = (
            tensor.bfloat16() for tensor in (x, query_weight, key_weight, value)
        )
    repeated = value[:, None].expand(-1, depths, -1, -1, -1).flatten(1, 2).contiguous()
    keys = None if bool(mask.all()) else mask[:, None, None]

    def run() -> Tensor:
        query, key = (
            (x @ weight.T).view(batch, size, depths * heads, head_width).transpose(1, 2)
            for weight in (query_weight, key_weight)
        )
        return scaled_dot_product_attention(query, key, repeated, attn_mask=keys)

    return run


def compiled(problem: Problem) -> Callable[[], list[tuple[Tensor, ...]]]:
    """The plain torch blocks through torch.compile, in bfloat16 on a GPU."""
    x, mask, query_weight, key_weight, value, pooling = problem.inputs
    if x.is_cuda:
        x, query_weight, key_weight, value, pooling = (
            t.bfloat16() for t in (x, query_weight, key_weight, value, pooling)
        )
    rows = COMPILED_DEPTHS * x.shape[-1]
    function = torch.compile(block_statistics, dynamic=False)
    blocks = list(zip(query_weight.split(rows), key_weight.split(rows), strict=True))
    return lambda: [function(x, mask, *block, value, pooling) for block in blocks]


def work(problem: Problem) -> tuple[float, float]:
    """Floating-point operations of the floor, and the bytes that `depth_statistics` must move.

    The bytes are those of the inputs, and of queries and keys written once and read once, with two
    bytes each on a GPU and four on a CPU.
    """
    x, _, query_weight, _, value, _ = problem.inputs
    heads, head_width = value.shape[1], value.shape[3]
    width, depths = x.shape[-1], problem.inputs.depths
    tokens, pairs = sum(problem.lengths), sum(n * n for n in problem.lengths)
    operations = 4 * tokens * width * width * depths + 4 * pairs * heads * head_width * depths
    each = 2 if x.is_cuda else 4
    numbers = 2 * tokens * width + 2 * query_weight.numel() + 4 * tokens * width * depths
    return float(operations), float(each * numbers)


@torch.no_grad()
def attention_rows(
    case: str, problem: Problem, rounds: int, budget: float, with_compiled: bool
) -> list[Row]:
    """Time and memory of the four ways (and torch.compile's) on one problem."""
    device = problem.inputs.x.device
    functions: dict[str, Callable[[], object]] = {
        BY_DEPTH: lambda: depth_by_depth(problem),
        TENSOR: lambda: tensor_way(problem),
        OURS: lambda: depth_statistics(problem.inputs),
        FLOOR: floor(problem),
    }
    if with_compiled:
        functions[COMPILED] = compiled(problem)
    memory = {}
    for name, function in list(functions.items()):
        try:
            if device.type == "cuda":
                function()  # tuning and compiling allocate too
            memory[name] = peak_memory(function, device)
        except torch.OutOfMemoryError:
            del functions[name]
    times = interleaved(functions, device, rounds, budget)
    operations, moved = work(problem)
    rows = []
    for name, found in times.items():
        made = row(
            "attention",
            case,
            name,
            found,
            times[FLOOR],
            len(problem.lengths),
            "queries/s",
            memory[name],
        )
        if name in (OURS, FLOOR):
            made.more["FLOP/s"] = operations / made.seconds
            made.more["bytes/s"] = moved / made.seconds
        rows.append(made)
    return rows
