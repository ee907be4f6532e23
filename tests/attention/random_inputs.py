"""Random inputs of depth statistics, and the statistics from the whole 5D tensor in float64."""

import torch

from maw_gym.attention.reference import (
    Inputs,
    depth_attention,
    pooled_state,
    row_entropy,
    row_focus,
)


def real_tokens(*lengths, padded_to=None):
    size = max(lengths) if padded_to is None else padded_to
    return torch.arange(size) < torch.tensor(lengths)[:, None]


def random_inputs(lengths, depths, heads, width, seed, padding=0):
    """Of texts of these lengths, padded beyond the longest; `x` is garbage on padding."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(shape, generator=generator)

    batch, size = len(lengths), max(*lengths, 1) + padding
    mask = real_tokens(*lengths, padded_to=size)
    x = normal(batch, size, width)
    query = normal(depths * width, width) * 2 / width**0.5
    key = normal(depths * width, width) / width**0.5
    value = normal(batch, heads, size, width // heads)
    pooling = torch.rand(batch, size, generator=generator) * mask
    return Inputs(x, mask, query, key, value, pooling / pooling.sum(-1, True).clamp(min=1e-9))


def reference(inputs):
    """State, entropy, focus and pooled output in float64."""
    x, query, key, value, pooling = (t.double() for t in inputs if t.is_floating_point())
    weights = depth_attention(x, inputs.mask, query, key, value.shape[1])
    by_depth = weights.movedim(-1, 2)  # (B, H, D, S, S)
    pooled = torch.einsum("bi,bhdij,bhje->bdhe", pooling, by_depth, value).flatten(2)
    state = pooled_state(weights.mean(-1), inputs.mask)
    return state, row_entropy(by_depth, inputs.mask), row_focus(by_depth, inputs.mask), pooled
