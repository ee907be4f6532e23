"""What each depth is like on average: how focused it is, and what it is worth."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from maw_gym.tables.depth_table import DepthTable


class DepthProfile(NamedTuple):
    """Means over a table's queries, of every depth.

    Attributes:
        entropy: (D,) in [0, 1].
        focus: (D,) in [0, 1].
        ndcg: (D,) in [0, 1], nDCG@10.
    """

    entropy: NDArray[np.float64]
    focus: NDArray[np.float64]
    ndcg: NDArray[np.float64]

    @property
    def ordered(self) -> bool:
        """Whether every depth is broader than the one before: more entropy, less focus."""
        return bool((np.diff(self.entropy) > 0).all() and (np.diff(self.focus) < 0).all())

    def __str__(self) -> str:
        lines = ["depth  entropy  focus  nDCG@10"]
        for depth, row in enumerate(zip(*self, strict=True)):
            lines.append(f"{depth:5d}  {row[0]:7.3f}  {row[1]:5.3f}  {row[2]:7.4f}")
        return "\n".join(lines)


def depth_profile(table: DepthTable) -> DepthProfile:
    """Mean entropy, focus and nDCG@10 of every depth over a table's queries.

    Args:
        table: of at least one query.
    """
    columns = (table.entropy, table.focus, table.ndcg)
    return DepthProfile(*(values.mean(axis=0, dtype=np.float64) for values in columns))
