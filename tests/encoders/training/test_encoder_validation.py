import pytest
import torch

from maw_gym.corpora.collection import NO_QUERIES, QuerySet
from maw_gym.encoders.embedder import untrained_embedder
from maw_gym.encoders.maw import EncoderSettings
from maw_gym.encoders.training import stages as encoder_validation
from maw_gym.encoders.training.stages import Validation
from maw_gym.tables.task import RetrievalTask


@pytest.fixture(scope="module")
def embedder(tiny):
    return untrained_embedder(tiny.doc_texts, EncoderSettings(depths=2))


def test_the_score_is_the_mean_of_the_evaluation(tiny, embedder):
    evaluation, _ = RetrievalTask(tiny, embedder).evaluate("validation")
    score = Validation(tiny, embedder, 256).score(embedder)
    assert score == pytest.approx(evaluation.mean["nDCG@10"], abs=1e-6)
    assert 0.5 < score < 1


def test_queries_through_one_depth_each(tiny):
    routed = untrained_embedder(tiny.doc_texts, EncoderSettings(depths=2))
    with torch.no_grad():
        routed.maw.value_proj.weight.mul_(-20)  # so that attention matters
    evaluate = RetrievalTask(tiny, routed).evaluate
    scores = set()
    for depths in (torch.tensor([1, 1, 0, 0, 1]), torch.tensor([0, 0, 1, 1, 0])):
        evaluation, _ = evaluate("validation", depths)
        score = Validation(tiny, routed, 256).score(routed, depths)
        assert score == pytest.approx(evaluation.mean["nDCG@10"], abs=1e-6)
        scores.add(round(score, 3))
    assert len(scores) == 2


def test_documents_that_were_embedded_before(tiny, embedder, monkeypatch):
    monkeypatch.setattr(encoder_validation, "DOCUMENTS_CHECKED", 8)
    validation = Validation(tiny, embedder, 256)
    everything = embedder.encode_documents(tiny.doc_texts)
    index = validation.index(everything)
    assert index.doc_ids == ("d0", "d1", "d2", "d12", "d13", "d14", "d15", "d16")
    assert validation.score(embedder, index=index) == validation.score(embedder)
    # The other way round every query finds its document last of the eight, beyond none of ten.
    worst = validation.score(embedder, index=validation.index(-everything))
    assert worst < 0.5 < validation.score(embedder)


def test_of_a_large_collection_the_relevant_documents_and_some_others_are_ranked(
    tiny, embedder, monkeypatch
):
    monkeypatch.setattr(encoder_validation, "DOCUMENTS_CHECKED", 8)
    validation = Validation(tiny, embedder, 256)
    # The validation queries q12 to q16 need d12 to d16; the first others are d0, d1 and d2.
    assert validation.doc_ids == ["d0", "d1", "d2", "d12", "d13", "d14", "d15", "d16"]
    monkeypatch.setattr(encoder_validation, "DOCUMENTS_CHECKED", 3)
    assert Validation(tiny, embedder, 256).doc_ids == ["d12", "d13", "d14", "d15", "d16"]


def test_documents_are_cut(tiny, embedder):
    assert max(map(len, Validation(tiny, embedder, 7).documents)) == 7


def test_no_validation_query(tiny, embedder):
    empty = tiny._replace(splits={**tiny.splits, "validation": NO_QUERIES})
    assert Validation(empty, embedder, 256).score(embedder) == 0.0


def test_queries_that_are_their_documents(tiny, embedder):
    queries = QuerySet(("a", "b"), tiny.doc_texts[3:5], ({"d3": 1}, {"d4": 2, "d5": 0}))
    judged = tiny._replace(splits={**tiny.splits, "validation": queries})
    assert Validation(judged, embedder, 256).score(embedder) == 1.0
