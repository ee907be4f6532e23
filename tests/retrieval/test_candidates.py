import numpy as np

from maw_gym.corpora.records import Collection, QuerySet
from maw_gym.retrieval import bm25 as bm25_module
from maw_gym.retrieval.bm25 import BM25, candidate_documents, with_relevant


def test_relevant_documents_follow_those_that_words_find(monkeypatch):
    monkeypatch.setattr(bm25_module, "CANDIDATES", 2)
    asked = QuerySet(("a", "b"), ("wing", "jet"), ({"d0": 1, "d3": 2, "d1": 1, "d2": 0}, {"d4": 1}))
    splits = dict.fromkeys(("encoder", "train", "validation", "test"), asked)
    texts = ("tail", "wing", "wing", "rudder", "jet")
    collection = Collection("x", tuple(f"d{row}" for row in range(5)), texts, splits, {})
    bm25 = BM25.of(collection.doc_ids, texts)
    lists = candidate_documents(collection, "train", bm25)
    assert [documents.tolist() for documents in lists] == [[2, 1], [4]]
    joined = with_relevant(lists, collection, "train")
    assert [documents.tolist() for documents in joined] == [[2, 1, 0, 3], [4]]
    assert all(documents.dtype == np.int64 for documents in lists + joined)
