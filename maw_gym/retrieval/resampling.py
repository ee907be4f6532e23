"""Bootstrapped means of rankers' scores, their intervals and margins, by scipy.stats.

Notation: N queries, S seeds of an encoder or a learner, M rankers.
"""

from typing import Any, Final, NamedTuple

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


def bootstrap_interval(
    values: ArrayLike, *, draws: int = DRAWS, level: float = 0.95, seed: int = 0
) -> Interval:
    """Percentile bootstrap interval of the mean over queries, or over seeds and queries together.

    Seeds and queries are crossed, not nested: each draw takes S seeds and N queries with
    replacement and averages over the cells where they meet. So the interval says what to expect of
    other seeds and other queries; of two or three seeds it says too little, since a resample never
    leaves what they span. Percentiles and not BCa: the two agree for means of hundreds of queries,
    and BCa is undefined where all values are equal.

    Sources: Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13; for crossed
    factors Owen, The pigeonhole bootstrap, Annals of Applied Statistics 1(2), 2007.

    Args:
        values: (N,), one number per query, or (S, N).
        draws: resamples.
        level: coverage in (0, 1).
        seed: of the resampling.

    Raises:
        ValueError: no values, one that is not finite, draws < 1, or a level outside (0, 1).
    """
    return interval(bootstrap_means(by_seed(values)[None], draws=draws, seed=seed)[0], level)


def bootstrap_means(values: ArrayLike, *, draws: int = DRAWS, seed: int = 0) -> Floats:
    """Means (M, draws) of M rankers over the very same resamples, see `bootstrap_interval`.

    A mean is linear, so the difference of two rows is the bootstrap of their rankers' difference.

    Args:
        values: (M, N), or (M, S, N) where every seed was judged on the same queries.
        draws: resamples.
        seed: of the resampling.

    Raises:
        ValueError: no values, one that is not finite, or draws < 1.
    """
    numbers = finite(values)
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
        batch=draws_at_once(queries),
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


def equivalence_margin(differences: ArrayLike, *, level: float = 0.95, **how: Any) -> float:
    """Smallest margin within which the rankers are equivalent: both one-sided tests reject.

    The true mean difference lies within -margin and +margin: two one-sided tests at 1 - `level`
    reject exactly where the bootstrap interval of coverage 2 `level` - 1 lies inside. So "routing
    is worth less than 1.2%, at 95%" may be said where this margin is 1.2% of the baseline's mean.

    Source: Schuirmann, Journal of Pharmacokinetics and Biopharmaceutics 15(6), 1987.

    Args:
        differences: (N,) or (S, N).
        level: 1 minus the level of each of the tests, in (0.5, 1).
        **how: `draws` and `seed` of `bootstrap_interval`.

    Raises:
        ValueError: see `bootstrap_interval`, or a level outside (0.5, 1).
    """
    return margin(bootstrap_means(by_seed(differences)[None], **how)[0], level)


def margin(means: Floats, level: float = 0.95) -> float:
    """The `equivalence_margin` of bootstrapped differences (draws,)."""
    if not 0.5 < level < 1:
        raise ValueError(f"need 0.5 < level < 1, got {level}")
    low, high = interval(means, 2 * level - 1)
    return max(-low, high)


def _shares(drawn: NDArray[np.int64], count: int) -> Floats:
    """How often each of `count` is among those drawn (draws, n), as shares (draws, count)."""
    rows = np.arange(len(drawn))[:, None] * count
    times = np.bincount((drawn + rows).ravel(), minlength=len(drawn) * count)
    return np.asarray(times.reshape(-1, count) / drawn.shape[1])


def draws_at_once(width: int) -> int:
    """How many draws of `width` random numbers are held at once."""
    return max(1, CHUNK_NUMBERS // width)


def finite(values: ArrayLike) -> Floats:
    """Numbers as float64.

    Raises:
        ValueError: there are none, or one is not finite.
    """
    numbers = np.asarray(values, np.float64)
    if not numbers.size or not np.isfinite(numbers).all():
        raise ValueError(
            f"need one finite number per query, got an array of shape {numbers.shape}"
            f" with {int((~np.isfinite(numbers)).sum())} that are not finite"
        )
    return numbers


def by_seed(values: ArrayLike) -> Floats:
    """One finite number per query as (S, N) float64, S and N >= 1; a single query as S = 1."""
    numbers = finite(values)
    if numbers.ndim not in (1, 2):
        raise ValueError(f"need one finite number per query, got an array of shape {numbers.shape}")
    return numbers.reshape(1, -1) if 1 in numbers.shape else np.atleast_2d(numbers)
