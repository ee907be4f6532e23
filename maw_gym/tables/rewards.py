"""What a depth is paid for: entropy and focus of its attention, and relevance alignment, blended.

`attention_entropy` and `attention_focus` are the definitions, in float64 and over whole attention
tensors. `maw_gym.attention.depth_attention` computes the same two numbers for all depths at once in
torch, and its tests hold it against these. Alignment needs a ranking and lives with the depth
table.
"""

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import entr

from maw_gym.errors import InputError

DEFAULT_WEIGHTS: Final = (0.3, 0.3, 0.4)
"""Weights of entropy, focus and alignment."""


def check_weights(weights: Sequence[float]) -> tuple[float, float, float]:
    """Three finite weights >= 0, at least one of them above 0, as floats.

    Raises:
        InputError: anything else.
    """
    try:
        values = tuple(float(weight) for weight in weights)
    except (TypeError, ValueError):
        values = ()
    usable = len(values) == 3 and all(math.isfinite(value) and value >= 0 for value in values)
    if not usable or not any(values):
        raise InputError(
            "reward_weights must be three finite numbers >= 0, not all 0 (entropy, focus,"
            f" alignment), such as {DEFAULT_WEIGHTS}; got {weights!r}"
        )
    entropy, focus, alignment = values
    return entropy, focus, alignment


def blend(
    entropy: NDArray[Any],
    focus: NDArray[Any],
    alignment: NDArray[Any],
    weights: Sequence[float] = DEFAULT_WEIGHTS,
) -> NDArray[Any]:
    """Reward ``w0 * entropy + w1 * focus + w2 * alignment``, in the precision of the terms.

    With the default weights the reward is in [0, 1], as each term is.

    Args:
        entropy: any shape, in [0, 1].
        focus: same shape, in [0, 1].
        alignment: same shape, in [0, 1].
        weights: of the three terms, see `check_weights`.

    Raises:
        InputError: unusable weights.
    """
    first, second, third = check_weights(weights)
    return first * entropy + second * focus + third * alignment


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
    attention = _square(weights)
    tokens = attention.shape[-1]
    if tokens <= 1:
        return np.zeros(attention.shape[:-3])
    rows = entr(attention).sum(axis=-1) / math.log(tokens)
    return np.clip(rows.mean(axis=(-2, -1)), 0, 1)


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
    return np.clip(attention.max(axis=-1).mean(axis=(-2, -1)), 0, 1)


def _square(weights: ArrayLike) -> NDArray[np.float64]:
    attention = np.asarray(weights, dtype=np.float64)
    if attention.ndim < 3 or attention.shape[-1] != attention.shape[-2]:
        raise InputError(f"attention must have shape (..., heads, n, n); got {attention.shape}")
    return attention
