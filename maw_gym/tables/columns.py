"""The columns of a depth table: their widths, their ranges, and those that need no judgments."""

from typing import Final

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from maw_gym.attention.reference import CELLS, DepthStatistics
from maw_gym.encoders.embedder import Embedder
from maw_gym.retrieval.ranking import STATISTICS

PER_DEPTH: Final = {
    "entropy": 1,
    "focus": 1,
    "ndcg": 1,
    "listwise": 1,
    "retrieval": len(STATISTICS),
}
"""Columns with numbers of every depth: how many kinds, D of each side by side."""
COLUMNS: Final = ("attention", *PER_DEPTH, "content")


def column_widths(embedder: Embedder) -> dict[str, int]:
    """Numbers of one query in each of `COLUMNS`, for an embedder with a MAW encoder."""
    encoder = embedder.maw
    return {
        "attention": CELLS * encoder.heads,
        **{name: kinds * encoder.depths for name, kinds in PER_DEPTH.items()},
        "content": embedder.text.width,
    }


def column_range(name: str, width: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Smallest and largest numbers (width,) of a column.

    Those of `retrieval` are each statistic's own; `content` lies in [-1, 1], the others in
    [0, 1].
    """
    if name == "retrieval":
        low, high = np.array(list(STATISTICS.values()), np.float32).T
        depths = width // len(STATISTICS)
        return low.repeat(depths), high.repeat(depths)
    low = -1 if name == "content" else 0
    return np.full(width, low, np.float32), np.ones(width, np.float32)


def observed_columns(statistics: DepthStatistics, content: Tensor) -> dict[str, Tensor]:
    """The columns attention, entropy, focus and content of B queries.

    Args:
        statistics: of every depth of the queries.
        content: (B, h), mean hidden states of unit length.
    """
    return {
        "attention": statistics.state,
        "entropy": statistics.entropy,
        "focus": statistics.focus,
        "content": content,
    }


def table_column(name: str, values: Tensor) -> NDArray[np.float32]:
    """Values of a column as a depth table holds them: float32, in the range of its Box.

    Raises:
        FloatingPointError: values outside the range by more than a rounding, or NaN.
    """
    low, high = column_range(name, values.shape[1])
    # Cosines and unit vectors may pass 1 by a rounding; a Box would reject them.
    whole: NDArray[np.float32] = np.clip(values.float().cpu().numpy(), -1, high)
    if not (whole >= low).all():  # NaN neither
        raise FloatingPointError(
            f"{name} outside [{low.min():g}, {high.max():g}]; the encoder has probably diverged"
        )
    return whole
