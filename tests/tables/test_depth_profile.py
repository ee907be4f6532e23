from dataclasses import replace

import numpy as np
import pytest
from hand_made import TABLE

from maw_gym.tables.depth_profile import depth_profile
from maw_gym.tables.loading import load_task


def test_profile_by_hand():
    profile = depth_profile(TABLE)
    # (0 + .1 + 0) / 3, (.2 + .3 + 0) / 3, (.6 + .5 + 0) / 3, (1 + .9 + 0) / 3
    assert profile.entropy == pytest.approx([0.033333, 0.166667, 0.366667, 0.633333], abs=1e-6)
    # (1 + .9 + 1) / 3, (.8 + .7 + 1) / 3, (.4 + .5 + 1) / 3, (.1 + .2 + 1) / 3
    assert profile.focus == pytest.approx([0.966667, 0.833333, 0.633333, 0.433333], abs=1e-6)
    assert profile.ndcg == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0.25], abs=1e-6)
    assert profile.ordered
    assert str(profile).splitlines() == [
        "depth  entropy  focus  nDCG@10",
        "    0    0.033  0.967   0.3333",
        "    1    0.167  0.833   0.3333",
        "    2    0.367  0.633   0.3333",
        "    3    0.633  0.433   0.2500",
    ]


@pytest.mark.parametrize("column", ["entropy", "focus"])
def test_depths_out_of_order(column):
    swapped = getattr(TABLE, column)[:, [0, 2, 1, 3]]
    assert not depth_profile(replace(TABLE, **{column: swapped})).ordered


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_depths_of_the_default_encoder_differ_and_cost_no_retrieval():
    """Trained on pydocs, judged on its test queries; the best fixed depth by training queries."""
    task = load_task("pydocs", "trained", "cpu")
    evaluation, _ = task.evaluate("test")
    standard = evaluation.mean["nDCG@10"]
    profile = depth_profile(task.table("test"))
    best = int(np.argmax(depth_profile(task.table("train")).ndcg))
    assert standard >= 0.409
    assert profile.ordered
    assert profile.entropy[-1] - profile.entropy[0] >= 0.6
    assert profile.focus[0] - profile.focus[-1] >= 0.5
    assert profile.ndcg.mean() >= standard - 0.005
    assert profile.ndcg[best] >= standard
