"""Queries that are documents, as those of ArguAna and Quora: not ranked against themselves."""

import numpy as np
import pytest
import torch
from tiny_collection import write_beir

from maw_gym.agents.baseline_encoders import evaluate_bm25
from maw_gym.corpora import load_collection
from maw_gym.encoders.embedder import untrained_embedder
from maw_gym.encoders.maw import EncoderSettings
from maw_gym.tables.task import RetrievalTask

CLAIMS = [
    "bees make honey in the hive", "the moon pulls the tides", "bread rises with soda",
    "a flat tyre is patched", "leaves turn red in autumn", "jupiter is the largest planet",
]  # fmt: skip


@pytest.fixture
def claims(home, tmp_path):
    """Every claim is a query and, behind a title, a document; its answer is relevant to it."""
    queries = {f"a{row}": claim for row, claim in enumerate(CLAIMS)} | {"a6": "printed books"}
    documents = [(f"a{row}", f"Claim {claim}") for row, claim in enumerate(CLAIMS)]
    documents += [(f"b{row}", f"{claim} but not so") for row, claim in enumerate(CLAIMS)]
    # The id of a query with another text, which is the answer.
    documents.append(("a6", "gutenberg had books printed"))
    judgments = [*((f"a{row}", f"b{row}", 1) for row in range(6)), ("a6", "a6", 1)]
    folder = write_beir(tmp_path / "claims", documents, queries.items(), {"test": judgments})
    collection = load_collection(str(folder))
    embedder = untrained_embedder(collection.doc_texts, EncoderSettings(depths=3))
    return RetrievalTask(collection, embedder, "cpu")


@pytest.mark.parametrize(
    "evaluate",
    [
        lambda task: task.evaluate("test"),
        lambda task: task.evaluate("test", torch.tensor([0, 1, 2, 0, 1, 2, 0])),
        lambda task: task.evaluate_hybrid("test"),
        lambda task: task.evaluate_hybrid("test", fusion="ranks"),
        lambda task: evaluate_bm25(task, "test"),
    ],
)
def test_measures_are_those_without_the_query(claims, evaluate):
    queries = claims.collection.splits["test"]
    assert claims.index.own_documents(queries).tolist() == [0, 1, 2, 3, 4, 5, -1]
    evaluation, ranking = evaluate(claims)
    assert (evaluation.mean["nDCG@10"], evaluation.mean["RR@10"]) == (1, 1)
    assert all(row not in ranking.documents[row] for row in range(6))
    assert ranking.documents[6, 0] == 12


@pytest.mark.parametrize("small", [True, False])
def test_the_reward_is_that_without_the_query(claims, small, monkeypatch):
    if not small:
        monkeypatch.setattr("maw_gym.corpora.collection.SMALL", 5)
        lists = claims.candidates("test")
        assert all(row not in listed for row, listed in enumerate(lists[:6]))
    table = claims.table("test")
    np.testing.assert_array_equal(table.ndcg, np.ones((7, 3)))
    # The highest cosine of a text with itself would be 1.
    highest = table.observation("retrieval").reshape(7, 11, 3)[:6, 0]
    assert (highest < 0.999).all()
