"""Drawing from groups of different sizes more evenly than they come."""

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from maw_gym.errors import InputError, shown


def check_balance(balance: float) -> float:
    """`balance` as a float in [0, 1].

    Raises:
        InputError: it is none.
    """
    number = isinstance(balance, (int, float)) and not isinstance(balance, bool)
    if not number or not math.isfinite(balance) or not 0 <= balance <= 1:
        raise InputError(
            "balance must be a number from 0 (groups equally likely) to 1 (as they are), got"
            f" {shown(balance)}"
        )
    return float(balance)


def balanced_shares(groups: Sequence[str], balance: float) -> NDArray[np.float64]:
    """How likely each of N members is drawn, so that groups are as likely as their size ** balance.

    Args:
        groups: of each member.
        balance: 1 draws members alike, 0 groups alike; see `check_balance`.

    Returns:
        (N,), sums to 1.
    """
    sizes = Counter(groups)
    weights = np.array([sizes[group] ** (check_balance(balance) - 1) for group in groups])
    return np.asarray(weights / weights.sum(), np.float64)
