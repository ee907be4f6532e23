from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hand_made import TABLE

from maw_gym.agents.baselines import STATIC, fixed_router, static_router
from maw_gym.corpora import Collection
from maw_gym.envs.bandit import RewardSpec
from maw_gym.errors import InputError
from maw_gym.routers.depth_router import DepthRouter
from maw_gym.tables.task import RetrievalTask


def depths_of(router: DepthRouter, task: RetrievalTask) -> list[int]:
    return router.predict(task.table("test").observation(router.observation))[0].tolist()


def test_fixed_router_takes_its_depth(task: RetrievalTask) -> None:
    for depth in range(4):
        assert set(depths_of(fixed_router(task, depth), task)) == {depth}
    for depth in (-1, 4):
        with pytest.raises(
            InputError, match=f"depth must be a whole number from 0 to 3, got {depth}"
        ):
            fixed_router(task, depth)


def test_best_fixed_is_chosen_on_training_queries(task: RetrievalTask) -> None:
    table = task.table("train")
    for name, weights, measure in (
        ("best_fixed", (1, 0, 0), table.entropy),
        ("best_fixed", (0, 1, 0), table.focus),
        ("best_fixed_ndcg", (1, 0, 0), table.ndcg),
    ):
        router = static_router(name, task, RewardSpec(weights))
        assert router.settings["depth"] == int(measure.mean(0).argmax())


def test_observed_reward_rule_by_hand(task: RetrievalTask) -> None:
    # Mean alignments of the depths: 1/3, 1/3, 1/3, 1/4. The first query has entropies 0, .2, .6, 1
    # and focuses 1, .8, .4, .1; the third the same of every depth, so that alignment decides.
    fruit: Any = SimpleNamespace(
        table=lambda split: TABLE, collection=task.collection, embedder=task.embedder
    )
    rule = static_router("observed_reward", fruit, RewardSpec((0.5, 0.3, 0.2)))
    logits = rule(torch.from_numpy(TABLE.observation(["profile"])))
    expected = [0.3 + 0.2 / 3, 0.34 + 0.2 / 3, 0.42 + 0.2 / 3, 0.53 + 0.2 / 4]
    np.testing.assert_allclose(logits[0], expected, rtol=1e-6)
    assert depths_of(rule, fruit) == [3, 3, 0]
    # by focus alone, and by the listwise alignment alone: means .5333, .2333, .2667, .3
    for reward in (RewardSpec((0, 1, 0)), RewardSpec((0, 0, 1), "listwise")):
        assert depths_of(static_router("observed_reward", fruit, reward), fruit) == [0] * 3


def test_rule_takes_its_most_common_label(tiny: Collection, task: RetrievalTask) -> None:
    # One or two relevant documents for every query: depth 5 of 32, which is 0 of 4.
    assert static_router("rule", task).settings["depth"] == 0
    # One query keeps its single document, the others have twelve: depth 25, which is 3.
    many = dict.fromkeys(tiny.doc_ids[:12], 1)
    train = tiny.splits["train"].select([0, 1, 1])
    train = train._replace(relevance=(train.relevance[0], many, many))
    other = tiny._replace(splits={**tiny.splits, "train": train})
    assert static_router("rule", RetrievalTask(other, task.embedder)).settings["depth"] == 3


def test_static_baselines_that_cannot_be(task: RetrievalTask, tiny: Collection) -> None:
    bare = tiny._replace(splits={**tiny.splits, "train": tiny.splits["train"].select([])})
    for name in STATIC[:3]:  # the rule needs no depth table
        with pytest.raises(InputError, match="has no training query to choose a depth on"):
            static_router(name, RetrievalTask(bare, task.embedder))
    with pytest.raises(InputError, match="unknown baseline 'coin'"):
        static_router("coin", task)
