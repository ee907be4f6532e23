"""The bandit over a depth table: what each choice is worth, worked out by hand."""

import numpy as np
import pytest
from hand_made import REWARD, TABLE, random_table

from maw_gym.envs.bandit import NDCG, Bandit, RewardSpec, gap_closed
from maw_gym.errors import InputError

BANDIT = Bandit(TABLE, ("profile",))


def test_what_it_owns():
    assert (len(BANDIT), BANDIT.num_depths) == (3, 4)
    assert BANDIT.rewards == pytest.approx(np.array(REWARD), abs=1e-6)
    assert BANDIT.random.tolist() == pytest.approx([0.4825, 0.4575, 0.35], abs=1e-6)
    assert BANDIT.best.tolist() == pytest.approx([0.7, 0.7, 0.5], abs=1e-6)
    assert BANDIT.oracle.tolist() == [2, 0, 3]
    assert BANDIT.observations.tolist() == TABLE.observation(["profile"]).tolist()
    assert not BANDIT.rewards.flags.writeable
    assert TABLE.block("profile").flags.writeable  # but those of the table
    assert list(BANDIT.terms) == ["reward", "entropy", "focus", "alignment"]
    assert BANDIT.terms["alignment"].tolist() == TABLE.ndcg.tolist()


def test_the_best_depths_of_equal_ones_the_smallest():
    listwise = Bandit(TABLE, reward=RewardSpec((0, 0, 1), "listwise"))
    # Rows .1 .2 .3 .4; .5 .5 .5 .5; 1 0 0 0.
    assert listwise.oracle.tolist() == [3, 0, 0]
    entropy = Bandit(random_table(2, 3), reward=RewardSpec((1, 0, 0)))
    entropy.rewards = np.array([[0.0, 1.0, 0.5], [0.2, 0.0, 0.5]], np.float32)  # means .1 .5 .5
    assert entropy.best_fixed() == 1
    with pytest.raises(InputError, match=r"^there is no query to choose a depth on"):
        Bandit(random_table(0, 4)).best_fixed()


def test_summary_by_hand():
    summary = BANDIT.summary([1, 0, 3], best_fixed_depth=3)
    assert summary._fields == ("mean", "random", "best_fixed", "oracle", "gap_closed")
    # Chosen .5 .7 .5; random (1.93 + 1.83 + 1.4) / 12; depth 3 gets .43 .33 .5; best .7 .7 .5.
    expected = [1.7 / 3, 0.43, 0.42, 1.9 / 3, (1.7 / 3 - 0.43) / (1.9 / 3 - 0.43)]
    assert list(summary) == pytest.approx(expected, abs=1e-6)
    assert BANDIT.mean([1, 0, 3]) == pytest.approx(1.7 / 3, abs=1e-6)
    assert BANDIT.mean(3) == pytest.approx(0.42, abs=1e-6)
    assert BANDIT.summary(BANDIT.oracle).gap_closed == pytest.approx(1)
    assert BANDIT.summary(BANDIT.oracle).best_fixed is None


def test_share_of_the_gap_by_hand():
    assert gap_closed(mean=0.45, random=0.35, oracle=0.75) == pytest.approx(0.25)
    assert gap_closed(mean=0.25, random=0.35, oracle=0.75) == pytest.approx(-0.25)
    assert gap_closed(mean=0.5, random=0.5, oracle=0.5 + 2e-6) == 0
    assert gap_closed(mean=0.5, random=0.5, oracle=0.5 + 5e-7) is None


@pytest.mark.parametrize("depths", [[0, 0, 4], [-1, 0, 0], [0, 0], [0.5, 0, 0], 4, [[0, 0, 0]]])
def test_depths_that_do_not_fit_are_refused(depths):
    with pytest.raises(InputError, match=r"^actions must be "):
        BANDIT.summary(depths)


def test_the_reward_by_hand():
    terms = np.array([[0.0, 0.2, 1.0], [1.0, 0.8, 0.1], [0.0, 0.5, 0.25]])
    assert RewardSpec().blend(*terms) == pytest.approx([0.3, 0.5, 0.43], abs=1e-15)
    assert NDCG.of(TABLE).tolist() == TABLE.ndcg.tolist()  # to the bit
    # 0.2 of entropy 0.6, 0.3 of focus 0.4, 0.5 of listwise 0.3
    blended = RewardSpec((0.2, 0.3, 0.5), "listwise").of(TABLE)
    assert blended[0, 2] == pytest.approx(0.39, abs=1e-6)
    assert blended.dtype == np.float32


@pytest.mark.parametrize(
    "weights",
    [(0.5, 0.5), (0.1, 0.2, 0.3, 0.4), (float("nan"), 0.3, 0.4), (float("inf"), 0.3, 0.4),
     (-0.1, 0.6, 0.5), (0, 0, 0), "abc", 0.5, (None, 0.5, 0.5), None, (1e300, 0, 0),
     (10**400, 0, 0), (0.3, 0.3, 2e6), (5e-324, 0, 0), (1e-7, 1e-7, 1e-7)],
)  # fmt: skip
def test_unusable_weights_are_shown_with_a_usable_example(weights):
    with pytest.raises(InputError) as caught:
        RewardSpec(weights)
    assert repr(weights) in str(caught.value)
    assert "(0.3, 0.3, 0.4)" in str(caught.value)


def test_weights_may_be_any_sequence_of_numbers():
    assert RewardSpec(np.array([0.5, 0.25, 0.25])).weights == (0.5, 0.25, 0.25)
    assert RewardSpec((1e6, 0, 1e-300)).weights == (1e6, 0.0, 1e-300)
    assert len({RewardSpec([1, 0, 2]), RewardSpec((1, 0, 2))}) == 1
    with pytest.raises(InputError, match=r"^unknown alignment 'map'; choose one of ndcg, listwise"):
        RewardSpec(alignment="map")
