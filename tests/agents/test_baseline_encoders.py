import math
from dataclasses import replace
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
from maw_gym.encoders.maw import EncoderSettings, NonMAWEncoder
from maw_gym.encoders.text import padded
from maw_gym.encoders.training.settings import TrainingSettings
from maw_gym.errors import InputError
from maw_gym.tables.task import RetrievalTask

BRIEF = TrainingSettings(epochs=2, depth_epochs=1, batch_size=4)


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
