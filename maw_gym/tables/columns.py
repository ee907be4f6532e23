"""The columns of a depth table that need no judgments: what can be observed of any query text."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from maw_gym.attention.depth_attention import DepthStatistics


def observed_columns(
    statistics: DepthStatistics, content: Tensor, centroids: Tensor
) -> dict[str, Tensor]:
    """The columns attention, entropy, focus, content and clusters of B queries.

    Args:
        statistics: of every depth of the queries.
        content: (B, h), mean hidden states of unit length.
        centroids: (K, h), the encoder's; K = 0 where it has none.
    """
    return {
        "attention": statistics.state,
        "entropy": statistics.entropy,
        "focus": statistics.focus,
        **content_columns(content, centroids),
    }


def content_columns(content: Tensor, centroids: Tensor) -> dict[str, Tensor]:
    """The columns content (B, h) and clusters (B, K), which need no attention."""
    return {"content": content, "clusters": content @ centroids.T}


def table_column(name: str, values: Tensor) -> NDArray[np.float32]:
    """Values of a column as a depth table holds them: float32, in the range of its Box.

    Raises:
        FloatingPointError: values outside the range by more than a rounding, or NaN.
    """
    # Cosines and unit vectors may pass 1 by a rounding; a Box would reject them.
    whole = values.float().clamp(-1, 1).cpu().numpy()
    low = -1 if name in ("content", "clusters") else 0
    if not ((whole >= low) & (whole <= 1)).all():
        raise FloatingPointError(f"{name} outside [{low}, 1]; the encoder has probably diverged")
    return whole
