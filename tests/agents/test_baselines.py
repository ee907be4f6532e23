import math
from typing import Any

import numpy as np
import pytest
import torch
from hand_made import TABLE
from numpy.typing import NDArray

from agents.baselines import (
    STATIC,
    FullInformationSettings,
    best_fixed_router,
    fixed_router,
    full_information_terms,
    observed_reward_router,
    random_depths,
    rule_depths,
    rule_router,
    standardised,
    static_router,
    train_full_information,
)
from maw_gym.corpora import Collection
from maw_gym.encoders.maw import EncoderSettings
from maw_gym.envs.bandit import Bandit, RewardSpec
from maw_gym.errors import InputError
from maw_gym.routers.depth_router import DepthRouter, load_router, save_router
from maw_gym.tables.task import RetrievalTask

DEPTHS = 4
SHAPE = EncoderSettings(depths=DEPTHS)


def depths_of(router: DepthRouter, task: RetrievalTask, split: str) -> NDArray[np.int64]:
    return router.predict(task.table(split).observation(router.observation))[0]


def test_random_depths_are_uniform_and_seeded() -> None:
    drawn = random_depths(8000, 4, np.random.default_rng(0))
    np.testing.assert_allclose(np.bincount(drawn, minlength=4) / 8000, 0.25, atol=0.02)
    np.testing.assert_array_equal(drawn, random_depths(8000, 4, np.random.default_rng(0)))


@pytest.mark.parametrize("depth", range(DEPTHS))
def test_fixed_router_takes_its_depth(task: RetrievalTask, depth: int) -> None:
    for split in ("train", "test"):
        assert set(depths_of(fixed_router(task, depth), task, split).tolist()) == {depth}


def test_fixed_router_refuses_depths_that_do_not_exist(task: RetrievalTask) -> None:
    for depth in (-1, DEPTHS):
        with pytest.raises(InputError, match=f"depth must be from 0 to 3, got {depth}"):
            fixed_router(task, depth)


def test_best_fixed_is_chosen_on_training_queries(task: RetrievalTask) -> None:
    table = task.table("train")
    by_entropy = best_fixed_router(task, RewardSpec((1, 0, 0)))
    assert by_entropy.settings["depth"] == int(table.entropy.mean(0).argmax())
    by_focus = best_fixed_router(task, RewardSpec((0, 1, 0)))
    assert by_focus.settings["depth"] == int(table.focus.mean(0).argmax())
    assert by_entropy.settings["depth"] != by_focus.settings["depth"]
    by_ndcg = static_router("best_fixed_ndcg", task, RewardSpec((1, 0, 0)))
    assert by_ndcg.settings["depth"] == int(table.ndcg.mean(0).argmax())
    assert by_ndcg.settings["learner"] == "best_fixed_ndcg"


def test_observed_reward_rule_by_hand(task: RetrievalTask, monkeypatch: Any) -> None:
    # Mean alignments of the depths: 1/3, 1/3, 1/3, 1/4. The first query has entropies 0, .2, .6, 1
    # and focuses 1, .8, .4, .1; the third the same of every depth, so that alignment decides.
    tables = {"train": TABLE, "test": TABLE}
    monkeypatch.setattr(task, "table", tables.__getitem__)
    rule = observed_reward_router(task, RewardSpec((0.5, 0.3, 0.2)))
    logits = rule(torch.from_numpy(TABLE.observation(["profile"])))
    expected = [0.3 + 0.2 / 3, 0.34 + 0.2 / 3, 0.42 + 0.2 / 3, 0.53 + 0.2 / 4]
    np.testing.assert_allclose(logits[0], expected, rtol=1e-6)
    assert depths_of(rule, task, "test").tolist() == [3, 3, 0]
    by_focus = observed_reward_router(task, RewardSpec((0, 1, 0)))
    assert depths_of(by_focus, task, "test").tolist() == [0, 0, 0]
    by_alignment = observed_reward_router(task, RewardSpec((0, 0, 1), "listwise"))
    # Means .5333, .2333, .2667, .3
    assert depths_of(by_alignment, task, "test").tolist() == [0, 0, 0]
    assert rule.settings["learner"] == "observed_reward"


@pytest.mark.parametrize("name", ["best_fixed", "best_fixed_ndcg", "observed_reward"])
def test_what_is_averaged_on_training_queries_needs_some(
    tiny: Collection, task: RetrievalTask, name: str
) -> None:
    splits = {**tiny.splits, "train": tiny.splits["train"].select([])}
    bare = RetrievalTask(tiny._replace(splits=splits), task.embedder, "cpu")
    with pytest.raises(InputError, match="has no training query to choose a depth on"):
        static_router(name, bare)


def test_rule_of_few_relevant_documents(task: RetrievalTask) -> None:
    # One or two relevant documents for every query: depth 5 of 32, which is 0 of 4.
    assert rule_depths(task, "test").tolist() == [0] * len(task.table("test"))
    assert rule_router(task).settings["depth"] == 0


def test_rule_of_many_relevant_documents(tiny: Collection, task: RetrievalTask) -> None:
    many = dict.fromkeys(tiny.doc_ids[:12], 1)
    train = tiny.splits["train"]
    # One query keeps its single document, the others have twelve.
    train = train.select([0, 1, 1])
    relevance = (train.relevance[0], many, many)
    splits = {**tiny.splits, "train": train._replace(relevance=relevance)}
    other = RetrievalTask(tiny._replace(splits=splits), task.embedder, "cpu")
    assert rule_depths(other, "train").tolist() == [0, 3, 3]
    assert rule_router(other).settings["depth"] == 3


@pytest.mark.parametrize("name", STATIC)
def test_static_baselines_are_routers_with_files(
    task: RetrievalTask, tmp_path: Any, name: str
) -> None:
    router = static_router(name, task)
    save_router(tmp_path / "router.safetensors", router)
    again = load_router(tmp_path / "router.safetensors")
    expected = depths_of(router, task, "test")
    np.testing.assert_array_equal(depths_of(again, task, "test"), expected)
    assert again.settings["learner"] == name


def test_unknown_static_baseline(task: RetrievalTask) -> None:
    with pytest.raises(InputError, match="unknown baseline 'coin'"):
        static_router("coin", task)


def test_standardised_rewards_by_hand() -> None:
    reward = torch.tensor([[1.0, 3.0], [10.0, 12.0]])
    assert standardised(reward).tolist() == [[-1.0, 1.0], [-1.0, 1.0]]
    assert standardised(torch.ones(2, 3)).tolist() == [[0.0] * 3] * 2


def test_full_information_loss_by_hand() -> None:
    logits = torch.tensor([[0.0, math.log(3.0)]], requires_grad=True)
    reward, advantage = torch.tensor([[0.2, 0.6]]), torch.tensor([[-1.0, 1.0]])
    terms = full_information_terms(logits, reward, advantage, 0.5)
    # Policy (1/4, 3/4): advantage 0.5, reward 0.5, entropy log 4 - 0.75 log 3 = 0.5623351.
    assert terms["expected_reward"].item() == pytest.approx(0.5)
    assert terms["entropy"].item() == pytest.approx(0.5623351)
    assert terms["loss"].item() == pytest.approx(-0.5 - 0.5 * 0.5623351)
    only = full_information_terms(logits, reward, advantage, 0.0)["loss"]
    (gradient,) = torch.autograd.grad(only, logits)
    # -pi_d (a_d - 0.5): -0.25 * -1.5, -0.75 * 0.5
    np.testing.assert_allclose(gradient, [[0.375, -0.375]], rtol=1e-5)


def test_full_information_learns_training_queries_by_heart(task: RetrievalTask) -> None:
    told = FullInformationSettings(epochs=60, batch_size=4, ent_coef=0.0)
    rewards: list[float] = []

    class Recorder:
        def add_scalar(self, tag: str, value: float, step: int) -> None:
            if tag == "train/expected_reward":
                rewards.append(value)

    writer: Any = Recorder()
    router, facts = train_full_information(
        task, observation=("content",), settings=told, writer=writer
    )
    table = task.table("train")
    reward = RewardSpec().of(table)
    assert rewards[-1] == pytest.approx(reward.max(1).mean(), abs=0.003)
    assert facts["judged_on"] == "validation"
    validation = task.table("validation")
    chosen = depths_of(router, task, "validation")
    mean = Bandit(validation).mean(chosen)
    assert facts["validation_reward"] == pytest.approx(mean, abs=1e-6)
