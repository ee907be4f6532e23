"""Is a difference between two rankers more than chance? Paired tests and intervals over queries.

Every function works on one number per query. Randomness comes from numpy generators seeded by the
caller's number, so that a report can be reproduced.
"""

from collections.abc import Sequence
from itertools import pairwise
from statistics import NormalDist
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

ENUMERATED: Final = 16  # up to so many differences that are not 0, all signs are tried
CHUNK_NUMBERS: Final = 2**22  # random numbers held at once


class Interval(NamedTuple):
    """Confidence interval of a mean."""

    low: float
    high: float


class Counts(NamedTuple):
    """Queries on which the first ranker is better, equal and worse."""

    wins: int
    ties: int
    losses: int


def bootstrap_interval(
    values: ArrayLike, *, draws: int = 10_000, level: float = 0.95, seed: int = 0
) -> Interval:
    """Percentile bootstrap interval of the mean over queries.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13.

    Args:
        values: (N,), one number per query.
        draws: resamples of N queries with replacement.
        level: coverage in (0, 1).
        seed: of the resampling.

    Raises:
        ValueError: no values, one that is not finite, draws < 1, or a level outside (0, 1).
    """
    numbers = _checked(values)
    if draws < 1 or not 0 < level < 1:
        raise ValueError(f"need draws >= 1 and 0 < level < 1, got {draws} and {level}")
    rng = np.random.default_rng(seed)
    means = [
        numbers[rng.integers(len(numbers), size=(rows, len(numbers)))].mean(axis=1)
        for rows in _chunks(draws, len(numbers))
    ]
    low, high = np.quantile(np.concatenate(means), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def sign_flip_test(differences: ArrayLike, *, draws: int = 100_000, seed: int = 0) -> float:
    """Two-sided p-value of a paired randomisation test: under the null, signs are coin flips.

    The share of sign assignments whose mean is at least as far from 0 as the observed one. Up to 16
    differences that are not 0 all assignments are enumerated, and the p-value is exact; above, it
    is (1 + count) / (1 + draws), never 0. No difference at all gives 1.

    Sources: Fisher, The Design of Experiments, 1935; Smucker, Allan and Carterette, CIKM 2007; the
    added 1: Phipson and Smyth, Stat. Appl. Genet. Mol. Biol. 9(1), 2010.

    Args:
        differences: (N,), this ranker's score minus the baseline's, per query.
        draws: random sign assignments.
        seed: of the signs.

    Raises:
        ValueError: no differences, one that is not finite, or draws < 1.
    """
    numbers = _checked(differences)
    if draws < 1:
        raise ValueError(f"need draws >= 1, got {draws}")
    numbers = numbers[numbers != 0]  # its sign changes nothing
    count = len(numbers)
    # Equal sums may differ in the last digits by the order of addition.
    observed = abs(numbers.sum()) - 1e-12 * np.abs(numbers).sum()
    if count <= ENUMERATED:
        codes = np.arange(2**count)[:, None]
        negative = (codes >> np.arange(count)) & 1
        return float((_flipped(numbers, negative) >= observed).mean())
    rng = np.random.default_rng(seed)
    extreme = 0
    for rows in _chunks(draws, count):
        bits = np.frombuffer(rng.bytes((rows * count + 7) // 8), np.uint8)
        signs = np.unpackbits(bits, count=rows * count).reshape(rows, count)
        extreme += int((_flipped(numbers, signs) >= observed).sum())
    return (1 + extreme) / (1 + draws)


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment for several tests: reject where the result is below alpha.

    Source: Holm, Scandinavian Journal of Statistics 6(2), 1979.

    Args:
        p_values: of all tests of one family, each in [0, 1].

    Returns:
        Adjusted p-values in [0, 1], in the order given.

    Raises:
        ValueError: a value outside [0, 1].
    """
    given = np.asarray(p_values, np.float64)
    if not ((given >= 0) & (given <= 1)).all():
        raise ValueError(f"p-values must lie in [0, 1], got {list(p_values)}")
    order = np.argsort(given, kind="stable")
    factors = np.arange(len(given), 0, -1)
    adjusted = np.empty_like(given)
    adjusted[order] = np.minimum(np.maximum.accumulate(given[order] * factors), 1)
    return [float(p) for p in adjusted]


def smallest_detectable_difference(
    differences: ArrayLike, *, power: float = 0.8, alpha: float = 0.05
) -> float:
    """Smallest true mean difference that a two-sided paired test on these queries would detect.

    (z_{1 - alpha/2} + z_power) * s / sqrt(N) with the sample's standard deviation s (ddof 1): the
    normal approximation. It depends on how the differences scatter, not on their mean.

    Source: Cohen, Statistical Power Analysis for the Behavioral Sciences, 1988; for retrieval:
    Webber, Moffat and Zobel, CIKM 2008.

    Args:
        differences: (N,) with N >= 2, per query.
        power: probability of detecting it, in (0, 1).
        alpha: level of the test, in (0, 1).

    Raises:
        ValueError: fewer than two differences, one that is not finite, or a level outside (0, 1).
    """
    numbers = _checked(differences)
    if len(numbers) < 2 or not (0 < power < 1 and 0 < alpha < 1):
        raise ValueError(
            f"need two differences or more and levels in (0, 1), got {len(numbers)} differences,"
            f" power {power}, alpha {alpha}"
        )
    normal = NormalDist()
    distance = normal.inv_cdf(1 - alpha / 2) + normal.inv_cdf(power)
    return distance * float(numbers.std(ddof=1)) / len(numbers) ** 0.5


def wins_ties_losses(differences: ArrayLike, *, tolerance: float = 1e-9) -> Counts:
    """How many differences (N,) are above `tolerance`, within it, and below minus it."""
    numbers = np.asarray(differences, np.float64)
    wins, losses = int((numbers > tolerance).sum()), int((numbers < -tolerance).sum())
    return Counts(wins, len(numbers) - wins - losses, losses)


def _flipped(numbers: NDArray[np.float64], negative: NDArray[np.integer]) -> NDArray[np.float64]:
    """Absolute sums (rows,) of `numbers` (N,), negated where `negative` (rows, N) is 1."""
    return np.abs(numbers.sum() - 2 * (negative.astype(np.float64) @ numbers))


def _chunks(draws: int, width: int) -> list[int]:
    """`draws` rows of `width` random numbers each, in portions that fit the memory."""
    step = max(1, CHUNK_NUMBERS // width)
    return [end - start for start, end in pairwise([*range(0, draws, step), draws])]


def _checked(values: ArrayLike) -> NDArray[np.float64]:
    """One finite number per query as (N,) float64, N >= 1."""
    numbers = np.asarray(values, np.float64)
    if numbers.ndim != 1 or not len(numbers) or not np.isfinite(numbers).all():
        raise ValueError(
            f"need one finite number per query, got an array of shape {numbers.shape}"
            f" with {int((~np.isfinite(numbers)).sum())} that are not finite"
        )
    return numbers
