"""Evaluation: rankings to retrieval measures through ir_measures, and TREC run files.

The measures are computed by ir_measures, never by the formulas that made the reward.
"""

import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import ir_measures
import numpy as np
from ir_measures import AP, RR, R, Success, nDCG
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from maw_gym.corpora.collection import QuerySet
from maw_gym.files import written_whole
from maw_gym.retrieval.documents import DocumentIndex, Integers
from maw_gym.retrieval.search import Ranking, rank_without

MEASURES: Final[tuple[Any, ...]] = (nDCG @ 10, RR @ 10, AP, R @ 100, Success @ 10)
DEPTH_OF_RANKING: Final = 100  # the deepest cutoff among the measures


@dataclass(frozen=True)
class Evaluation:
    """Measures of one ranker on N queries: by name, values (N,) in the queries' order."""

    per_query: dict[str, NDArray[np.float64]]

    @property
    def mean(self) -> dict[str, float]:
        """Mean of each measure over all queries, those without a retrieved document included."""
        return {name: float(values.mean()) for name, values in self.per_query.items()}


def evaluate_rankings(
    queries: QuerySet, doc_ids: Sequence[str], documents: ArrayLike
) -> Evaluation:
    """Measures of rankings in the order given.

    Args:
        queries: N queries. All of their relevant documents count in the ideal of nDCG, in recall
            and in AP, retrieved or not; a query without any scores 0.
        doc_ids: the collection's ids.
        documents: (N, k) positions in `doc_ids`, best first; -1 fills up shorter lists.

    Raises:
        ValueError: no query, not one list per query, or a document twice in a list.
    """
    lists = np.asarray(documents)
    if lists.ndim != 2 or len(lists) != len(queries.ids) or not len(lists):
        raise ValueError(f"{len(queries.ids)} queries for rankings of shape {lists.shape}")
    # Ranks stand for scores, since providers break ties in opposite ways; rows stand for query ids,
    # so that odd ids can do no harm. trec_eval wants integer grades.
    run: dict[str, dict[str, float]] = {}
    judged = {}
    for row, one in enumerate(lists):
        found = one[one >= 0]
        run[str(row)] = {doc_ids[d]: float(len(found) - at) for at, d in enumerate(found)}
        if len(run[str(row)]) != len(found):
            raise ValueError(f"the ranking of query {queries.ids[row]!r} names a document twice")
        if queries.relevance[row]:
            judged[str(row)] = {name: max(int(g), 0) for name, g in queries.relevance[row].items()}
    per_query = {str(measure): np.zeros(len(lists)) for measure in MEASURES}
    if judged:
        for metric in ir_measures.iter_calc(MEASURES, judged, run):
            per_query[str(metric.measure)][int(metric.query_id)] = metric.value
    return Evaluation(per_query)


def evaluate_embeddings(
    index: DocumentIndex,
    queries: QuerySet,
    embeddings: Tensor,
    candidates: Sequence[Integers] | None = None,
    k: int = DEPTH_OF_RANKING,
) -> tuple[Evaluation, Ranking]:
    """Rank the documents for query embeddings and measure the rankings.

    Args:
        index: the documents.
        queries: N queries.
        embeddings: (N, h) float32, of unit length or zero; finite.
        candidates: per query the positions of the documents to rank; None ranks the whole index.
        k: length of the rankings; AP is over these k documents, R@100 needs 100.
    """
    ranking = rank_without(index, embeddings, k, index.own_documents(queries), candidates)
    return evaluate_rankings(queries, index.doc_ids, ranking.documents.cpu().numpy()), ranking


def write_trec_run(
    path: Path,
    query_ids: Sequence[str],
    doc_ids: Sequence[str],
    documents: ArrayLike,
    scores: ArrayLike,
    tag: str,
) -> None:
    """Write a TREC run file: lines of ``query_id Q0 doc_id rank score tag``, ranks from 1.

    Scores have 9 significant digits, which float32 survives, so trec_eval finds the same order.

    Args:
        path: file to write or replace; compressed where its name ends in ".gz".
        query_ids: N ids, without white space as a collection's are.
        doc_ids: the collection's ids.
        documents: (N, k) positions in `doc_ids`, best first; -1 is left out.
        scores: (N, k) float32.
        tag: name of the run; white space in it is replaced.
    """
    tag, lines = "_".join(tag.split()), []
    rows = zip(query_ids, np.asarray(documents), np.asarray(scores), strict=True)
    for query_id, found, its_scores in rows:
        for at, place in enumerate(np.flatnonzero(found >= 0), 1):
            document = doc_ids[found[place]]
            lines.append(f"{query_id} Q0 {document} {at} {its_scores[place]:.9g} {tag}\n")
    content = "".join(lines).encode()
    if path.suffix == ".gz":
        content = gzip.compress(content, compresslevel=1, mtime=0)
    with written_whole(path) as temporary:
        temporary.write_bytes(content)
