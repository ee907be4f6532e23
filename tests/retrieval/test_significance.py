import math

import numpy as np
import pytest

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


def sign_flip_test(differences, **more):
    return sign_flip_tests([differences], **more)[0]


def bootstrap_interval(values, level=0.95):
    return interval(bootstrap_means([values])[0], level)


@pytest.mark.parametrize(
    ("differences", "p"),
    [
        ([1, 2, 3], 2 / 8),  # |sum| 6 of +-1 +-2 +-3: all plus or all minus
        ([1, 1, -1], 1),  # |sum| 1 or 3 always reaches 1
        ([1, 1, 1, 1, -1], 12 / 32),  # 0, 1, 4 or 5 minus signs: 1 + 5 + 5 + 1
        ([1, 0, 2, 0, 3, 0], 2 / 8),  # zeros change nothing
        ([0.1, 0.2, -0.3], 1),  # nor does the order of addition: .1 + .2 is not .3
        ([0, 0, 0], 1),
        ([-0.5], 1),
        ([1] * 13, 2 / 8192),  # as many assignments as may be tried
    ],
)
def test_sign_flips_enumerated_by_hand(differences, p):
    assert sign_flip_test(differences) == p
    assert sign_flip_test([-d for d in differences]) == p


def test_sampled_sign_flips():
    rows = np.random.default_rng(0).normal(size=(3, 40))
    assert sign_flip_tests(rows) == [sign_flip_test(row) for row in rows]  # by the same signs
    assert len({sign_flip_test(rows[0], seed=seed) for seed in range(5)}) > 1
    # 20 ones, 4 of them negative: P(at least 16 of 20 alike) = 2 * (1 + 20 + 190 + 1140 + 4845)
    # / 2^20 = .011818
    assert sign_flip_test([1] * 16 + [-1] * 4, seed=1) == pytest.approx(0.011818, abs=0.0025)
    assert sign_flip_test(np.ones(100), draws=99) == 1 / 100  # never 0


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
    assert (holm([0.02]), holm([])) == ([0.02], [])


@pytest.mark.parametrize(
    ("differences", "error"),
    [
        ([-1, 1], 1),  # variance 2, two queries
        ([[-1], [1]], 1),  # of one query the seeds alone
        ([[-1, 1], [-1, 1]], 1),  # equal seeds add nothing, and are no further queries
        # Mean squares 4 x 2 of the seeds, 0 of the queries and 0 of the rest; sqrt(8 / 8).
        ([[0, 0, 0, 0], [2, 2, 2, 2]], 1),
        # Seeds 1 and 5, queries 2 and 4, no rest: 2 x 8 and 2 x 2; sqrt((16 + 4) / 4).
        ([[0, 2], [4, 6]], 5**0.5),
        ([[0, 0], [0, 4]], 1),  # mean squares 4, 4 and a rest of 4; sqrt(4 / 4)
    ],
)
def test_standard_error_by_hand(differences, error):
    assert standard_error(differences) == pytest.approx(error)
    # z(.975) + z(.8) = 1.959964 + .841621
    found = smallest_detectable_difference(differences)
    assert found == pytest.approx(2.801585 * error, abs=1e-5)
    # z(.95) + z(.5) = 1.644854
    found = smallest_detectable_difference(differences, power=0.5, alpha=0.1)
    assert found == pytest.approx(1.644854 * error)


@pytest.mark.parametrize(
    ("values", "level", "expected"),
    [
        ([0.3, 0.3, 0.3], 0.95, pytest.approx((0.3, 0.3))),
        ([7], 0.95, (7, 7)),
        # Two of {0, 1}: means 0, .5, 1 with probabilities 1/4, 1/2, 1/4.
        ([0, 1], 0.95, (0, 1)),
        ([0, 1], 0.4, (0.5, 0.5)),
        # Seeds differ, queries do not; queries differ, seeds do not; one query alone.
        ([[0, 0, 0], [1, 1, 1]], 0.95, (0, 1)),
        ([[0, 0, 0], [1, 1, 1]], 0.4, (0.5, 0.5)),
        ([[0, 1], [0, 1], [0, 1]], 0.4, (0.5, 0.5)),
        ([[2], [2], [2]], 0.95, (2, 2)),
        # A draw averages cells, 4 times the product of two shares that are 0, 1/2 or 1: 4 with
        # probability 1/16 and at most 2 with 15/16.
        ([[0, 0], [0, 4]], 0.9, (0, 4)),
        ([[0, 0], [0, 4]], 0.86, (0, 2)),
        # 30 of 100: normal approximation .3 +- 1.96 sqrt(.3 .7 / 100) = .2102 to .3898
        (np.arange(100) < 30, 0.95, pytest.approx((0.21, 0.39), abs=0.011)),
    ],
)
def test_bootstrap_by_hand(values, level, expected):
    assert bootstrap_interval(values, level) == expected


def test_equivalence_by_hand():
    def equivalence(differences, level=0.95):
        return margin(bootstrap_means([differences])[0], level)

    # Coverage .9 of the interval is two tests at .05; of {0, 1} that is 0 to 1.
    assert equivalence([0, 1]) == equivalence([0, -1]) == 1
    # Coverage .4: the middle one of -1/2, 0, 1/2 and of -3, -2, -1 (probabilities 1/4, 1/2, 1/4).
    assert equivalence([-0.5, 0.5], level=0.7) == 0
    assert equivalence([-3, -1], level=0.7) == 2
    with pytest.raises(ValueError, match=r"0\.5 < level < 1, got 0\.05"):
        equivalence([1.0, 2.0], level=0.05)


def test_wins_ties_losses():
    assert wins_ties_losses([0.5, 0, -0.2, 1e-12, 0.1]) == (2, 2, 1)
    assert wins_ties_losses([0.5, 0, -0.2], tolerance=0.3) == (1, 2, 0)


def test_bad_values_are_refused():
    for values in ([], [1.0, math.nan], [math.inf]):
        for function in (bootstrap_interval, sign_flip_test, standard_error):
            with pytest.raises(ValueError, match="one finite number per query"):
                function(values)
    with pytest.raises(ValueError, match="two differences or more"):
        standard_error([1.0])
    with pytest.raises(ValueError, match=r"p-values must lie in \[0, 1\]"):
        holm([0.5, math.nan])
