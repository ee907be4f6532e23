import dataclasses
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from agents.fitting import Judge
from agents.networks import new_router
from agents.supervised import (
    SupervisedClassificationRouter,
    SupervisedSettings,
    label_facts,
    relevant_counts,
    rule_labels,
    train_supervised,
)
from maw_gym.corpora import QuerySet
from maw_gym.encoders.text import padded
from maw_gym.envs.bandit import RewardSpec
from maw_gym.errors import InputError
from maw_gym.routers.depth_router import DepthRouter, load_router, save_router
from maw_gym.tables.task import RetrievalTask

DEPTHS = 4


def test_rule_labels_of_the_source_text() -> None:
    assert rule_labels([0, 1, 2, 3, 9, 10, 500], 32).tolist() == [5, 5, 5, 15, 15, 25, 25]


@pytest.mark.parametrize(
    ("depths", "expected"),
    [(1, [0, 0, 0]), (4, [0, 1, 3]), (8, [1, 3, 6]), (16, [2, 7, 12]), (64, [10, 30, 50])],
)
def test_rule_labels_scale_with_the_number_of_depths(depths: int, expected: list[int]) -> None:
    assert rule_labels([2, 3, 10], depths).tolist() == expected


def test_relevant_counts_leave_grade_0_out() -> None:
    queries = QuerySet(("a", "b"), ("x", "y"), ({"d1": 1, "d2": 0, "d3": 2}, {"d1": 1}))
    assert relevant_counts(queries).tolist() == [2, 1]


def test_label_facts_tell_a_constant() -> None:
    assert label_facts(np.array([1, 1, 3, 1]), 4) == {
        "label_histogram": [0, 3, 0, 1],
        "label_most_common": 1,
        "label_share_of_most_common": 0.75,
        "label_constant": False,
    }
    assert label_facts(np.array([2, 2]), 3)["label_constant"] is True


def test_temperature_is_annealed_geometrically() -> None:
    told = SupervisedSettings(temperature_start=2.0, temperature_end=0.5)
    assert [told.temperature(x) for x in (0.0, 0.5, 1.0)] == pytest.approx([2.0, 1.0, 0.5])


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
    found = router.attention_logits(weights, mask)
    assert expected.std() > 0
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    depths = router(weights, mask)
    assert depths.tolist() == expected.argmax(-1).tolist()
    assert router.predict(np.array(table.block("attention")))[0].tolist() == depths.tolist()
    # Without padding no mask is needed.
    length = int(mask[0].sum())
    alone = router.attention_logits(weights[:1, :, :length, :length])
    torch.testing.assert_close(alone, expected[:1], atol=1e-5, rtol=0)


def test_forward_needs_the_attention_block(task: RetrievalTask) -> None:
    classifier = DepthRouter(
        [(torch.zeros(2, 3), torch.zeros(2))],
        "relu",
        torch.zeros(3),
        torch.ones(3),
        ("content",),
        {},
    )
    with pytest.raises(InputError, match="observes content, which 5D attention does not give"):
        SupervisedClassificationRouter(classifier)(torch.zeros(1, 8, 2, 2, 4))


FAST = SupervisedSettings(epochs=3, batch_size=4, negatives=8)


class Recorder:
    """Stands for a SummaryWriter."""

    def __init__(self) -> None:
        self.scalars: dict[str, list[tuple[int, float]]] = {}

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.scalars.setdefault(tag, []).append((step, value))


def test_rule_labels_of_one_relevant_document_teach_a_constant(
    task: RetrievalTask, tmp_path: Any
) -> None:
    writer: Any = Recorder()
    router, facts = train_supervised(
        task, settings=replace(FAST, labels="rule"), seed=3, writer=writer
    )
    count = len(task.table("train"))
    assert facts["labels"] == "rule"
    assert facts["label_histogram"] == [count, 0, 0, 0]
    assert facts["label_share_of_most_common"] == 1.0
    assert facts["label_constant"] is True
    assert facts["judged_on"] == "validation"
    assert [epoch for epoch, _ in facts["history"]] == [1, 2, 3]
    assert facts["validation_reward"] == max(reward for _, reward in facts["history"])
    assert facts["history"][facts["best_epoch"] - 1][1] == facts["validation_reward"]
    assert set(writer.scalars) == {
        "train/loss",
        "train/cross_entropy",
        "train/ranking_loss",
        "train/temperature",
        "eval/reward",
    }
    assert [step for step, _ in writer.scalars["train/loss"]] == [count, 2 * count, 3 * count]
    temperatures = [value for _, value in writer.scalars["train/temperature"]]
    assert temperatures == sorted(temperatures, reverse=True)
    assert router.settings["learner"] == "supervised-rule"
    assert router.settings["encoder"] == task.embedder.fingerprint()
    save_router(tmp_path / "router.safetensors", router)
    given = task.table("test").observation(("attention",))
    again = load_router(tmp_path / "router.safetensors")
    assert again.predict(given)[0].tolist() == router.predict(given)[0].tolist()


def test_validation_reward_is_that_of_the_router_returned(task: RetrievalTask) -> None:
    router, facts = train_supervised(task, settings=FAST, observation=("content", "profile"))
    table = task.table("validation")
    depths, _ = router.predict(table.observation(("content", "profile")))
    reward = RewardSpec().of(table)[np.arange(len(table)), depths]
    assert facts["validation_reward"] == pytest.approx(float(reward.mean()), abs=1e-6)


def test_oracle_labels_can_be_learned_by_heart(task: RetrievalTask) -> None:
    settings = SupervisedSettings(epochs=60, batch_size=4, ranking_weight=0.0)
    seen: list[float] = []

    class Accuracy(Recorder):
        def add_scalar(self, tag: str, value: float, step: int) -> None:
            if tag == "train/cross_entropy":
                seen.append(value)

    writer: Any = Accuracy()
    _, facts = train_supervised(task, observation=("content",), settings=settings, writer=writer)
    reward = RewardSpec().of(task.table("train"))
    expected = np.bincount(reward.argmax(1), minlength=DEPTHS)
    assert facts["label_histogram"] == expected.tolist()
    assert seen[0] > 0.5
    assert seen[-1] < 0.05


def test_a_seed_repeats_the_training(task: RetrievalTask) -> None:
    runs = [train_supervised(task, settings=FAST, seed=seed) for seed in (5, 5, 6)]
    weights = [router.linears[0].weight for router, _ in runs]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert runs[0][1] == runs[1][1]


def test_a_stopped_fit_goes_on_after_its_last_epoch(
    task: RetrievalTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole: Any = Recorder()
    expected = train_supervised(task, settings=FAST, writer=whole)
    judged: list[int] = []
    original = Judge.__call__

    def judge(self: Judge, router: Any) -> float:
        judged.append(1)
        if len(judged) == 3:
            raise KeyboardInterrupt
        return original(self, router)

    monkeypatch.setattr(Judge, "__call__", judge)
    with pytest.raises(KeyboardInterrupt):
        train_supervised(task, settings=FAST, checkpoint=tmp_path / "fit")
    resumed: Any = Recorder()
    router, facts = train_supervised(
        task, settings=FAST, writer=resumed, checkpoint=tmp_path / "fit"
    )
    assert len(judged) == 4  # epochs 1, 2 and 3, and 3 again
    assert facts == expected[1]
    assert resumed.scalars == whole.scalars
    weights = router.state_dict()
    for name, value in expected[0].state_dict().items():
        assert torch.equal(weights[name], value), name
    # Of other settings it is another fit.
    other = dataclasses.replace(FAST, learning_rate=1e-2)
    train_supervised(task, settings=other, checkpoint=tmp_path / "fit")
    assert len(judged) == 4 + 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"learning_rate": 0.0}, "learning_rate must be above 0, got 0.0"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0, got -1.0"),
        ({"ranking_weight": math.nan}, "ranking_weight must be a finite number, got nan"),
        ({"temperature_end": 0.0}, "temperature_end must be above 0, got 0.0"),
        ({"negatives": 0}, "negatives must be at least 1, got 0"),
        ({"labels": "guess"}, "labels must be 'rule' or 'oracle', got 'guess'"),
    ],
)
def test_settings_out_of_range(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SupervisedSettings(**change)


def test_a_loss_that_is_not_finite_stops_the_training(task: RetrievalTask) -> None:
    # Every step multiplies the weights by 1 - 10 * 1e6: a few of them leave float32.
    settings = SupervisedSettings(epochs=5, batch_size=4, learning_rate=10, weight_decay=1e6)
    with pytest.raises(FloatingPointError, match="fitting the supervised router"):
        train_supervised(task, settings=settings)


@pytest.mark.parametrize(("network", "shared"), [("auto", True), ("mlp", False)])
def test_the_network_is_the_one_asked_for(task: RetrievalTask, network: str, shared: bool) -> None:
    router, _ = train_supervised(task, settings=FAST, observation=("profile",), network=network)
    assert router.shared is shared
    assert isinstance(router.network[1], nn.ReLU)
    assert not any(weight.requires_grad for weight in router.parameters())
