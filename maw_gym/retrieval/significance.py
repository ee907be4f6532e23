"""Is a difference between two rankers more than chance? Paired tests over queries.

Notation: N queries, S seeds of an encoder or a learner. `differences` are one ranker's scores minus
the other's: (N,), or (S, N) where every seed was judged on the same queries. Randomness comes from
generators seeded by the caller's number, so that a report can be reproduced.
"""

import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

DRAWS: Final = 10_000  # of a bootstrap or a randomisation test
CHUNK_NUMBERS: Final = 2**22  # random numbers held at once

Floats = NDArray[np.float64]


class Interval(NamedTuple):
    """Confidence interval of a mean."""

    low: float
    high: float


def bootstrap_means(values: ArrayLike, *, draws: int = DRAWS, seed: int = 0) -> Floats:
    """Means (M, draws) of M rankers over the very same resamples, for `interval` and `margin`.

    Seeds and queries are crossed, not nested: each draw takes S seeds and N queries with
    replacement and averages over the cells where they meet. So an interval says what to expect of
    other seeds and other queries; of two or three seeds it says too little, since a resample never
    leaves what they span. A mean is linear: the difference of two rows is the bootstrap of their
    rankers' difference.

    Sources: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13; for crossed
    factors Owen, The pigeonhole bootstrap, Annals of Applied Statistics 1(2), 2007.

    Args:
        values: (M, N), or (M, S, N) where every seed was judged on the same queries.
        draws: resamples.
        seed: of the resampling.

    Raises:
        ValueError: no values, one that is not finite, or draws < 1.
    """
    numbers = _finite(values)
    numbers = numbers.reshape(len(numbers), -1, numbers.shape[-1])
    if draws < 1:
        raise ValueError(f"need draws >= 1, got {draws}")
    _, seeds, queries = numbers.shape
    sizes = [size for size in (seeds, queries) if size > 1]
    if not sizes:  # scipy wants two
        return np.repeat(numbers[:, 0], draws, axis=1)

    def means(*drawn: NDArray[np.int64], axis: int) -> Floats:
        """Means (M, draws) over drawn seeds (draws, S), if several, and queries (draws, N)."""
        means_by_seed = numbers @ _shares(drawn[-1], queries).T if queries > 1 else numbers
        if seeds == 1:
            return np.asarray(means_by_seed[:, 0])
        return np.asarray(np.einsum("msb,bs->mb", means_by_seed, _shares(drawn[0], seeds)))

    found = stats.bootstrap(
        [np.arange(size) for size in sizes],
        means,
        method="percentile",
        n_resamples=draws,
        batch=_draws_at_once(queries),
        vectorized=True,
        rng=np.random.default_rng(seed),
    )
    return np.asarray(found.bootstrap_distribution)


def interval(means: Floats, level: float = 0.95) -> Interval:
    """Percentile interval of coverage `level` of bootstrapped means (draws,)."""
    if not 0 < level < 1:
        raise ValueError(f"need 0 < level < 1, got {level}")
    low, high = np.percentile(means, [50 * (1 - level), 50 * (1 + level)])
    return Interval(float(low), float(high))


def margin(means: Floats, level: float = 0.95) -> float:
    """Smallest margin within which rankers are equivalent, of bootstrapped differences (draws,).

    The true mean difference lies within -margin and +margin: two one-sided tests at 1 - `level`
    reject exactly where the bootstrap interval of coverage 2 `level` - 1 lies inside. So "routing
    is worth less than 1.2%, at 95%" may be said where this margin is 1.2% of the baseline's mean.

    Source: Schuirmann, Journal of Pharmacokinetics and Biopharmaceutics 15(6), 1987.

    Raises:
        ValueError: a level outside (0.5, 1).
    """
    if not 0.5 < level < 1:
        raise ValueError(f"need 0.5 < level < 1, got {level}")
    low, high = interval(means, 2 * level - 1)
    return max(-low, high)


def _shares(drawn: NDArray[np.int64], count: int) -> Floats:
    """How often each of `count` is among those drawn (draws, n), as shares (draws, count)."""
    rows = np.arange(len(drawn))[:, None] * count
    times = np.bincount((drawn + rows).ravel(), minlength=len(drawn) * count)
    return np.asarray(times.reshape(-1, count) / drawn.shape[1])


def _draws_at_once(width: int) -> int:
    """How many draws of `width` random numbers are held at once."""
    return max(1, CHUNK_NUMBERS // width)


def _finite(values: ArrayLike) -> Floats:
    """Numbers as float64; a ValueError where there are none, or one is not finite."""
    numbers = np.asarray(values, np.float64)
    if not numbers.size or not np.isfinite(numbers).all():
        raise ValueError(
            f"need one finite number per query, got an array of shape {numbers.shape}"
            f" with {int((~np.isfinite(numbers)).sum())} that are not finite"
        )
    return numbers


def _by_seed(values: ArrayLike) -> Floats:
    """One finite number per query as (S, N) float64, S and N >= 1; a single query as S = 1."""
    numbers = _finite(values)
    if numbers.ndim not in (1, 2):
        raise ValueError(f"need one finite number per query, got an array of shape {numbers.shape}")
    return numbers.reshape(1, -1) if 1 in numbers.shape else np.atleast_2d(numbers)


class Counts(NamedTuple):
    """Queries on which the first ranker is better, equal and worse."""

    wins: int
    ties: int
    losses: int


def sign_flip_test(differences: ArrayLike, *, draws: int = DRAWS, seed: int = 0) -> float:
    """Two-sided p-value of a paired randomisation test: under the null, signs are coin flips.

    The share of sign assignments whose mean is at least as far from 0 as the observed one. Where
    there are no more assignments than draws, all are tried, and the p-value is exact; else it is
    (1 + count) / (1 + draws), never 0. No difference at all gives 1.

    Sources: Fisher, The Design of Experiments, 1935; Smucker, Allan and Carterette, CIKM 2007; the
    added 1: Phipson and Smyth, Stat. Appl. Genet. Mol. Biol. 9(1), 2010.

    Args:
        differences: (N,), or (S, N), of which the mean over seeds is tested: the p-value speaks of
            other queries, not of other seeds.
        draws: random sign assignments.
        seed: of the signs.

    Raises:
        ValueError: no differences, one that is not finite, or draws < 1.
    """
    return sign_flip_tests(_by_seed(differences).mean(0)[None], draws=draws, seed=seed)[0]


def sign_flip_tests(differences: ArrayLike, *, draws: int = DRAWS, seed: int = 0) -> list[float]:
    """P-values of `sign_flip_test` for each row of differences (M, N), by the very same signs."""
    numbers = _finite(differences)
    if draws < 1:
        raise ValueError(f"need draws >= 1, got {draws}")
    scale = np.abs(numbers).sum(1, keepdims=True)
    numbers = numbers / np.where(scale > 0, scale, 1)
    observed = _distance(numbers, -1)
    reached = np.ones(len(numbers))
    rng = np.random.default_rng(seed)
    batch = _draws_at_once(numbers.shape[1])
    for first in range(0, draws, batch):
        signs = rng.choice(np.array([-1.0, 1.0]), (min(batch, draws - first), numbers.shape[1]))
        reached += (np.abs(signs @ numbers.T).round(12) >= observed).sum(0)
    return [
        _exact_p(row[row != 0], draws) or float(p)  # the sign of 0 changes nothing
        for row, p in zip(numbers, reached / (1 + draws), strict=True)
    ]


def _exact_p(differences: Floats, draws: int) -> float | None:
    """P-value over all assignments of signs; None where they are more than draws, or too few."""
    if len(differences) < 2 or 2 ** len(differences) > draws:
        return None
    return float(
        stats.permutation_test(
            (differences,),
            _distance,
            permutation_type="samples",
            n_resamples=draws,
            alternative="greater",
            vectorized=True,
        ).pvalue
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment for several tests: reject where the result is below alpha.

    Source: Holm, Scandinavian Journal of Statistics 6(2), 1979 (scipy.stats has none).

    Args:
        p_values: of all tests of one family, each in [0, 1]; the adjusted ones keep their order.

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


def standard_error(differences: ArrayLike) -> float:
    """Standard error of the mean: over queries, or over seeds and queries together.

    For one seed s / sqrt(N) with the sample's standard deviation s (ddof 1). For several it is the
    moment estimate of a two-way layout with random seeds and queries, sqrt((MS_seeds + MS_queries -
    MS_rest) / (S N)), and at least that of the queries alone.

    Source: Searle, Casella and McCulloch, Variance Components, 1992, chapter 4.
    """
    numbers = _by_seed(differences)
    seeds, queries = numbers.shape
    if queries < 2:
        raise ValueError(f"need two differences or more, got {queries}")
    by_query, of_seed = numbers.mean(0), numbers.mean(1)
    of_queries = seeds * by_query.var(ddof=1)
    if seeds == 1:
        return math.sqrt(of_queries / queries)
    of_seeds = queries * of_seed.var(ddof=1)
    rest = numbers - by_query - of_seed[:, None] + numbers.mean()
    of_rest = (rest**2).sum() / ((seeds - 1) * (queries - 1))
    return math.sqrt(max(of_seeds + of_queries - of_rest, of_queries) / numbers.size)


def smallest_detectable_difference(
    differences: ArrayLike, *, power: float = 0.8, alpha: float = 0.05
) -> float:
    """Smallest true mean difference that a two-sided paired test on these queries would detect.

    (z_{1 - alpha/2} + z_power) times the `standard_error`: the normal approximation. It depends on
    how the differences scatter, not on their mean.

    Source: Cohen, Statistical Power Analysis for the Behavioral Sciences, 1988; for retrieval:
    Webber, Moffat and Zobel, CIKM 2008.

    Args:
        differences: (N,) or (S, N) with N >= 2.
        power: probability of detecting it, in (0, 1).
        alpha: level of the test, in (0, 1).

    Raises:
        ValueError: fewer than two queries, one that is not finite, or a level outside (0, 1).
    """
    if not (0 < power < 1 and 0 < alpha < 1):
        raise ValueError(f"need levels in (0, 1), got power {power} and alpha {alpha}")
    normal = NormalDist()
    distance = normal.inv_cdf(1 - alpha / 2) + normal.inv_cdf(power)
    return distance * standard_error(differences)


def wins_ties_losses(differences: ArrayLike, *, tolerance: float = 1e-9) -> Counts:
    """How many differences (N,) are above `tolerance`, within it, and below minus it."""
    numbers = np.asarray(differences, np.float64)
    wins, losses = int((numbers > tolerance).sum()), int((numbers < -tolerance).sum())
    return Counts(wins, len(numbers) - wins - losses, losses)


def _distance(values: Floats, axis: int) -> Floats:
    """Distance of the sums from 0; equal ones may differ in the last digits by their order."""
    return np.asarray(np.abs(values.sum(axis)).round(12))
