"""The columns of a depth table: their widths, their ranges, and those that need no judgments."""

from typing import Final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from maw_gym.attention.depth_attention import DepthStatistics
from maw_gym.attention.pooling import CELLS
from maw_gym.encoders.embedder import Embedder

COLUMNS: Final = ("attention", "entropy", "focus", "ndcg", "listwise", "content", "clusters")
PER_DEPTH: Final = ("entropy", "focus", "ndcg", "listwise")
SIGNED: Final = ("content", "clusters")  # in [-1, 1]; the others in [0, 1]


def column_widths(embedder: Embedder) -> dict[str, int]:
    """Numbers of one query in each of `COLUMNS`, for an embedder with a MAW encoder."""
    encoder = embedder.maw
    return {
        "attention": CELLS * encoder.heads,
        **dict.fromkeys(PER_DEPTH, encoder.depths),
        "content": embedder.text.width,
        "clusters": len(encoder.centroids),
    }


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
    low = -1 if name in SIGNED else 0
    if not ((whole >= low) & (whole <= 1)).all():
        raise FloatingPointError(f"{name} outside [{low}, 1]; the encoder has probably diverged")
    return whole
