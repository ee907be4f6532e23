import numpy as np

from maw_gym.corpora.records import Collection, QuerySet
from maw_gym.retrieval import candidates
from maw_gym.retrieval.bm25 import BM25
from maw_gym.retrieval.candidates import candidate_documents


def test_relevant_documents_are_slipped_in_for_training_only(monkeypatch):
    monkeypatch.setattr(candidates, "CANDIDATES", 2)
    asked = QuerySet(("a", "b"), ("wing", "jet"), ({"d0": 1, "d3": 2, "d1": 1, "d2": 0}, {"d4": 1}))
    splits = dict.fromkeys(("encoder", "train", "validation", "test"), asked)
    texts = ("tail", "wing", "wing", "rudder", "jet")
    collection = Collection("x", tuple(f"d{row}" for row in range(5)), texts, splits, {})
    bm25 = BM25.of(collection.doc_ids, texts)
    expected = {
        "encoder": [[2, 1, 0, 3], [4]],
        "train": [[2, 1, 0, 3], [4]],
        "validation": [[2, 1], [4]],
        "test": [[2, 1], [4]],
    }
    for split, rows in expected.items():
        lists = candidate_documents(collection, split, bm25)
        assert [documents.tolist() for documents in lists] == rows
        assert all(documents.dtype == np.int64 for documents in lists)
