"""Queries that are documents, as those of ArguAna and Quora: not ranked against themselves."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from maw_gym.agents.baseline_encoders import evaluate_bm25
from maw_gym.corpora import load_collection
from maw_gym.corpora.collection import OWN
from maw_gym.encoders.embedder import untrained_embedder
from maw_gym.encoders.maw import EncoderSettings
from maw_gym.retrieval.bm25 import candidate_documents, with_relevant
from maw_gym.tables.task import RetrievalTask

CLAIMS = [
    "bees make honey in the hive", "the moon pulls the tides", "bread rises with soda",
    "a flat tyre is patched", "leaves turn red in autumn", "jupiter is the largest planet",
]  # fmt: skip


@pytest.fixture
def claims(home: Path, tmp_path: Path) -> RetrievalTask:
    """Every claim is a query and a document with a title; its answer is relevant to it."""
    (tmp_path / "qrels").mkdir()
    queries = {f"a{row}": claim for row, claim in enumerate(CLAIMS)} | {"a6": "printed books"}
    documents = [{"_id": f"a{row}", "title": "Claim", "text": c} for row, c in enumerate(CLAIMS)]
    documents += [{"_id": f"b{row}", "text": f"{c} but not so"} for row, c in enumerate(CLAIMS)]
    # The id of a query with another text, which is the answer.
    documents.append({"_id": "a6", "title": "", "text": "gutenberg had books printed"})
    judged = {f"a{row}": f"b{row}" for row in range(6)} | {"a6": "a6"}
    for name, rows in (
        ("corpus", documents),
        ("queries", [{"_id": name, "text": text} for name, text in queries.items()]),
    ):
        (tmp_path / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    lines = "".join(f"{query}\t{document}\t1\n" for query, document in judged.items())
    (tmp_path / "qrels" / "test.tsv").write_text(f"query-id\tcorpus-id\tscore\n{lines}")
    collection = load_collection(str(tmp_path))
    embedder = untrained_embedder(collection.doc_texts, EncoderSettings(depths=3))
    return RetrievalTask(collection, embedder, "cpu")


def test_the_queries_own_documents_are_known(claims: RetrievalTask) -> None:
    queries = claims.collection.splits["test"]
    own = [[name for name, grade in grades.items() if grade == OWN] for grades in queries.relevance]
    assert own == [[f"a{row}"] for row in range(6)] + [[]]
    assert claims.index.own_documents(queries).tolist() == [0, 1, 2, 3, 4, 5, -1]


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
def test_measures_are_those_without_the_query(
    claims: RetrievalTask, evaluate: Callable[[RetrievalTask], tuple]
) -> None:
    evaluation, ranking = evaluate(claims)
    assert evaluation.mean["nDCG@10"] == 1
    assert evaluation.mean["RR@10"] == 1
    for row in range(6):
        assert row not in ranking.documents[row]
    assert ranking.documents[6, 0] == 12


@pytest.mark.parametrize("small", [True, False])
def test_the_reward_is_that_without_the_query(
    claims: RetrievalTask, small: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not small:
        monkeypatch.setattr("maw_gym.corpora.collection.SMALL", 5)
        lists = candidate_documents(claims.collection, "test", claims.bm25)
        joined = with_relevant(lists, claims.collection, "test")
        assert all(row not in listed for row, listed in enumerate(joined[:6]))
    table = claims.table("test")
    np.testing.assert_array_equal(table.ndcg, np.ones((7, 3)))
    # The highest cosine of a text with itself would be 1.
    highest = table.observation(("retrieval",)).reshape(7, 11, 3)[:6, 0]
    assert (highest < 0.999).all()
