"""Evaluation: rankings to retrieval measures through ir_measures, and TREC run files.

The measures are computed by ir_measures, never by the formulas that made the reward.
"""

import gzip
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

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

    AP is that of the list as given: over its first k documents, relevant ones below count 0.

    Args:
        queries: N queries with their relevant documents. All of these count in the ideal of nDCG
            and in recall, retrieved or not; a query without any scores 0.
        doc_ids: the collection's ids.
        documents: (N, k) positions in `doc_ids`, best first; -1 fills up shorter lists.

    Raises:
        ValueError: no query, not one list per query, or a document twice in a list.
        FloatingPointError: ir_measures gave a value that the ranking cannot have.
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
    for row, query_id in enumerate(queries.ids):  # out of memory trec_eval gives zeros in silence
        grades = queries.relevance[row]
        hits = [at for at, doc_id in enumerate(run[str(row)]) if grades.get(doc_id, 0) > 0]
        for measure in MEASURES:
            value = per_query[str(measure)][row]
            reached = min(hits, default=math.inf) < measure.params.get("cutoff", math.inf)
            if not 0 <= value <= 1 or (value > 0) != reached:
                raise FloatingPointError(
                    f"{measure} of query {query_id!r} came out as {value}: what computes it has"
                    " failed, perhaps for want of memory"
                )
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
        embeddings: (N, h) float32, of unit length or zero.
        candidates: per query the positions of the documents to rank; None ranks the whole index.
        k: length of the rankings; AP is over these k documents, R@100 needs 100.

    Raises:
        ValueError: lengths that differ, or embeddings that are not finite.
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

    Scores have 9 significant digits, which float32 survives, so trec_eval finds the same order. An
    id or a tag with white space is percent-encoded; ``urllib.parse.unquote`` reads it back.

    Args:
        path: file to write or replace; compressed where its name ends in ".gz".
        query_ids: N ids.
        doc_ids: the collection's ids.
        documents: (N, k) positions in `doc_ids`, best first; -1 is left out.
        scores: (N, k) float32.
        tag: name of the run.
    """
    lists, values = np.asarray(documents), np.asarray(scores)
    if lists.shape != values.shape or lists.ndim != 2 or len(lists) != len(query_ids):
        raise ValueError(
            f"{len(query_ids)} queries, documents {lists.shape}, scores {values.shape} do not fit"
        )
    tag, lines = trec_name(tag), []
    for query_id, found, its_scores in zip(query_ids, lists, values, strict=True):
        name = trec_name(query_id)
        for at, place in enumerate(np.flatnonzero(found >= 0), 1):
            document = trec_name(doc_ids[found[place]])
            lines.append(f"{name} Q0 {document} {at} {its_scores[place]:.9g} {tag}\n")
    content = "".join(lines).encode()
    if path.suffix == ".gz":
        content = gzip.compress(content, compresslevel=1, mtime=0)
    with written_whole(path) as temporary:
        temporary.write_bytes(content)


def trec_name(name: str) -> str:
    """`name`; its white space and percent signs percent-encoded where it has white space."""
    spaced = re.search(r"\s", name)
    return re.sub(r"[\s%]", lambda found: quote(found.group()), name) if spaced else name
