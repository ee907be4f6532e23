import math

import numpy as np
import pytest
from scipy import stats

from maw_gym.retrieval.significance import (
    bootstrap_means,
    holm,
    interval,
    margin,
    sign_flip_tests,
    smallest_detectable_difference,
    standard_error,
    wins_ties_losses,
)


def bootstrap_interval(values, level=0.95, seed=0):
    return interval(bootstrap_means([values], seed=seed)[0], level)


def equivalence_margin(differences, level=0.95):
    return margin(bootstrap_means([differences])[0], level)


def sign_flip_test(differences, **more):
    return sign_flip_tests([differences], **more)[0]


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        # |sum| 6 of +-1 +-2 +-3: all plus or all minus, 2 of 8
        ([1, 2, 3], 2 / 8),
        # |sum| 1 or 3 always reaches 1
        ([1, 1, -1], 1),
        # |sum| >= 3 of five ones: 0, 1, 4 or 5 minus signs, 1 + 5 + 5 + 1 of 32
        ([1, 1, 1, 1, -1], 12 / 32),
        # zeros change nothing
        ([1, 0, 2, 0, 3, 0], 2 / 8),
        # the order of addition must not matter: .1 + .2 is not .3
        ([0.1, 0.2, -0.3], 1),
        ([0, 0, 0], 1),
        ([-0.5], 1),
    ],
)
def test_sign_flips_enumerated_by_hand(differences, p):
    assert sign_flip_test(differences) == p
    assert sign_flip_test([-d for d in differences]) == p


def test_rows_are_tested_by_the_same_signs():
    rows = np.random.default_rng(0).normal(size=(3, 40))
    assert sign_flip_tests(rows) == [sign_flip_test(row) for row in rows]


def test_as_many_assignments_as_draws_are_all_tried():
    # 13 ones: all plus or all minus, 2 of 8192
    assert sign_flip_test([1] * 13, draws=8192) == 2 / 8192
    # 14 times as many: sampled, so one of the draws at least
    assert sign_flip_test([1] * 14) >= 1 / 10_001


def test_sampled_sign_flips_approach_the_exact_p():
    # 20 ones, 4 of them negative: P(at least 16 of 20 alike) = 2 * (1 + 20 + 190 + 1140 + 4845)
    # / 2^20 = .011818
    differences = [1] * 16 + [-1] * 4
    assert sign_flip_test(differences, seed=1) == pytest.approx(0.011818, abs=0.0025)
    assert sign_flip_test(differences, seed=1) == sign_flip_test(differences, seed=1)
    assert len({sign_flip_test(differences, seed=seed) for seed in range(5)}) > 1


def test_sampled_sign_flips_approach_the_normal():
    differences = np.random.default_rng(3).normal(0.02, 0.3, 600)
    z = differences.sum() / math.sqrt((differences**2).sum())
    expected = 2 * stats.norm.sf(abs(z))
    assert sign_flip_test(differences) == pytest.approx(expected, abs=0.006)


def test_the_sampled_p_is_never_zero():
    assert sign_flip_test(np.ones(100), draws=99) == 1 / 100


def test_draws_in_several_batches_add_up(monkeypatch):
    monkeypatch.setattr("maw_gym.retrieval.significance.CHUNK_NUMBERS", 170)  # 8 draws of 20
    # the sum is 0 and every assignment as extreme: (1 + 50) / (1 + 50) if all draws are made
    assert sign_flip_test([1, -1] * 10, draws=50) == 1
    assert bootstrap_means([[0, 1] * 10], draws=50).shape == (1, 50)
    assert bootstrap_interval([0, 1] * 10) == pytest.approx((0.3, 0.7), abs=0.051)


def test_holm_by_hand():
    # sorted .01, .03, .04 times 3, 2, 1: .03, .06, .04 -> running maximum .03, .06, .06
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.6, 1.0]) == [1, 1, 1]
    assert holm([0.02]) == [0.02]
    assert holm([]) == []


def test_smallest_detectable_difference_by_hand():
    # s = sqrt(2), s / sqrt(2) = 1: z(.975) + z(.8) = 1.959964 + .841621
    assert smallest_detectable_difference([-1, 1]) == pytest.approx(2.801585, abs=1e-6)
    assert smallest_detectable_difference([4, 6]) == pytest.approx(2.801585, abs=1e-6)
    assert smallest_detectable_difference([[0, 0], [0, 4]]) == pytest.approx(2.801585, abs=1e-6)
    # z(.95) + z(.5) = 1.644854
    assert smallest_detectable_difference([0, 2], power=0.5, alpha=0.1) == pytest.approx(1.644854)


def test_the_smallest_detectable_difference_is_detected_as_often_as_it_says():
    rng = np.random.default_rng(0)
    samples = rng.normal(0, 1, (2000, 100))
    shift = np.mean([smallest_detectable_difference(row) for row in samples[:200]])
    found = stats.ttest_1samp(samples + shift, 0, axis=1).pvalue < 0.05
    assert found.mean() == pytest.approx(0.8, abs=0.03)


def test_bootstrap_by_hand():
    assert bootstrap_interval([0.3, 0.3, 0.3]) == pytest.approx((0.3, 0.3))
    # two of {0, 1}: means 0, .5, 1 with probabilities 1/4, 1/2, 1/4
    assert bootstrap_interval([0, 1]) == (0, 1)
    assert bootstrap_interval([0, 1], level=0.4) == (0.5, 0.5)
    assert bootstrap_interval([7]) == (7, 7)


def test_bootstrap_interval_of_a_proportion():
    # 30 of 100: normal approximation .3 +- 1.96 sqrt(.3 .7 / 100) = .2102 to .3898
    values = np.arange(100) < 30
    assert bootstrap_interval(values, seed=2) == pytest.approx((0.21, 0.39), abs=0.011)
    assert bootstrap_interval(values, seed=2) == bootstrap_interval(values, seed=2)


def test_bootstrap_over_seeds_and_queries_by_hand():
    # Seeds differ, queries do not: means are those of two of {0, 1}, with 1/4, 1/2, 1/4.
    seeds = [[0, 0, 0], [1, 1, 1]]
    assert bootstrap_interval(seeds) == (0, 1)
    assert bootstrap_interval(seeds, level=0.4) == (0.5, 0.5)
    # Queries differ, seeds do not: as of one seed alone.
    assert bootstrap_interval([[0, 1], [0, 1], [0, 1]], level=0.4) == (0.5, 0.5)
    # One query, three seeds: the seeds alone.
    assert bootstrap_interval([[2], [2], [2]]) == (2, 2)
    # Opposite corners: a draw averages cells of {0, 0; 0, 4}, 4 times the product of two shares
    # that are 0, 1/2 or 1. It is 4 with probability 1/16 and at most 2 with 15/16.
    corner = [[0, 0], [0, 4]]
    assert bootstrap_interval(corner, level=0.9) == (0, 4)
    assert bootstrap_interval(corner, level=0.86) == (0, 2)


def test_standard_error_by_hand():
    # variance 2, two queries
    assert standard_error([-1, 1]) == pytest.approx(1)
    # Of one query the seeds alone.
    assert standard_error([[-1], [1]]) == pytest.approx(1)
    # Equal seeds add nothing to the queries' error, and are no further queries.
    assert standard_error([[-1, 1], [-1, 1]]) == pytest.approx(1)
    # Seeds 0 and 2 for all of four queries: mean squares 4 x 2 of the seeds, 0 of the queries and 0
    # of the rest; sqrt(8 / 8).
    assert standard_error([[0, 0, 0, 0], [2, 2, 2, 2]]) == pytest.approx(1)
    # Rows 0 2 and 4 6: seeds 1 and 5, queries 2 and 4, no rest; mean squares 2 x 8 and 2 x 2;
    # sqrt((16 + 4) / 4).
    assert standard_error([[0, 2], [4, 6]]) == pytest.approx(5**0.5)
    # Rows 0 0 and 0 4: mean squares 4, 4 and a rest of 4; sqrt(4 / 4).
    assert standard_error([[0, 0], [0, 4]]) == pytest.approx(1)


def test_equivalence_by_hand():
    # Coverage .9 of the interval is two tests at .05; of {0, 1} that is 0 to 1.
    assert equivalence_margin([0, 1]) == 1
    assert equivalence_margin([0, -1]) == 1
    # Coverage .4: the middle one of -1/2, 0, 1/2 and of -3, -2, -1 (probabilities 1/4, 1/2, 1/4).
    assert equivalence_margin([-0.5, 0.5], level=0.7) == 0
    assert equivalence_margin([-3, -1], level=0.7) == 2


def test_wins_ties_losses():
    assert wins_ties_losses([0.5, 0, -0.2, 1e-12, 0.1]) == (2, 2, 1)
    assert wins_ties_losses([0.5, 0, -0.2], tolerance=0.3) == (1, 2, 0)


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [math.inf]])
@pytest.mark.parametrize(
    "function", [bootstrap_interval, sign_flip_test, smallest_detectable_difference]
)
def test_bad_values_are_refused(function, values):
    with pytest.raises(ValueError, match="one finite number per query"):
        function(values)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="draws >= 1"):
        sign_flip_test([1.0], draws=0)
    with pytest.raises(ValueError, match="0 < level < 1"):
        bootstrap_interval([1.0], level=95)
    with pytest.raises(ValueError, match=r"0\.5 < level < 1, got 0\.05"):
        equivalence_margin([1.0, 2.0], level=0.05)
    with pytest.raises(ValueError, match="two differences or more"):
        smallest_detectable_difference([1.0])
    with pytest.raises(ValueError, match="levels in"):
        smallest_detectable_difference([1.0, 2.0], power=80)
    with pytest.raises(ValueError, match=r"p-values must lie in \[0, 1\]"):
        holm([0.5, math.nan])
