import numpy as np
import pytest

from maw_gym.corpora.records import Collection, QuerySet
from maw_gym.retrieval import candidates
from maw_gym.retrieval.candidates import bm25_rankings, candidate_documents


def queries(*texts):
    ids = tuple(f"q{i}" for i in range(len(texts)))
    return QuerySet(ids, texts, tuple({"d0": 1} for _ in texts))


def collection(*texts, splits=None):
    return Collection("x", tuple(f"d{i}" for i in range(len(texts))), texts, splits or {}, {})


def test_scores_are_lucenes():
    found = bm25_rankings(collection("wing jet", "Wings wing rudder", "tail"), queries("wing"), 10)
    ((rows, scores),) = found
    # idf = ln(1 + (3 - 2 + .5) / (2 + .5)) = ln 1.6 = .470; mean length 2; k1 1.2, b .75:
    # tf 2, length 3: 2 / (2 + 1.2 (.25 + .75 * 1.5)) = .5479; tf 1, length 2: 1 / 2.2 = .4545
    assert rows.tolist() == [1, 0]
    assert rows.dtype == np.int64
    assert scores.dtype == np.float32
    assert scores == pytest.approx([0.470004 * 0.547945, 0.470004 * 0.454545], abs=1e-5)


def test_equal_scores_keep_the_collections_order_at_the_cut_too():
    texts = ["jet", *["wing"] * 6, "wing wing"]
    ((rows, _),) = bm25_rankings(collection(*texts), queries("wing"), 4)
    assert rows.tolist() == [7, 1, 2, 3]


def test_queries_without_a_match_have_an_empty_ranking():
    found = bm25_rankings(collection("wing", "", "the"), queries("", "the", "jet", "wing"), 5)
    assert [rows.tolist() for rows, _ in found] == [[], [], [], [0]]
    found = bm25_rankings(collection("", "the"), queries("wing"), 5)
    assert [rows.tolist() for rows, _ in found] == [[]]


def test_a_small_collection_is_ranked_whole():
    assert candidate_documents(collection("wing", splits={"test": queries("wing")}), "test") is None


def test_a_large_collection_slips_relevant_documents_in_for_training_only(monkeypatch):
    monkeypatch.setattr("maw_gym.corpora.records.SMALL", 5)
    monkeypatch.setattr(candidates, "CANDIDATES", 2)
    asked = QuerySet(("a", "b"), ("wing", "jet"), ({"d0": 1, "d3": 2, "d1": 1, "d2": 0}, {"d4": 1}))
    splits = dict.fromkeys(("encoder", "train", "validation", "test"), asked)
    large = collection("tail", "wing", "wing", "rudder", "jet", splits=splits)
    expected = {
        "encoder": [[1, 2, 0, 3], [4]],
        "train": [[1, 2, 0, 3], [4]],
        "validation": [[1, 2], [4]],
        "test": [[1, 2], [4]],
    }
    for split, rows in expected.items():
        found = candidate_documents(large, split)
        assert found is not None
        assert [indices.tolist() for indices in found] == rows
        assert all(indices.dtype == np.int64 for indices in found)
