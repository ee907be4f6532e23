"""The documents that a query of a large collection is ranked over: BM25's first."""

from typing import Final

import numpy as np

from maw_gym.corpora.records import Collection
from maw_gym.retrieval.bm25 import BM25
from maw_gym.retrieval.document_index import Integers

CANDIDATES: Final = 100


def candidate_documents(collection: Collection, split: str, bm25: BM25) -> list[Integers]:
    """Positions in `collection.doc_ids` of the documents each query of `split` is ranked over.

    BM25's first 100, best first; for `encoder` and `train` the query's missing relevant documents
    follow.
    """
    queries = collection.splits[split]
    ranked = bm25.rank(queries.texts, CANDIDATES).documents.numpy()
    lists = [documents[documents >= 0] for documents in ranked]
    if split not in ("encoder", "train"):
        return lists
    row = {doc_id: index for index, doc_id in enumerate(collection.doc_ids)}
    with_relevant = []
    for documents, relevance in zip(lists, queries.relevance, strict=True):
        relevant = [row[doc_id] for doc_id, grade in relevance.items() if grade > 0]
        missing = np.setdiff1d(np.array(relevant, np.int64), documents)
        with_relevant.append(np.concatenate([documents, missing]))
    return with_relevant
