import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from maw_gym.agents.baseline_encoders import (
    baseline_encoder,
    ensemble_queries,
    evaluate_bm25,
    evaluate_encoder,
    training_sources,
)
from maw_gym.corpora import Collection
from maw_gym.encoders.embedder import untrained_embedder
from maw_gym.encoders.maw import EncoderSettings, MAWEncoder, NonMAWEncoder
from maw_gym.encoders.text import padded
from maw_gym.encoders.training.settings import TrainingSettings
from maw_gym.encoders.training.stages import train_attention
from maw_gym.errors import InputError
from maw_gym.tables.task import RetrievalTask

DEPTHS = 4
SHAPE = EncoderSettings(depths=DEPTHS)
BRIEF = TrainingSettings(epochs=2, depth_epochs=1, batch_size=4)


def texts_of(task: RetrievalTask) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    ids, mask = padded(task.embedder.document_ids(task.collection.doc_texts))
    return ids, task.embedder.text.hidden(ids), mask


def test_mean_pooling_is_the_mean_of_the_token_embeddings(task: RetrievalTask) -> None:
    embedder, _ = baseline_encoder("mean_pooling", task.collection, shape=SHAPE)
    found = embedder.encode_documents(task.collection.doc_texts)
    _, hidden, mask = texts_of(task)
    for row in range(len(hidden)):
        mean = hidden[row][mask[row]].mean(0)
        torch.testing.assert_close(found[row], mean / mean.norm(), atol=1e-5, rtol=0)


def test_zero_shot_is_the_standard_path_of_the_untrained_maw_encoder(task: RetrievalTask) -> None:
    embedder, about = baseline_encoder("zero_shot", task.collection, shape=SHAPE)
    assert type(embedder.encoder) is NonMAWEncoder
    texts = task.collection.doc_texts
    torch.testing.assert_close(
        embedder.encode_documents(texts), task.embedder.encode_documents(texts)
    )
    assert about == {"baseline": "zero_shot"}


def count_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    steps: list[int] = []
    original = torch.optim.AdamW.step

    def step(self: Any, *arguments: Any, **named: Any) -> Any:
        steps.append(1)
        return original(self, *arguments, **named)

    monkeypatch.setattr(torch.optim.AdamW, "step", step)
    return steps


@pytest.mark.parametrize("name", ["non_maw", "single_depth"])
def test_trained_baselines_take_the_steps_of_both_stages(
    tiny: Collection, monkeypatch: pytest.MonkeyPatch, tmp_path: Any, name: str
) -> None:
    monkeypatch.setenv("MAW_GYM_HOME", str(tmp_path))
    steps = count_steps(monkeypatch)
    embedder, about = baseline_encoder(name, tiny, [tiny], "cpu", BRIEF, SHAPE)
    pairs = len(tiny.splits["encoder"].ids)
    assert pairs > 4
    assert len(steps) == 3 * math.ceil(pairs / 4)
    assert about["baseline"] == name
    assert about["pairs"] == pairs
    assert about["names"] == [tiny.name]
    depths = 1 if name == "single_depth" else 0
    assert embedder.encoder.settings.depths == depths
    # The second time it is read, and the same.
    again, told = baseline_encoder(name, tiny, [tiny], "cpu", BRIEF, SHAPE)
    assert len(steps) == 3 * math.ceil(pairs / 4)
    assert told == about
    assert type(again.encoder) is type(embedder.encoder)
    for key, value in embedder.tensors().items():
        assert torch.equal(again.tensors()[key], value), key
    evaluation, ranking = evaluate_encoder(again, tiny, "test")
    queries = len(tiny.splits["test"].ids)
    assert len(evaluation.per_query["nDCG@10"]) == queries
    assert ranking.documents.shape == (queries, len(tiny.doc_ids))
    # Other settings are another encoder.
    baseline_encoder(name, tiny, [tiny], "cpu", replace(BRIEF, seed=1), SHAPE)
    assert len(steps) == 6 * math.ceil(pairs / 4)


def test_the_second_stage_goes_on_for_as_many_epochs_as_the_depths_have(
    tiny: Collection, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[TrainingSettings] = []

    def watched(embedder: Any, pairs: Any, validation: Any, settings: Any, *rest: Any) -> Any:
        seen.append(settings)
        return train_attention(embedder, pairs, validation, settings, *rest)

    monkeypatch.setattr("maw_gym.encoders.training.selection.train_attention", watched)
    _, about = baseline_encoder("non_maw", tiny, [tiny], "cpu", BRIEF, SHAPE)
    assert [(s.epochs, s.learning_rate, s.seed) for s in seen] == [(2, 2e-3, 0), (1, 2e-3, 1)]
    assert about["steps"] == 3 * math.ceil(about["pairs"] / 4)
    assert about["continued"]["validation nDCG@10"] >= about["attention"]["validation nDCG@10"]


def test_single_depth_is_evaluated_through_its_depth(tiny: Collection) -> None:
    embedder, _ = baseline_encoder("single_depth", tiny, [tiny], "cpu", BRIEF, SHAPE)
    queries = tiny.splits["test"]
    assert isinstance(embedder.encoder, MAWEncoder)
    _, ranking = evaluate_encoder(embedder, tiny, "test")
    depths = torch.zeros(len(queries.ids), dtype=torch.long)
    documents = embedder.encode_documents(tiny.doc_texts)
    best = (embedder.encode_queries(queries.texts, depths) @ documents.T).amax(1)
    torch.testing.assert_close(ranking.scores[:, 0], best, atol=1e-5, rtol=0)


def test_encoders_with_depths_need_a_router(task: RetrievalTask) -> None:
    with pytest.raises(InputError, match="an encoder of 4 depths needs a router"):
        evaluate_encoder(task.embedder, task.collection, "test")


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
    evaluation, ranking = evaluate_bm25(task, "test", k=5)
    assert ranking.documents.shape == ranking.scores.shape == (len(queries.ids), 5)
    # "polar ice melting" shares no word with its document, "wearing glasses" neither.
    assert (ranking.documents[queries.texts.index("polar ice melting")] == -1).all()
    for row, documents in enumerate(ranking.documents.tolist()):
        hit = documents[0] >= 0 and queries.relevance[row].get(tiny.doc_ids[documents[0]], 0) > 0
        assert (evaluation.per_query["RR@10"][row] == 1.0) == hit
    assert evaluation.mean["nDCG@10"] > 0


def test_the_ensemble_is_the_mean_of_all_depths(tiny: Collection) -> None:
    embedder = untrained_embedder(tiny.doc_texts, EncoderSettings(depths=3))
    with torch.no_grad():
        embedder.maw.value_proj.weight.mul_(-20)  # so that attention matters
    texts = ["how bees make honey", "", "bread", "the largest planet of all"]
    found = ensemble_queries(embedder, texts)
    each = [embedder.encode_queries(texts, torch.full((4,), depth)) for depth in range(3)]
    assert not torch.allclose(each[0], each[2], atol=1e-2)
    mean = torch.stack(each).mean(0)
    for row, length in ((0, 1.0), (1, 0.0), (2, 1.0), (3, 1.0)):
        assert found[row].norm().item() == pytest.approx(length, abs=1e-6)
        expected = mean[row] / mean[row].norm().clamp(min=1e-9)
        torch.testing.assert_close(found[row], expected, atol=1e-5, rtol=0)


def test_the_ensemble_needs_depths(tiny: Collection) -> None:
    plain = untrained_embedder(tiny.doc_texts, EncoderSettings(depths=0))
    with pytest.raises(InputError, match="NON-MAW"):
        ensemble_queries(plain, ["bread"])
