"""What a depth is paid for: entropy and focus of its attention, and relevance alignment, blended.

`attention_entropy` and `attention_focus` are the definitions, in float64 and over whole attention
tensors. `maw_gym.attention.reference` computes the same two numbers for all depths at once in
torch, and its tests hold it against these. Alignment needs a ranking and lives with the depth
table.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from maw_gym.errors import InputError
from maw_gym.tables.blocks import ALIGNMENTS

if TYPE_CHECKING:
    from maw_gym.tables.depth_table import DepthTable

TERMS: Final = ("entropy", "focus", "alignment")
DEFAULT_WEIGHTS: Final = (0.3, 0.3, 0.4)
"""Weights of entropy, focus and alignment."""
LARGEST_WEIGHT: Final = (1e-6, 1e6)
"""Range of the largest of them: squares of rewards, and sums over tables, are float32 numbers."""
SMALLEST_GAP: Final = 1e-6  # below it, a share of the random-to-oracle gap means nothing


def _checked(weights: Sequence[float]) -> tuple[float, ...]:
    """`weights` as floats, if they can be weights."""
    try:
        values = tuple(float(weight) for weight in weights)
    except (TypeError, ValueError, OverflowError):
        values = ()
    low, high = LARGEST_WEIGHT
    finite = len(values) == 3 and all(math.isfinite(value) and value >= 0 for value in values)
    if not finite or not low <= max(values) <= high:
        raise InputError(
            "reward_weights must be three finite numbers >= 0, not all 0 (entropy, focus,"
            f" alignment), the largest from {low:g} to {high:g}, such as {DEFAULT_WEIGHTS};"
            f" got {weights!r}"
        )
    return values


@dataclass(frozen=True)
class RewardSpec:
    """Which reward: the weights of its three terms, and the kind of the third.

    Attributes:
        weights: of entropy, focus and alignment; any sequence of three numbers, kept as a tuple.
        alignment: ``"ndcg"`` or ``"listwise"``.

    Raises:
        InputError: weights that are not three finite numbers >= 0, that are all 0, or so large or
            small that float32 does not hold their rewards; or another alignment.
    """

    weights: Sequence[float] = DEFAULT_WEIGHTS
    alignment: str = "ndcg"

    def __post_init__(self) -> None:
        """Check the fields."""
        object.__setattr__(self, "weights", _checked(self.weights))
        if self.alignment not in ALIGNMENTS:
            raise InputError(
                f"unknown alignment {self.alignment!r}; choose one of {', '.join(ALIGNMENTS)}"
            )

    def blend(self, entropy: Any, focus: Any, alignment: Any) -> Any:
        """Reward ``w0 * entropy + w1 * focus + w2 * alignment``, in the precision of the terms.

        With the default weights the reward is in [0, 1], as each term is.

        Args:
            entropy: array of any shape, in [0, 1].
            focus: one that broadcasts with it, in [0, 1].
            alignment: likewise.
        """
        first, second, third = self.weights
        return first * entropy + second * focus + third * alignment

    def of(self, table: "DepthTable") -> NDArray[np.float32]:
        """Reward (N, D) of every query and depth of a table."""
        reward: NDArray[np.float32] = self.blend(
            table.entropy, table.focus, table.alignment(self.alignment)
        )
        return reward


DEFAULT_REWARD: Final = RewardSpec()
NDCG: Final = RewardSpec((0.0, 0.0, 1.0))
"""Retrieval alone: the reward is nDCG@10."""


def gap_closed(mean: float, random: float, oracle: float) -> float | None:
    """Share of the gap between chance and hindsight: ``(mean - random) / (oracle - random)``.

    Args:
        mean: mean reward of the depths chosen.
        random: expected mean reward of depths drawn uniformly.
        oracle: mean reward of the best depths.

    Returns:
        The share, 1 for the oracle; None where the denominator is under 1e-6.
    """
    gap = oracle - random
    return (mean - random) / gap if gap >= SMALLEST_GAP else None


def attention_entropy(weights: ArrayLike) -> NDArray[np.float64]:
    """Mean normalised row entropy: ``-sum_k a_k log a_k / log n``, over heads and query rows.

    1 for attention spread evenly, 0 for attention on single tokens, and 0 where n <= 1, since one
    token leaves nothing to spread over.

    Args:
        weights: attention (..., H, n, n) over the n real tokens; each row sums to 1.

    Returns:
        (...) in [0, 1].

    Raises:
        InputError: `weights` has another shape.
    """
    from scipy.special import entr  # late: a sixth of a second that environments do not need

    attention = _square(weights)
    tokens = attention.shape[-1]
    if tokens <= 1:
        return np.zeros(attention.shape[:-3])
    rows = entr(attention).sum(axis=-1) / math.log(tokens)
    return np.asarray(np.clip(rows.mean(axis=(-2, -1)), 0, 1))


def attention_focus(weights: ArrayLike) -> NDArray[np.float64]:
    """Mean over heads and query rows of the row's largest weight.

    This is the confidence of an attention head of Voita et al., "Analyzing Multi-Head
    Self-Attention", ACL 2019. A text without tokens has focus 0.

    Args:
        weights: attention (..., H, n, n) over the n real tokens; each row sums to 1.

    Returns:
        (...) in [1/n, 1].

    Raises:
        InputError: `weights` has another shape.
    """
    attention = _square(weights)
    if attention.shape[-1] == 0:
        return np.zeros(attention.shape[:-3])
    return np.asarray(np.clip(attention.max(axis=-1).mean(axis=(-2, -1)), 0, 1))


def _square(weights: ArrayLike) -> NDArray[np.float64]:
    attention = np.asarray(weights, dtype=np.float64)
    if attention.ndim < 3 or attention.shape[-1] != attention.shape[-2]:
        raise InputError(f"attention must have shape (..., heads, n, n); got {attention.shape}")
    return attention
