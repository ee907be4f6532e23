"""Judging an encoder between epochs."""

import torch
from torch import Tensor

from maw_gym.corpora import Collection, QuerySet
from maw_gym.encoders.embedder import Embedder
from maw_gym.retrieval.documents import DocumentIndex
from maw_gym.retrieval.ranking import alignment_of_depths

DOCUMENTS_CHECKED = 2500  # an epoch is judged by ranking at most this many documents


class Validation:
    """nDCG@10 of validation queries over the collection's documents.

    Of a large collection only the relevant documents and the first of the others are ranked, so
    that judging an epoch stays cheap.

    Args:
        collection: whose documents are ranked.
        embedder: tokenises.
        document_tokens: documents are cut here.
        queries: of the collection; None are those of its `validation` split.
    """

    def __init__(
        self,
        collection: Collection,
        embedder: Embedder,
        document_tokens: int,
        queries: QuerySet | None = None,
    ) -> None:
        self.queries = collection.splits["validation"] if queries is None else queries
        needed = {name for grades in self.queries.relevance for name in grades}
        rows = [row for row, name in enumerate(collection.doc_ids) if name in needed]
        others = (row for row, name in enumerate(collection.doc_ids) if name not in needed)
        rows += [row for row, _ in zip(others, range(DOCUMENTS_CHECKED - len(rows)), strict=False)]
        self.rows = sorted(rows)
        self.doc_ids = [collection.doc_ids[row] for row in self.rows]
        tokens = embedder.text.tokenize([collection.doc_texts[row] for row in self.rows])
        self.documents = [embedder.text.cut(ids, document_tokens) for ids in tokens]
        self.query_tokens = embedder.query_ids(self.queries.texts)

    def index(self, documents: Tensor) -> DocumentIndex:
        """What is ranked, of the embeddings (documents of the collection, h)."""
        return DocumentIndex(self.doc_ids, documents[self.rows])

    def score(
        self,
        embedder: Embedder,
        depths: Tensor | None = None,
        index: DocumentIndex | None = None,
    ) -> float:
        """Mean of `scores`, 0 without queries."""
        scores = self.scores(embedder, depths, index)
        return float(scores.mean()) if len(scores) else 0.0

    @torch.no_grad()
    def scores(
        self,
        embedder: Embedder,
        depths: Tensor | None = None,
        index: DocumentIndex | None = None,
    ) -> Tensor:
        """NDCG@10 (N,) of each query.

        Args:
            embedder: what to judge.
            depths: (N,) int64, the depth of each query; None is the standard attention.
            index: see `index`; None encodes the documents, cut as in training.
        """
        if not self.queries.ids:
            return torch.zeros(0)
        if index is None:
            index = DocumentIndex(self.doc_ids, embedder.encode_ids(self.documents))
        queries = embedder.encode_ids(self.query_tokens, depths)
        relevant = index.relevant(self.queries)
        return alignment_of_depths(index, queries[:, None], relevant).ndcg[:, 0].cpu()
