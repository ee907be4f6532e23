"""The documents that a query of a large collection is ranked over: BM25's first."""

from collections.abc import Sequence
from typing import Final

import numpy as np

from maw_gym.corpora.records import Collection
from maw_gym.retrieval.bm25 import BM25
from maw_gym.retrieval.document_index import Integers

CANDIDATES: Final = 100


def candidate_documents(collection: Collection, split: str, bm25: BM25) -> list[Integers]:
    """Positions in `collection.doc_ids` of BM25's first 100 for each query of `split`, in order."""
    ranked = bm25.rank(collection.splits[split].texts, CANDIDATES).documents.numpy()
    return [documents[documents >= 0] for documents in ranked]


def with_relevant(
    candidates: Sequence[Integers], collection: Collection, split: str
) -> list[Integers]:
    """Candidates of the queries of `split`, followed by their relevant documents not among them."""
    row = {doc_id: index for index, doc_id in enumerate(collection.doc_ids)}
    lists = []
    for documents, relevance in zip(candidates, collection.splits[split].relevance, strict=True):
        relevant = [row[doc_id] for doc_id, grade in relevance.items() if grade > 0]
        missing = np.setdiff1d(np.array(relevant, np.int64), documents)
        lists.append(np.concatenate([documents, missing]))
    return lists
