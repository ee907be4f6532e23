import logging
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hand_made import REWARD, TABLE

from maw_gym.agents import supervised
from maw_gym.agents.networks import new_router
from maw_gym.agents.settings import FullInformationSettings, SupervisedSettings
from maw_gym.agents.supervised import (
    RankingLoss,
    SupervisedClassificationRouter,
    full_information_terms,
    gumbel_choice,
    label_facts,
    label_sentence,
    one_hot_choice,
    relevant_counts,
    rule_labels,
    standardised,
    train_full_information,
    train_supervised,
)
from maw_gym.corpora import QuerySet
from maw_gym.encoders.text import padded
from maw_gym.envs.bandit import Bandit, RewardSpec
from maw_gym.errors import InputError
from maw_gym.tables.task import RetrievalTask

DEPTHS = 4
FAST = SupervisedSettings(epochs=3, batch_size=4, negatives=8)


class Recorder:
    """Stands for a SummaryWriter; may be interrupted."""

    def __init__(self, stop_at: float = math.inf) -> None:
        self.stop_at = stop_at
        self.scalars: dict[str, list[tuple[int, float]]] = {}

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        if step == self.stop_at:
            raise KeyboardInterrupt
        self.scalars.setdefault(tag, []).append((step, value))


@pytest.mark.parametrize(
    ("counts", "depths", "expected"),
    [
        ([0, 1, 2, 3, 9, 10, 500], 32, [5, 5, 5, 15, 15, 25, 25]),
        ([2, 3, 10], 1, [0, 0, 0]),
        ([2, 3, 10], 4, [0, 1, 3]),
        ([2, 3, 10], 64, [10, 30, 50]),
    ],
)
def test_rule_labels(counts: list[int], depths: int, expected: list[int]) -> None:
    assert rule_labels(counts, depths).tolist() == expected
    queries = QuerySet(("a", "b"), ("x", "y"), ({"d1": 1, "d2": 0, "d3": 2}, {"d1": 1}))
    assert relevant_counts(queries).tolist() == [2, 1]  # not those of grade 0


def test_label_facts_and_their_sentence() -> None:
    facts = label_facts(np.array([1, 1, 3, 1]), 4)
    assert facts == {
        "label_histogram": [0, 3, 0, 1],
        "label_most_common": 1,
        "label_share_of_most_common": 0.75,
        "label_constant": False,
    }
    sentence = label_sentence({"labels": "oracle", **facts})
    assert sentence.startswith("the oracle labels use 2 of 4 depths; the most common, depth 1, is")


@pytest.mark.parametrize(("temperature", "slope"), [(1.0, 0.1875), (2.0, 0.09375)])
def test_one_hot_choice_has_the_gradient_of_the_softmax(temperature: float, slope: float) -> None:
    logits = torch.tensor([[0.0, temperature * math.log(3.0)]], requires_grad=True)
    choice = one_hot_choice(logits, temperature)
    assert choice.tolist() == [[0.0, 1.0]]
    choice[0, 0].backward()
    # softmax (1/4, 3/4); d soft_0 / d logits = soft_0 (1 - soft_0), -soft_0 soft_1, / temperature
    np.testing.assert_allclose(logits.grad, [[slope, -slope]], rtol=1e-6)


def test_gumbel_choice_samples_the_softmax_from_its_generator() -> None:
    logits = torch.tensor([math.log(0.2), math.log(0.3), math.log(0.5)]).repeat(20_000, 1)
    first, again, other = (
        gumbel_choice(logits, 0.7, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert set(first.sum(1).tolist()) == {1.0}
    np.testing.assert_allclose(first.mean(0), [0.2, 0.3, 0.5], atol=0.015)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_ranking_loss_over_all_documents_is_the_tables_listwise_mass(task: RetrievalTask) -> None:
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    loss = RankingLoss(task, 10**12, generator)  # 30 documents, so all are taken and none is drawn
    table = task.table("train")
    rows = torch.arange(len(table))
    for depth in range(DEPTHS):
        found = loss(rows, torch.eye(DEPTHS)[depth].repeat(len(table), 1))
        expected = -np.log(table.listwise[:, depth]).mean()
        assert found.item() == pytest.approx(expected, rel=1e-4)
    assert torch.equal(generator.get_state(), before)


def test_ranking_loss_of_many_queries_holds_some_of_them(
    task: RetrievalTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervised, "MOST_QUERIES", 2)
    loss = RankingLoss(task, 3000, torch.Generator().manual_seed(0))
    single = [
        loss(torch.tensor([row]), torch.eye(DEPTHS)[:1]).item() for row in range(len(loss.place))
    ]
    held = np.flatnonzero(single)
    assert len(held) == 2
    expected = -np.log(task.table("train").listwise[held, 0]).mean()
    every = torch.arange(len(single))
    found = loss(every, torch.eye(DEPTHS)[0].repeat(len(every), 1))
    assert found.item() == pytest.approx(expected, rel=1e-4)


def test_forward_of_the_5d_tensor_is_the_observation_of_the_table(task: RetrievalTask) -> None:
    table = task.table("train")
    generator = torch.Generator().manual_seed(0)
    router = SupervisedClassificationRouter(
        new_router(table, ("attention",), "auto", {}, generator)
    )
    texts = task.collection.splits["train"].texts
    ids, mask = padded(task.embedder.query_ids(texts))
    weights = task.embedder.maw.depth_attention(task.embedder.text.hidden(ids), mask)
    assert weights.shape == (len(texts), 8, ids.shape[1], ids.shape[1], DEPTHS)
    expected = router.logits(torch.from_numpy(np.array(table.block("attention"))))
    assert expected.std() > 0
    found = router.attention_logits(weights, mask)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    depths = router(weights, mask)
    assert depths.tolist() == expected.argmax(-1).tolist()
    assert router.predict(np.array(table.block("attention")))[0].tolist() == depths.tolist()
    # Without padding no mask is needed.
    length = int(mask[0].sum())
    alone = router.attention_logits(weights[:1, :, :length, :length])
    torch.testing.assert_close(alone, expected[:1], atol=1e-5, rtol=0)
    other = new_router(table, ("content",), "auto", {}, generator)
    with pytest.raises(InputError, match="observes content, which 5D attention does not give"):
        SupervisedClassificationRouter(other)(weights)


def test_rule_labels_of_one_relevant_document_teach_a_constant(task: RetrievalTask) -> None:
    writer: Any = Recorder()
    told = replace(FAST, labels="rule")
    router, facts = train_supervised(task, settings=told, seed=3, writer=writer)
    count = len(task.table("train"))
    assert (facts["labels"], facts["label_histogram"]) == ("rule", [count, 0, 0, 0])
    assert facts["label_constant"] is True
    names = ("loss", "cross_entropy", "ranking_loss", "temperature")
    assert set(writer.scalars) == {*(f"train/{name}" for name in names), "eval/reward"}
    assert [step for step, _ in writer.scalars["train/loss"]] == [count, 2 * count, 3 * count]
    # Annealed geometrically from 2 to 0.5, a step each; 10 queries in batches of 4.
    steps = 3 * math.ceil(count / 4)
    annealed = 2 * 0.25 ** (np.arange(steps).reshape(3, -1) / steps)
    temperatures = [value for _, value in writer.scalars["train/temperature"]]
    assert temperatures == pytest.approx(annealed.mean(1))
    assert router.settings["learner"] == "supervised-rule"
    assert router.settings["encoder"] == task.embedder.fingerprint()


def test_the_epoch_of_largest_validation_reward_is_kept(task: RetrievalTask) -> None:
    router, facts = train_supervised(task, settings=FAST, observation=("content", "profile"))
    bandit = Bandit(task.table("validation"), ("content", "profile"))
    measured = bandit.mean(router.predict(bandit.observations)[0])
    assert facts["validation_reward"] == pytest.approx(measured, abs=1e-6)
    epochs, rewards = zip(*facts["history"], strict=True)
    assert epochs == (1, 2, 3)
    assert facts["validation_reward"] == max(rewards)
    assert facts["best_epoch"] == 1 + rewards.index(max(rewards))
    assert facts["judged_on"] == "validation"


def test_training_queries_can_be_learned_by_heart(task: RetrievalTask) -> None:
    writer: Any = Recorder()
    given: Any = {"task": task, "observation": ("content",), "writer": writer}
    plain = SupervisedSettings(epochs=60, batch_size=4, ranking_weight=0.0)
    rewards = RewardSpec().of(task.table("train"))
    _, facts = train_supervised(**given, settings=plain)
    expected = np.bincount(rewards.argmax(1), minlength=DEPTHS)
    assert facts["label_histogram"] == expected.tolist()
    seen = [value for _, value in writer.scalars["train/cross_entropy"]]
    assert seen[0] > 0.5
    assert seen[-1] < 0.05
    every = FullInformationSettings(epochs=60, batch_size=4, ent_coef=0.0)
    train_full_information(**given, settings=every)
    best = rewards.max(1).mean()
    assert writer.scalars["train/expected_reward"][-1][1] == pytest.approx(best, abs=0.003)


def test_a_stopped_fit_goes_on_after_its_last_epoch(
    task: RetrievalTask, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole, stopped, resumed = Recorder(), Recorder(3 * len(task.table("train"))), Recorder()
    fit: Any = {"task": task, "checkpoint": tmp_path / "fit"}
    _, expected = train_supervised(task, settings=FAST, writer=whole)
    with pytest.raises(KeyboardInterrupt):
        train_supervised(**fit, settings=FAST, writer=stopped)
    with caplog.at_level(logging.INFO):
        _, facts = train_supervised(**fit, settings=FAST, writer=resumed)
        # Of other settings it is another fit.
        train_supervised(**fit, settings=replace(FAST, learning_rate=1e-2))
    assert caplog.text.count("going on after epoch") == caplog.text.count("after epoch 2") == 1
    assert (facts, resumed.scalars) == (expected, whole.scalars)
    other = Recorder()
    train_supervised(task, settings=FAST, writer=other, seed=1)
    assert other.scalars != whole.scalars


def test_a_loss_that_is_not_finite_stops_the_training(task: RetrievalTask) -> None:
    # Every step multiplies the weights by 1 - 10 * 1e6: a few of them leave float32.
    settings = SupervisedSettings(epochs=5, batch_size=4, learning_rate=10, weight_decay=1e6)
    with pytest.raises(FloatingPointError, match="of fitting supervised-oracle; lower"):
        train_supervised(task, settings=settings)


def test_full_information_loss_by_hand() -> None:
    reward = torch.tensor([[1.0, 3.0], [10.0, 12.0]])
    assert standardised(reward).tolist() == [[-1.0, 1.0], [-1.0, 1.0]]
    assert standardised(torch.ones(2, 3)).tolist() == [[0.0] * 3] * 2
    logits = torch.tensor([[0.0, math.log(3.0)]])
    reward, advantage = torch.tensor([[0.2, 0.6]]), torch.tensor([[-1.0, 1.0]])
    terms = full_information_terms(logits, reward, advantage, 0.5)
    # Policy (1/4, 3/4): advantage 0.5, reward 0.5, entropy log 4 - 0.75 log 3 = 0.5623351.
    assert terms["expected_reward"].item() == pytest.approx(0.5)
    assert terms["entropy"].item() == pytest.approx(0.5623351)
    assert terms["loss"].item() == pytest.approx(-0.5 - 0.5 * 0.5623351)


@pytest.mark.parametrize(("balance", "tolerance"), [(1.0, 1e-3), (0.0, 0.01)])
def test_groups_of_queries_may_be_shown_alike(balance: float, tolerance: float) -> None:
    """A policy that hardly moves gets the mean reward of the queries that it is shown."""
    table = replace(TABLE, groups=("large", "large", "small"))
    task: Any = SimpleNamespace(
        table=lambda split: table,
        collection=SimpleNamespace(name="fruit", splits={"validation": SimpleNamespace(ids=())}),
        embedder=SimpleNamespace(fingerprint=lambda: ""),
        device="cpu",
    )
    told = FullInformationSettings(epochs=200, learning_rate=1e-9)
    writer: Any = Recorder()
    _, facts = train_full_information(task, settings=told, balance=balance, writer=writer)
    assert facts["judged_on"] == "train"
    shown = np.mean([value for _, value in writer.scalars["train/expected_reward"]])
    means = np.mean(REWARD, axis=1)
    expected = means.mean() if balance else (means[0] + means[1]) / 4 + means[2] / 2
    assert shown == pytest.approx(expected, abs=tolerance)
    table = TABLE
    if balance != 1:
        with pytest.raises(InputError, match=r"balance 0\.0 needs queries in groups"):
            train_full_information(task, settings=told, balance=balance)
