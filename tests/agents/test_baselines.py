"""What routers have to beat: static choices of depth, and encoders and rankers without any."""

import math
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hand_made import TABLE

from maw_gym.agents.baseline_encoders import (
    baseline_encoder,
    ensemble_queries,
    evaluate_bm25,
    evaluate_encoder,
    training_sources,
)
from maw_gym.agents.baselines import STATIC, fixed_router, static_router
from maw_gym.corpora import Collection
from maw_gym.encoders.embedder import untrained_embedder
from maw_gym.encoders.maw import EncoderSettings, NonMAWEncoder
from maw_gym.encoders.text import padded
from maw_gym.encoders.training.settings import TrainingSettings
from maw_gym.envs.bandit import RewardSpec
from maw_gym.errors import InputError
from maw_gym.routers.depth_router import DepthRouter
from maw_gym.tables.task import RetrievalTask

BRIEF = TrainingSettings(epochs=2, depth_epochs=1, batch_size=4)


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


def test_mean_pooling_is_the_mean_of_the_token_embeddings(task: RetrievalTask) -> None:
    embedder, _ = baseline_encoder("mean_pooling", task.collection)
    found = embedder.encode_documents(task.collection.doc_texts)
    ids, mask = padded(task.embedder.document_ids(task.collection.doc_texts))
    hidden = task.embedder.text.hidden(ids)
    for row in range(len(hidden)):
        mean = hidden[row][mask[row]].mean(0)
        torch.testing.assert_close(found[row], mean / mean.norm(), atol=1e-5, rtol=0)


def test_zero_shot_is_the_standard_path_of_the_untrained_maw_encoder(task: RetrievalTask) -> None:
    embedder, about = baseline_encoder("zero_shot", task.collection)
    assert type(embedder.encoder) is NonMAWEncoder
    texts = task.collection.doc_texts
    expected = task.embedder.encode_documents(texts)
    torch.testing.assert_close(embedder.encode_documents(texts), expected)
    assert about == {"baseline": "zero_shot"}


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The learning rate of each step of AdamW."""
    rates: list[float] = []
    original = torch.optim.AdamW.step

    def step(self: Any, *arguments: Any, **named: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return original(self, *arguments, **named)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    return rates


@pytest.mark.parametrize("name", ["non_maw", "single_depth"])
@pytest.mark.usefixtures("home")
def test_trained_baselines_take_the_steps_of_both_stages(
    tiny: Collection, steps: list[float], name: str
) -> None:
    embedder, about = baseline_encoder(name, tiny, [tiny], "cpu", BRIEF)
    pairs = len(tiny.splits["encoder"].ids)
    expected = 3 * math.ceil(pairs / 4)
    assert len(steps) == expected
    assert (about["baseline"], about["pairs"], about["names"]) == (name, pairs, [tiny.name])
    assert embedder.encoder.settings.depths == (1 if name == "single_depth" else 0)
    if name == "non_maw":  # its second stage warms up and cools down again
        assert about["steps"] == expected
        assert steps[expected * 2 // 3 - 1] < steps[expected * 2 // 3]
        after, before = (about[stage]["validation nDCG@10"] for stage in ("continued", "attention"))
        assert after >= before
    # The second time it is read, and the same.
    again, told = baseline_encoder(name, tiny, [tiny], "cpu", BRIEF)
    assert (len(steps), told, type(again.encoder)) == (expected, about, type(embedder.encoder))
    assert again.fingerprint() == embedder.fingerprint()
    # Other settings are another encoder.
    baseline_encoder(name, tiny, [tiny], "cpu", replace(BRIEF, seed=1))
    assert len(steps) == 2 * expected
    # It is evaluated through its depth, if it has one.
    queries = tiny.splits["test"]
    depths = torch.zeros(len(queries.ids), dtype=torch.long) if name == "single_depth" else None
    _, ranking = evaluate_encoder(again, tiny, "test")
    documents = again.encode_documents(tiny.doc_texts)
    best = (again.encode_queries(queries.texts, depths) @ documents.T).amax(1)
    torch.testing.assert_close(ranking.scores[:, 0], best, atol=1e-5, rtol=0)


def test_unknown_encoder_and_missing_pairs(tiny: Collection) -> None:
    with pytest.raises(InputError, match="unknown encoder 'bert'"):
        baseline_encoder("bert", tiny)
    with pytest.raises(InputError, match="'non_maw' needs a collection with an `encoder` split"):
        baseline_encoder("non_maw", tiny, [])


def test_training_sources(tiny: Collection, task: RetrievalTask) -> None:
    assert training_sources(task) == [tiny]
    told = {"chosen": "own pairs", "training": {"names": [tiny.name]}}
    trained = RetrievalTask(tiny, task.embedder, "cpu", told)
    assert training_sources(trained) == [tiny]


def test_bm25_is_evaluated_in_its_own_order(tiny: Collection, task: RetrievalTask) -> None:
    queries = tiny.splits["test"]
    evaluation, ranking = evaluate_bm25(task, "test")
    # "polar ice melting" shares no word with its document, "wearing glasses" neither.
    assert (ranking.documents[queries.texts.index("polar ice melting")] == -1).all()
    for row, documents in enumerate(ranking.documents.tolist()):
        hit = documents[0] >= 0 and queries.relevance[row].get(tiny.doc_ids[documents[0]], 0) > 0
        assert (evaluation.per_query["RR@10"][row] == 1.0) == hit


def test_the_ensemble_is_the_mean_of_all_depths(tiny: Collection) -> None:
    embedder = untrained_embedder(tiny.doc_texts, EncoderSettings(depths=3))
    with torch.no_grad():
        embedder.maw.value_proj.weight.mul_(-20)  # so that attention matters
    texts = ["how bees make honey", "", "bread", "the largest planet of all"]
    found = ensemble_queries(embedder, texts)
    each = [embedder.encode_queries(texts, torch.full((4,), depth)) for depth in range(3)]
    assert not torch.allclose(each[0], each[2], atol=1e-2)
    expected = torch.nn.functional.normalize(torch.stack(each).mean(0), dim=1)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    plain = untrained_embedder(tiny.doc_texts, EncoderSettings(depths=0))
    with pytest.raises(InputError, match="NON-MAW"):
        ensemble_queries(plain, ["bread"])
