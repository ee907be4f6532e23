"""Pooling of a text's attention to a fixed number of cells, as torch's adaptive pooling has it."""

import torch
from torch import Tensor

POOLED = 8  # the state pools each head's n x n attention to POOLED x POOLED
CELLS = POOLED**2  # numbers of one head in the state


def pooling_matrix(mask: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Adaptive average pooling of n real tokens to 8 cells, as a matrix.

    Cell i averages tokens floor(i n / 8) to ceil((i + 1) n / 8) - 1, as torch defines
    `adaptive_avg_pool2d`. So ``P A P^T`` pools the real n x n part of A.

    Args:
        mask: (B, S) bool, real tokens first.
        dtype: of the result.

    Returns:
        (B, 8, S); rows sum to 1, or are 0 for a text without tokens.
    """
    lengths = mask.sum(-1, keepdim=True)  # (B, 1)
    cell = torch.arange(POOLED, device=mask.device)
    start = cell * lengths // POOLED  # (B, 8)
    stop = -(-(cell + 1) * lengths // POOLED)
    token = torch.arange(mask.shape[1], device=mask.device)
    inside = (token >= start[..., None]) & (token < stop[..., None])
    return inside.to(dtype) / (stop - start).clamp(min=1)[..., None]
