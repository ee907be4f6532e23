"""An encoder and BM25 together on one collection: dense + BM25."""

from functools import cached_property, lru_cache
from typing import Final

from torch import Tensor

from maw_gym.errors import InputError
from maw_gym.retrieval.evaluation import DEPTH_OF_RANKING, Evaluation, evaluate_rankings
from maw_gym.retrieval.hybrid import (
    Candidates,
    best_weight,
    fused_ranking,
    reciprocal_ranks,
    scored_candidates,
    weighted_sum,
)
from maw_gym.retrieval.search import Ranking, rank_together
from maw_gym.tables.task import RetrievalTask

FUSIONS: Final = ("sum", "ranks")


class Hybrid:
    """Retrieval by the cosines of a task's encoder and by BM25, fused.

    Args:
        task: with the encoder, the documents and the queries.
    """

    def __init__(self, task: RetrievalTask) -> None:
        self.task = task

    @cached_property
    def weight(self) -> float:
        """The weight of the standard attention's cosines, chosen on validation queries."""
        queries = self.task.collection.splits["validation"]
        return best_weight(self.task.index, queries, self.candidates("validation"))

    def candidates(self, split: str, depths: Tensor | None = None) -> Candidates:
        """Both scores of the candidates of a split's queries; see `evaluate`."""
        texts = self.task.collection.splits[split].texts
        embeddings = self.task.embedder.encode_queries(texts, depths)
        lists, k = self.task.candidates(split), 0
        if lists is None:
            k = DEPTH_OF_RANKING
            lists = list(rank_together(self.task.index, embeddings, k).documents.cpu().numpy())
        return scored_candidates(self.task.index, self.task.bm25, embeddings, texts, lists, k)

    def evaluate(
        self, split: str, depths: Tensor | None = None, fusion: str = "sum"
    ) -> tuple[Evaluation, Ranking]:
        """Retrieval with the really encoded queries, through ir_measures.

        Args:
            split: whose queries are ranked.
            depths: (N,) int64, the depth of each query; None is the standard attention.
            fusion: "sum" of standardised scores with `weight`, or reciprocal "ranks".

        Raises:
            InputError: another fusion.
        """
        if fusion not in FUSIONS:
            raise InputError(f"unknown fusion {fusion!r}; choose one of {', '.join(FUSIONS)}")
        candidates = self.candidates(split, depths)
        scores = (
            weighted_sum(candidates, self.weight)
            if fusion == "sum"
            else reciprocal_ranks(candidates)
        )
        ranking = fused_ranking(candidates, scores, DEPTH_OF_RANKING)
        collection = self.task.collection
        documents = ranking.documents.numpy()
        return evaluate_rankings(collection.splits[split], collection.doc_ids, documents), ranking


@lru_cache(maxsize=1)
def hybrid_of(task: RetrievalTask) -> Hybrid:
    """The task's `Hybrid`, the same as last time for the same task: its weight is chosen once."""
    return Hybrid(task)
