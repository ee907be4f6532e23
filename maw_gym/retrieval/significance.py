"""Is a difference between two rankers more than chance? Paired tests over queries.

Notation: M rankers or pairs of them, N queries, S seeds of an encoder or a learner. `differences`
are one ranker's scores minus the other's. Draws come from generators of the seed given.
"""

import itertools
import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from maw_gym.retrieval.documents import steps

DRAWS: Final = 10_000  # of a bootstrap or a randomisation test
CHUNK_NUMBERS: Final = 2**22  # random numbers held at once

Floats = NDArray[np.float64]


class Interval(NamedTuple):
    """Confidence interval of a mean."""

    low: float
    high: float


class Counts(NamedTuple):
    """Queries on which the first ranker is better, equal and worse."""

    wins: int
    ties: int
    losses: int


def bootstrap_means(values: ArrayLike, *, draws: int = DRAWS, seed: int = 0) -> Floats:
    """Means (M, draws) of M rankers over the very same resamples, for `interval` and `margin`.

    Seeds and queries are crossed: each draw takes S seeds and N queries with replacement and
    averages over the cells where they meet. Of two or three seeds an interval says too little.

    Sources: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13; Owen, The
    pigeonhole bootstrap, Annals of Applied Statistics 1(2), 2007.

    Args:
        values: (M, N), or (M, S, N) where every seed was judged on the same queries; finite.
        draws: resamples.
        seed: of the resampling.
    """
    numbers = _finite(values)
    numbers = numbers.reshape(len(numbers), -1, numbers.shape[-1])  # (M, S, N)
    rng = np.random.default_rng(seed)
    means = []
    for some in steps(draws, CHUNK_NUMBERS // numbers.shape[2]):
        of_seeds, of_queries = (
            _drawn_shares(rng, some.stop - some.start, size) for size in numbers.shape[1:]
        )
        means.append(np.einsum("msb,bs->mb", numbers @ of_queries.T, of_seeds))
    return np.concatenate(means, axis=1)


def _drawn_shares(rng: np.random.Generator, draws: int, size: int) -> Floats:
    """How often each of `size` things is among as many drawn ones, as shares (draws, size)."""
    if size == 1:
        return np.ones((draws, 1))
    drawn = rng.integers(0, size, (draws, size)) + np.arange(draws)[:, None] * size
    return np.bincount(drawn.ravel(), minlength=draws * size).reshape(draws, size) / size


def _finite(values: ArrayLike) -> Floats:
    numbers = np.asarray(values, np.float64)
    if not numbers.size or not np.isfinite(numbers).all():
        raise ValueError(
            f"need one finite number per query, got an array of shape {numbers.shape}"
            f" with {int((~np.isfinite(numbers)).sum())} that are not finite"
        )
    return numbers


def interval(means: Floats, level: float = 0.95) -> Interval:
    """Percentile interval of coverage `level` of bootstrapped means (draws,)."""
    low, high = np.percentile(means, [50 * (1 - level), 50 * (1 + level)])
    return Interval(float(low), float(high))


def margin(means: Floats, level: float = 0.95) -> float:
    """Smallest margin within which rankers are equivalent, of bootstrapped differences (draws,).

    Two one-sided tests at 1 - `level`, a number in (0.5, 1), reject a true mean difference beyond
    -margin and +margin exactly where the bootstrap interval of coverage 2 `level` - 1 lies inside.

    Source: Schuirmann, Journal of Pharmacokinetics and Biopharmaceutics 15(6), 1987.
    """
    if not 0.5 < level < 1:
        raise ValueError(f"need 0.5 < level < 1, got {level}")
    low, high = interval(means, 2 * level - 1)
    return max(-low, high)


def sign_flip_tests(differences: ArrayLike, *, draws: int = DRAWS, seed: int = 0) -> list[float]:
    """Two-sided p-values of paired randomisation tests of differences (M, N), by the same signs.

    The share of sign assignments whose mean is at least as far from 0 as the observed one; of
    several seeds give their means. Where there are no more assignments than draws, all are tried,
    and the p-value is exact; else it is (1 + count) / (1 + draws), never 0.

    Sources: Fisher, The Design of Experiments, 1935; Smucker, Allan and Carterette, CIKM 2007; the
    added 1: Phipson and Smyth, Stat. Appl. Genet. Mol. Biol. 9(1), 2010.
    """
    numbers = _finite(differences)
    scale = np.abs(numbers).sum(1, keepdims=True)
    numbers = numbers / np.where(scale > 0, scale, 1)
    # Rounded: equal sums may differ in the last digits by their order.
    observed = np.abs(numbers.sum(1)).round(12)
    reached = np.ones(len(numbers))
    rng = np.random.default_rng(seed)
    for some in steps(draws, CHUNK_NUMBERS // numbers.shape[1]):
        shape = (some.stop - some.start, numbers.shape[1])
        signs = rng.choice(np.array([-1.0, 1.0]), shape)
        reached += (np.abs(signs @ numbers.T).round(12) >= observed).sum(0)
    p_values = reached / (1 + draws)
    for row, of_row in enumerate(numbers):
        flipped = of_row[of_row != 0]  # the sign of 0 changes nothing
        if 2 ** len(flipped) <= draws:
            signs = np.array(list(itertools.product((-1.0, 1.0), repeat=len(flipped))))
            p_values[row] = (np.abs(signs @ flipped).round(12) >= observed[row]).mean()
    return [float(p) for p in p_values]


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values of one family of tests adjusted step-down: reject where one is below alpha.

    Source: Holm, Scandinavian Journal of Statistics 6(2), 1979 (scipy.stats has none).
    """
    given = np.asarray(p_values, np.float64)
    if not ((given >= 0) & (given <= 1)).all():
        raise ValueError(f"p-values must lie in [0, 1], got {list(p_values)}")
    order = np.argsort(given, kind="stable")
    factors = np.arange(len(given), 0, -1)
    adjusted = np.empty_like(given)
    adjusted[order] = np.minimum(np.maximum.accumulate(given[order] * factors), 1)
    return [float(p) for p in adjusted]


def standard_error(differences: ArrayLike) -> float:
    """Standard error of the mean of differences (N,), or (S, N) over seeds and queries together.

    For one seed s / sqrt(N) with the sample's standard deviation s (ddof 1). For several it is the
    moment estimate of a two-way layout with random seeds and queries, sqrt((MS_seeds + MS_queries -
    MS_rest) / (S N)), and at least that of the queries alone.

    Source: Searle, Casella and McCulloch, Variance Components, 1992, chapter 4.
    """
    numbers = np.atleast_2d(_finite(differences))
    if numbers.shape[1] == 1:  # one query: over the seeds alone
        numbers = numbers.T
    seeds, queries = numbers.shape
    if queries < 2:
        raise ValueError(f"need two differences or more, got {queries}")
    by_query, by_seed = numbers.mean(0), numbers.mean(1)
    of_queries = seeds * by_query.var(ddof=1)
    if seeds == 1:
        return math.sqrt(of_queries / queries)
    of_seeds = queries * by_seed.var(ddof=1)
    rest = numbers - by_query - by_seed[:, None] + numbers.mean()
    of_rest = (rest**2).sum() / ((seeds - 1) * (queries - 1))
    return math.sqrt(max(of_seeds + of_queries - of_rest, of_queries) / numbers.size)


def smallest_detectable_difference(
    differences: ArrayLike, *, power: float = 0.8, alpha: float = 0.05
) -> float:
    """True mean difference that a two-sided paired test at `alpha` would detect with `power`.

    (z_{1 - alpha/2} + z_power) times the `standard_error`: the normal approximation.

    Source: Cohen, Statistical Power Analysis for the Behavioral Sciences, 1988; for retrieval:
    Webber, Moffat and Zobel, CIKM 2008.
    """
    normal = NormalDist()
    return (normal.inv_cdf(1 - alpha / 2) + normal.inv_cdf(power)) * standard_error(differences)


def wins_ties_losses(differences: ArrayLike, *, tolerance: float = 1e-9) -> Counts:
    """How many differences (N,) are above `tolerance`, within it, and below minus it."""
    numbers = np.asarray(differences, np.float64)
    wins, losses = int((numbers > tolerance).sum()), int((numbers < -tolerance).sum())
    return Counts(wins, len(numbers) - wins - losses, losses)
