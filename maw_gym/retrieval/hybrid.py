"""Dense retrieval and BM25 together: one list of candidates, scored by both, fused by two rules.

Notation: B queries, k documents of each of the two rankings, C <= 2k candidates of a query.
"""

from collections.abc import Callable, Sequence
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maw_gym.corpora.collection import QuerySet
from maw_gym.retrieval.bm25 import BM25, best_matches
from maw_gym.retrieval.documents import DocumentIndex, Integers
from maw_gym.retrieval.ranking import ideal_dcg, ndcg_of_scores
from maw_gym.retrieval.search import Ranking

Floats = NDArray[np.float64]

WEIGHTS: Final = tuple(round(0.1 * step, 1) for step in range(11))
WEIGHT: Final = 0.5  # where no query can choose one
RANK_CONSTANT: Final = 60  # of reciprocal rank fusion, as in its source
FUSED: Final = 100  # documents of each ranking that a search fuses


class Candidates(NamedTuple):
    """The documents of each query that both rankers score, in trec_eval's order of equal scores.

    Attributes:
        documents: (B, C) positions in the index, -1 at the end of shorter lists.
        dense: (B, C) cosines, -inf where there is no document.
        lexical: (B, C) BM25 scores, 0 for a document without a word of the query, -inf likewise.
    """

    documents: Integers
    dense: Floats
    lexical: Floats


def scored_candidates(
    index: DocumentIndex,
    bm25: BM25,
    embeddings: Tensor,
    texts: Sequence[str],
    lists: Sequence[Integers],
    k: int,
    own: Integers | None = None,
) -> Candidates:
    """Both scores of every query's candidates, of which documents without text are none."""
    chosen, lexical = [], []
    empty = index.empty.cpu().numpy()
    own = np.full(len(texts), -1) if own is None else own
    for text, listed, itself in zip(texts, lists, own, strict=True):
        scores = bm25.scores(text)
        scores[itself : itself + 1] = 0  # of -1 it is nothing
        if k:
            listed = np.concatenate([listed, best_matches(scores, index.tie_of, k)])
        places = np.unique(index.tie_of[listed[(listed >= 0) & ~np.isin(listed, [*empty, itself])]])
        chosen.append(index.tie_order[places])
        lexical.append(scores[chosen[-1]])
    shape = (len(chosen), max(map(len, chosen), default=0))
    result = Candidates(np.full(shape, -1), np.full(shape, -np.inf), np.full(shape, -np.inf))
    for row, (documents, scores) in enumerate(zip(chosen, lexical, strict=True)):
        result.documents[row, : len(documents)] = documents
        result.lexical[row, : len(documents)] = scores
    queries = embeddings.to(index.device, torch.float32)
    for some in index.gathered(shape[1], len(queries)):
        cosines = index.exact_scores(queries[some], result.documents[some])
        result.dense[some] = cosines.cpu().numpy()
    return result


def standardised(scores: Floats) -> Floats:
    """Scores (B, C) of mean 0 and deviation 1 in every row, all 0 where they are equal."""
    real = np.isfinite(scores)
    count = np.maximum(real.sum(1, keepdims=True), 1)
    centred = np.where(real, scores, 0.0)
    centred = np.where(real, centred - centred.sum(1, keepdims=True) / count, 0.0)
    deviation = np.sqrt((centred**2).sum(1, keepdims=True) / count)
    # Rounding leaves a little where all scores are equal.
    flat = deviation <= 1e-9 * np.abs(np.where(real, scores, 0.0)).max(1, keepdims=True, initial=0)
    return np.where(real, np.where(flat, 0.0, centred / np.where(flat, 1.0, deviation)), -np.inf)


def weighted_sum(candidates: Candidates, weight: float) -> Floats:
    """Fused scores (B, C): `weight` of the standardised cosines, the rest of BM25's."""
    if not 0 <= weight <= 1:
        raise ValueError(f"need a weight in [0, 1], got {weight}")
    real = candidates.documents >= 0
    dense, lexical = (
        np.where(real, standardised(scores), 0) for scores in (candidates.dense, candidates.lexical)
    )
    return np.where(real, weight * dense + (1 - weight) * lexical, -np.inf)


def reciprocal_ranks(candidates: Candidates, constant: float = RANK_CONSTANT) -> Floats:
    """Fused scores (B, C): the sum of 1 / (constant + rank) over the two rankings of candidates."""
    fused = np.zeros(candidates.documents.shape)
    matched = candidates.lexical > 0
    for scores, ranked in ((candidates.dense, True), (candidates.lexical, matched)):
        order = np.argsort(-scores, axis=1, kind="stable")  # columns are in tie order
        fused += np.where(ranked, 1 / (constant + 1 + np.argsort(order, axis=1)), 0)
    return np.where(candidates.documents >= 0, fused, -np.inf)


def fused_ranking(candidates: Candidates, scores: Floats, k: int) -> Ranking:
    """The k best candidates of every query by fused scores (B, C), on the CPU."""
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return Ranking(
        torch.from_numpy(np.take_along_axis(scores, order, 1).astype(np.float32)),
        torch.from_numpy(np.take_along_axis(candidates.documents, order, 1)),
    )


def hybrid_ranking(
    index: DocumentIndex,
    bm25: BM25,
    nearest: Callable[[Tensor, int], Ranking],
    embeddings: Tensor,
    texts: Sequence[str],
    k: int,
    weight: float,
) -> Ranking:
    """The k best documents of every query by `weighted_sum`, on the CPU; any k has the same
    order.
    """
    first = list(nearest(embeddings, FUSED).documents.cpu().numpy())
    candidates = scored_candidates(index, bm25, embeddings, texts, first, FUSED)
    fused = fused_ranking(candidates, weighted_sum(candidates, weight), k)
    counts = (fused.documents >= 0).sum(1).tolist()
    k = min(k, len(index))
    if min(counts, default=k) == k:
        return fused
    more = nearest(embeddings, k)
    rows = []
    for row, count in enumerate(counts):
        scores, documents = (values[row, :count] for values in fused)
        below = ~torch.isin(more.documents[row].cpu(), documents)
        cosines, rest = (values[row].cpu()[below] for values in more)
        lowest = scores[-1] if count else 0.0
        rows.append((torch.cat([scores, lowest - 1 + cosines]), torch.cat([documents, rest])))
    return Ranking(
        *(torch.stack([values[:k] for values in some]) for some in zip(*rows, strict=True))
    )


def best_weight(index: DocumentIndex, queries: QuerySet, candidates: Candidates) -> float:
    """The weight of `WEIGHTS` with the highest mean nDCG@10, of equal ones the nearest to 0.5."""
    if not queries.ids:
        return WEIGHT
    gains = np.zeros(candidates.documents.shape, np.float32)
    relevant = index.relevant(queries)
    for row, (documents, grades, _) in enumerate(relevant):
        _, columns, judged = np.intersect1d(
            candidates.documents[row], documents, return_indices=True
        )
        gains[row, columns] = grades[judged]
    ideals = [ideal_dcg(one.grades) for one in relevant]
    ties = torch.arange(candidates.documents.shape[1])

    def quality(weight: float) -> float:
        scores = torch.from_numpy(weighted_sum(candidates, weight))
        ndcg = ndcg_of_scores(scores[:, None], ties, torch.from_numpy(gains), ideals)
        return float(ndcg.double().mean())

    return max(sorted(WEIGHTS, key=lambda weight: abs(weight - WEIGHT)), key=quality)
