import math

import numpy as np
import pytest
from hand_made import REWARD, TABLE
from hypothesis import given
from hypothesis import strategies as st

from maw_gym.errors import InputError
from maw_gym.tables.rewards import (
    NDCG,
    RewardSpec,
    attention_entropy,
    attention_focus,
    gap_closed,
)


def test_blend_of_known_terms():
    entropy = np.array([0.0, 0.2, 1.0])
    focus = np.array([1.0, 0.8, 0.1])
    alignment = np.array([0.0, 0.5, 0.25])
    terms = (entropy, focus, alignment)
    assert RewardSpec().blend(*terms) == pytest.approx([0.3, 0.5, 0.43], abs=1e-15)
    assert RewardSpec([0, 0, 2]).blend(*terms) == pytest.approx([0, 1, 0.5], abs=1e-15)


def test_blend_keeps_the_precision_of_the_terms():
    half = np.full((2, 3), 0.5, dtype=np.float32)
    result = RewardSpec((0.25, 0.25, 0.5)).blend(half, half, half)
    assert result.dtype == np.float32
    assert (result == 0.5).all()


@pytest.mark.parametrize(
    "weights",
    [
        (0.5, 0.5),
        (0.1, 0.2, 0.3, 0.4),
        (float("nan"), 0.3, 0.4),
        (float("inf"), 0.3, 0.4),
        (-0.1, 0.6, 0.5),
        (0, 0, 0),
        "abc",
        0.5,
        (None, 0.5, 0.5),
        None,
        (1e300, 0, 0),
        (10**400, 0, 0),
        (0.3, 0.3, 2e6),
        (5e-324, 0, 0),
        (1e-7, 1e-7, 1e-7),
    ],
)
def test_unusable_weights_are_shown_with_a_usable_example(weights):
    with pytest.raises(InputError) as caught:
        RewardSpec(weights)
    message = str(caught.value)
    assert repr(weights) in message
    assert "(0.3, 0.3, 0.4)" in message
    assert "\n" not in message


def test_weights_may_be_any_sequence_of_numbers():
    assert RewardSpec([1, 0, 2]).weights == (1.0, 0.0, 2.0)
    assert RewardSpec(np.array([0.5, 0.25, 0.25])).weights == (0.5, 0.25, 0.25)
    assert RewardSpec((1e6, 0, 1e-300)).weights == (1e6, 0.0, 1e-300)
    assert RewardSpec(weights=[0.3, 0.3, 0.4], alignment="ndcg") == RewardSpec()
    assert len({RewardSpec([1, 0, 2]), RewardSpec((1, 0, 2))}) == 1


def test_an_unknown_alignment_is_refused_with_those_there_are():
    with pytest.raises(InputError, match=r"^unknown alignment 'map'; choose one of ndcg, listwise"):
        RewardSpec(alignment="map")


def test_reward_of_a_table_by_hand():
    assert RewardSpec().of(TABLE) == pytest.approx(np.array(REWARD), abs=1e-6)
    assert RewardSpec((0, 0, 1), "listwise").of(TABLE).tolist() == TABLE.listwise.tolist()
    # 0.2 of entropy 0.6, 0.3 of focus 0.4, 0.5 of listwise 0.3
    blended = RewardSpec((0.2, 0.3, 0.5), "listwise").of(TABLE)
    assert blended[0, 2] == pytest.approx(0.39, abs=1e-6)
    assert blended.dtype == np.float32


def test_retrieval_alone_is_ndcg_to_the_bit():
    assert NDCG.of(TABLE).tolist() == TABLE.ndcg.tolist()


def test_share_of_the_gap_by_hand():
    assert gap_closed(mean=0.45, random=0.35, oracle=0.75) == pytest.approx(0.25)
    assert gap_closed(mean=0.25, random=0.35, oracle=0.75) == pytest.approx(-0.25)
    assert gap_closed(mean=0.5, random=0.5, oracle=0.5 + 2e-6) == 0
    assert gap_closed(mean=0.5, random=0.5, oracle=0.5 + 5e-7) is None


def test_uniform_attention_has_entropy_one_and_focus_one_over_n():
    uniform = np.full((2, 5, 5), 0.2)
    assert attention_entropy(uniform) == pytest.approx(1, abs=1e-15)
    assert attention_focus(uniform) == pytest.approx(0.2, abs=1e-15)


def test_attention_on_single_tokens_has_entropy_zero_and_focus_one():
    single = np.stack([np.eye(4), np.eye(4)[::-1]])
    assert attention_entropy(single) == 0
    assert attention_focus(single) == 1


def test_one_token_leaves_nothing_to_spread_over():
    one = np.ones((8, 1, 1))
    assert attention_entropy(one) == 0
    assert attention_focus(one) == 1


def test_a_text_without_tokens_has_neither():
    nothing = np.ones((8, 0, 0))
    assert attention_entropy(nothing) == 0
    assert attention_focus(nothing) == 0


def test_means_are_over_heads_and_rows():
    # Head 0: rows (1/2, 1/2) and (1, 0); head 1: both rows (3/4, 1/4).
    weights = np.array([[[0.5, 0.5], [1.0, 0.0]], [[0.75, 0.25], [0.75, 0.25]]])
    quarter = (0.75 * math.log(4 / 3) + 0.25 * math.log(4)) / math.log(2)
    assert attention_entropy(weights) == pytest.approx((1 + 0 + 2 * quarter) / 4, abs=1e-15)
    assert attention_focus(weights) == pytest.approx((0.5 + 1 + 0.75 + 0.75) / 4, abs=1e-15)


def test_leading_axes_are_kept():
    weights = np.full((3, 7, 2, 4, 4), 0.25)
    assert attention_entropy(weights).shape == (3, 7)
    assert attention_focus(weights).shape == (3, 7)


@pytest.mark.parametrize("shape", [(3, 3), (2, 3, 4), ()])
def test_other_shapes_are_refused(shape):
    for statistic in (attention_entropy, attention_focus):
        with pytest.raises(InputError, match=r"\(\.\.\., heads, n, n\)"):
            statistic(np.zeros(shape))


@given(st.integers(1, 12), st.floats(-6, 6), st.integers(0, 1000))
def test_terms_stay_within_zero_and_one(tokens, log_scale, seed):
    scores = np.random.default_rng(seed).normal(size=(2, tokens, tokens)) * math.exp(log_scale)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True)).astype(np.float32)
    weights /= weights.sum(axis=-1, keepdims=True)
    assert 0 <= attention_entropy(weights) <= 1
    assert 1 / tokens - 1e-6 <= attention_focus(weights) <= 1
