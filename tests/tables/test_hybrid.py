import pytest
import torch

from maw_gym.encoders.embedder import untrained_embedder
from maw_gym.encoders.maw import EncoderSettings
from maw_gym.errors import InputError
from maw_gym.tables.task import RetrievalTask


def test_the_weight_leads_from_bm25_to_the_encoder_and_is_chosen_on_validation_queries(task):
    task = RetrievalTask(task.collection, task.embedder)
    weight, quality = task.hybrid_weight, {}
    for value in (weight, 0.0, 1.0):
        task.hybrid_weight = value
        quality[value] = task.evaluate_hybrid("validation")[0].mean["nDCG@10"]
    assert quality[weight] == max(quality.values())
    for depths in (None, torch.full((7,), 3)):
        alone, _ = task.evaluate("test", depths)
        assert task.evaluate_hybrid("test", depths)[0].mean == alone.mean
    task.hybrid_weight = 0.0
    bm25 = task.bm25.rank(task.collection.splits["test"].texts, 3).documents
    fused = task.evaluate_hybrid("test")[1].documents[:, :3]
    assert bm25[bm25 >= 0].tolist() == fused[bm25 >= 0].tolist()
    with pytest.raises(InputError, match="unknown fusion 'product'; choose one of sum, ranks"):
        task.evaluate_hybrid("test", fusion="product")


def test_a_large_collection_is_fused_over_its_candidates(tiny, monkeypatch):
    monkeypatch.setattr("maw_gym.corpora.collection.SMALL", 5)
    task = RetrievalTask(tiny, untrained_embedder((), EncoderSettings(depths=0)))
    _, ranking = task.evaluate_hybrid("test")
    for documents, given in zip(ranking.documents.tolist(), task.candidates("test"), strict=True):
        assert sorted(d for d in documents if d >= 0) == sorted(given.tolist())
