"""BM25 rankings, and the documents that a query of a large collection is ranked over."""

import logging
from collections.abc import Sequence

import bm25s
import numpy as np
import Stemmer
from numpy.typing import NDArray
from tqdm import tqdm

from maw_gym.corpora.records import Collection, QuerySet

CANDIDATES = 100

# On import bm25s asks for its debugging messages.
logging.getLogger("bm25s").setLevel(logging.WARNING)

Ranking = tuple[NDArray[np.int64], NDArray[np.float32]]


def bm25_rankings(collection: Collection, queries: QuerySet, k: int) -> list[Ranking]:
    """The k best documents of each query by BM25, as Lucene computes it (k1 1.2, b 0.75).

    Words are folded to lower case and stemmed (Snowball), English stop words are left out.

    Args:
        collection: whose documents are ranked.
        queries: what to rank them for.
        k: at least 1.

    Returns:
        Per query indices into `collection.doc_ids` and scores, both (k',): k' <= k, since only
        documents with a score above 0 count. Best first; equal scores in the collection's order.
    """
    loud = not collection.small
    documents = _words(collection.doc_texts, loud)
    if not any(documents):
        return [_ranking(np.zeros(0, np.float32), k) for _ in queries.ids]
    index = bm25s.BM25(method="lucene", k1=1.2, b=0.75)
    index.index(documents, show_progress=loud, leave_progress=False)
    rankings = []
    words = tqdm(_words(queries.texts, False), "BM25", unit="query", delay=2, leave=False)
    for query in words:
        ids = index.get_tokens_ids(query)
        scores = index.get_scores_from_ids(ids) if ids else np.zeros(0, np.float32)
        rankings.append(_ranking(scores, k))
    return rankings


def candidate_documents(collection: Collection, split: str) -> list[NDArray[np.int64]] | None:
    """Indices of the documents that each query of `split` is ranked over; None is all of them.

    A collection of fewer than 50,000 documents is ranked whole. A larger one has BM25's first 100,
    best first; for `encoder` and `train` the query's missing relevant documents follow.
    """
    if collection.small:
        return None
    queries = collection.splits[split]
    found = [indices for indices, _ in bm25_rankings(collection, queries, CANDIDATES)]
    if split not in ("encoder", "train"):
        return found
    row = {doc_id: index for index, doc_id in enumerate(collection.doc_ids)}
    with_relevant = []
    for indices, relevance in zip(found, queries.relevance, strict=True):
        relevant = [row[doc_id] for doc_id, grade in relevance.items() if grade > 0]
        missing = np.setdiff1d(np.array(relevant, np.int64), indices)
        with_relevant.append(np.concatenate([indices, missing]))
    return with_relevant


def _words(texts: Sequence[str], show_progress: bool) -> list[list[str]]:
    words: list[list[str]] = bm25s.tokenize(
        list(texts),
        token_pattern=r"\b\w+\b",
        stopwords="en",
        stemmer=Stemmer.Stemmer("english"),
        return_ids=False,
        show_progress=show_progress,
    )
    return words


def _ranking(scores: NDArray[np.float32], k: int) -> Ranking:
    matched = np.flatnonzero(scores > 0)
    if len(matched) > k:
        threshold = np.partition(scores[matched], -k)[-k]
        matched = matched[scores[matched] >= threshold]
    best = matched[np.lexsort((matched, -scores[matched]))][:k]
    return best.astype(np.int64), scores[best].astype(np.float32)
