"""The 5D multi-attention-weight tensor, and its statistics without the tensor.

Notation: B batch, H heads, S tokens, D depths, h hidden width, e head width, n <= S the number of
real tokens of one text. All functions are pure and run on any device; masks are True on tokens.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

POOLED = 8  # the state pools each head's n x n attention to POOLED x POOLED
CELLS = POOLED**2  # numbers of one head in the state


class Inputs(NamedTuple):
    """Texts and the projections that their attentions come from; see `depth_statistics`.

    Attributes:
        x: (B, S, h), the attention's input; padding is never read.
        mask: (B, S) bool, real tokens first.
        query_weight: (D h, h), a Linear's weight; rows d h .. (d + 1) h belong to depth d.
        key_weight: (D h, h), likewise.
        value: (B, H, S, e).
        pooling: (B, S), weights of the tokens in the embedding; 0 on padding.
    """

    x: Tensor
    mask: Tensor
    query_weight: Tensor
    key_weight: Tensor
    value: Tensor
    pooling: Tensor

    @property
    def depths(self) -> int:
        """D."""
        return self.query_weight.shape[0] // self.x.shape[-1]

    def of_depths(self, first: int, count: int) -> "Inputs":
        """The same with `count` depths from `first` on, or with those of them that there are."""
        width = self.x.shape[-1]
        rows = slice(first * width, min(first + count, self.depths) * width)
        return self._replace(query_weight=self.query_weight[rows], key_weight=self.key_weight[rows])


class DepthStatistics(NamedTuple):
    """What an environment and a ranker need to know of all D attention matrices of each text.

    Attributes:
        state: (B, 64 H), mean attention over depth, pooled to 8 x 8 per head, of unit length.
        entropy: (B, D) in [0, 1], see `row_entropy`.
        focus: (B, D) in [0, 1], see `row_focus`.
        embeddings: (B, D, h), the text's embedding through each depth, of unit length; of the
            functions here its pooled attention, before the output projection.
    """

    state: Tensor
    entropy: Tensor
    focus: Tensor
    embeddings: Tensor


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(B, S, H e) to (B, H, S, e)."""
    batch, length, width = x.shape
    return x.view(batch, length, heads, width // heads).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """(B, H, S, e) to (B, S, H e)."""
    return x.transpose(1, 2).flatten(2)


def attention_weights(query: Tensor, key: Tensor, mask: Tensor) -> Tensor:
    """Softmax over keys of the scaled dot products of (B, ..., S, e), padded keys left out.

    Returns:
        (B, ..., S, S). Rows sum to 1 over the real keys; a text without tokens has rows of 0.
    """
    # In place, since no gradient needs the scores; that of a filled score is 0 with its weight.
    scores = (query @ key.transpose(-1, -2)).div_(math.sqrt(query.shape[-1]))
    real = _broadcast(mask, scores.ndim)
    with torch.no_grad():
        # A finite floor: rows of a text without tokens are 0 / 0 with -inf, and poison gradients.
        scores.masked_fill_(~real, torch.finfo(scores.dtype).min)
    return scores.softmax(dim=-1) * real


def _broadcast(mask: Tensor, dimensions: int) -> Tensor:
    """(B, S) to (B, 1, ..., S)."""
    return mask.view(mask.shape[0], *(1,) * (dimensions - 2), mask.shape[1])


def depth_attention(
    x: Tensor, mask: Tensor, query_weight: Tensor, key_weight: Tensor, heads: int
) -> Tensor:
    """The 5D tensor: for every depth the softmax over KEYS of ``Q_d K_d^T / sqrt(e)``.

    Arguments are as in `Inputs`. The result is (B, H, S, S, D): query token, key token, depth. It
    is the reference for everything faster.
    """
    # (B, H, D, S, S) -> (B, H, S, S, D)
    return _by_depth(x, mask, query_weight, key_weight, heads).permute(0, 1, 3, 4, 2)


def _by_depth(
    x: Tensor, mask: Tensor, query_weight: Tensor, key_weight: Tensor, heads: int
) -> Tensor:
    """`depth_attention` as it lies in memory, (B, H, D, S, S)."""
    batch, length, width = x.shape
    # (B, S, D h) -> (B, S, D, H, e) -> (B, H, D, S, e)
    shape = (batch, length, -1, heads, width // heads)
    query = (x @ query_weight.T).view(shape).permute(0, 3, 2, 1, 4)
    key = (x @ key_weight.T).view(shape).permute(0, 3, 2, 1, 4)
    return attention_weights(query, key, mask)


def row_entropy(weights: Tensor, mask: Tensor) -> Tensor:
    """Shannon entropy of the real rows over log n, mean over rows and heads.

    Args:
        weights: (B, H, ..., S, S) with rows over the last axis.
        mask: (B, S) bool.

    Returns:
        (B, ...) in [0, 1]; 0 for texts of fewer than two tokens.
    """
    # The smallest number keeps the gradient finite at 0, where xlogy's is not.
    tiny = torch.finfo(weights.dtype).tiny
    entropy = -(weights * weights.clamp(min=tiny).log()).sum(-1)  # (B, H, ..., S)
    lengths = mask.sum(-1)
    scale = lengths.clamp(min=2).log().reciprocal()
    mean = _mean_of_rows(entropy, mask)
    return (mean * scale.view(-1, *(1,) * (mean.ndim - 1))).clamp(0, 1)


def row_focus(weights: Tensor, mask: Tensor) -> Tensor:
    """Largest weight of the real rows, mean over rows and heads.

    This is a head's "confidence" of Voita et al., ACL 2019 (arXiv:1905.09418), section 4. As
    `row_entropy`, but 1 for a text of one token.
    """
    return _mean_of_rows(weights.amax(-1), mask).clamp(0, 1)


def _mean_of_rows(values: Tensor, mask: Tensor) -> Tensor:
    """(B, H, ..., S) to (B, ...): mean over heads and real rows; 0 where there is no real row."""
    rows = _broadcast(mask, values.ndim)
    count = mask.sum(-1).clamp(min=1).view(-1, *(1,) * (values.ndim - 3))
    return (values * rows).sum(-1).mean(1) / count


def pooling_matrix(mask: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Adaptive average pooling of n real tokens to 8 cells, as a matrix P (B, 8, S).

    Cell i averages tokens floor(i n / 8) to ceil((i + 1) n / 8) - 1, as torch defines
    `adaptive_avg_pool2d`. So ``P A P^T`` pools the real n x n part of A. Rows sum to 1, or are 0
    for a text without tokens.
    """
    lengths = mask.sum(-1, keepdim=True)  # (B, 1)
    cell = torch.arange(POOLED, device=mask.device)
    start = cell * lengths // POOLED  # (B, 8)
    stop = -(-(cell + 1) * lengths // POOLED)
    token = torch.arange(mask.shape[1], device=mask.device)
    inside = (token >= start[..., None]) & (token < stop[..., None])
    return inside.to(dtype) / (stop - start).clamp(min=1)[..., None]


def pooled_state(mean_attention: Tensor, mask: Tensor) -> Tensor:
    """The observation block `attention`: (B, H, S, S) to (B, 64 H), pooled and of unit length."""
    pool = pooling_matrix(mask, mean_attention.dtype)[:, None]  # (B, 1, 8, S)
    state = (pool @ mean_attention @ pool.transpose(-1, -2)).flatten(1)
    return torch.nn.functional.normalize(state, dim=-1)


def depth_statistics(inputs: Inputs, *, exact: bool = False) -> DepthStatistics:
    """The statistics of every depth's attention.

    An embedding is a pooled sum over tokens, so of the product with V only its pooled row is ever
    needed: ``pooling^T A_d V`` is a vector times V, not a matrix. On the CPU blocks that stay in
    its cache, and on CUDA a fused Triton kernel, compute what stands here without ever holding the
    5D tensor, but no gradients. With `exact` it is as exact as float32 on CUDA too, where operands
    are bfloat16 otherwise.
    """
    gradients = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in inputs)
    if inputs.x.is_cuda and not gradients:
        from maw_gym.attention.gpu import fused_statistics  # CPU torch does not bring triton

        return fused_statistics(inputs, exact)
    if inputs.x.device.type == "cpu" and not gradients:
        from maw_gym.attention.cpu import packed_statistics  # which imports this module

        return packed_statistics(inputs)
    x, mask, query_weight, key_weight, value, pooling = inputs
    x = x.masked_fill(~mask[..., None], 0)
    value = value.masked_fill(~mask[:, None, :, None], 0)
    weights = _by_depth(x, mask, query_weight, key_weight, value.shape[1])  # (B, H, D, S, S)
    # (B, 1, 1, 1, S) @ (B, H, D, S, S) -> (B, H, D, S) @ (B, H, S, e) -> (B, D, H e)
    row = (pooling[:, None, None, None] @ weights).squeeze(-2)
    pooled = (row @ value).transpose(1, 2).flatten(2)
    state = pooled_state(weights.mean(2), mask)
    return DepthStatistics(state, row_entropy(weights, mask), row_focus(weights, mask), pooled)
