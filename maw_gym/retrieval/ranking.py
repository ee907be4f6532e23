"""Rankings through every depth, under trec_eval's tie rule: nDCG@10 and listwise mass.

Notation: N documents, B queries, D depths, h embedding width, C columns of scores (the documents of
the whole collection, or one query's candidates), b queries of one block.

Of equal scores the smaller `tie_rank` goes first, see `maw_gym.retrieval.document_index`.
"""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maw_gym.retrieval.document_index import (
    DocumentIndex,
    Integers,
    Relevant,
    check_finite,
)

TEMPERATURE: Final = 0.05  # of the listwise mass
CUTOFF: Final = 10  # of nDCG
BLOCK_BYTES: Final = 8 * 2**20  # of one block of scores: with its weights it stays in cache


class Alignment(NamedTuple):
    """How far up each depth puts the relevant documents: ndcg and listwise, (B, D) in [0, 1]."""

    ndcg: Tensor
    listwise: Tensor


@torch.no_grad()
def alignment_of_depths(
    index: DocumentIndex,
    queries: Tensor,
    relevant: Sequence[Relevant],
    candidates: Sequence[Integers] | None = None,
    temperature: float = TEMPERATURE,
) -> Alignment:
    """NDCG@10 and listwise mass of every depth's ranking, in one pass over blocks of scores.

    Args:
        index: the documents.
        queries: (B, D, h) float32, each depth's embedding of each query, of unit length or zero.
        relevant: per query, see `DocumentIndex.relevant`. The ideal of nDCG counts all of them,
            candidates or not.
        candidates: per query the positions of the documents to rank; None ranks the whole index.
        temperature: of the listwise softmax.

    Returns:
        `Alignment` on the index's device.

    Raises:
        ValueError: lengths that differ, or embeddings that are not finite.
    """
    _check_lengths(queries, relevant, candidates)
    shape = queries.shape[:2]
    ndcg = torch.empty(shape, device=index.device)
    listwise = torch.empty(shape, device=index.device)
    for block in _blocks(index, queries, candidates):
        judged = relevant[block.queries]
        gains = _gains(index, block, judged)
        ideals = [ideal_dcg(one.grades) for one in judged]
        ndcg[block.queries] = ndcg_of_scores(block.scores, block.tie_rank, gains, ideals)
        listwise[block.queries] = listwise_of_scores(block.scores, gains > 0, temperature)
    return Alignment(ndcg, listwise)


def ndcg_of_scores(
    scores: Tensor, tie_rank: Tensor, gains: Tensor, ideals: Sequence[float]
) -> Tensor:
    """NDCG@10 (b, D) as trec_eval's ndcg_cut: linear gain, discount log2(rank + 1).

    Source: Järvelin and Kekäläinen, TOIS 20(4), 2002, as implemented in trec_eval's m_ndcg_cut.c.

    Args:
        scores: (b, D, C); columns of -inf are no documents.
        tie_rank: (C,) int64, of equal scores the smaller goes first.
        gains: (b, C), the grade of each column, 0 where it is not relevant.
        ideals: b numbers, see `ideal_dcg`; 0 gives 0.
    """
    b, depths, _ = scores.shape
    _, columns = top_in_tie_order(scores.flatten(0, 1), tie_rank, CUTOFF)
    ranked = gains.gather(1, columns.view(b, -1)).view(b, depths, -1)  # (b, D, 10)
    ranks = torch.arange(2, ranked.shape[-1] + 2, device=scores.device)
    # float64 as in trec_eval, so that a perfect ranking is 1 and not 0.99999994
    dcg = (ranked.double() / torch.log2(ranks.double())).sum(-1)
    ideal = torch.tensor(ideals, dtype=torch.float64, device=scores.device)[:, None]
    return torch.where(ideal > 0, dcg / ideal, 0.0).clamp_(0, 1).float()


def ideal_dcg(grades: NDArray[np.float32]) -> float:
    """Largest DCG@10 that documents of these grades (r,) allow."""
    best = np.sort(np.asarray(grades, np.float64))[::-1][:CUTOFF]
    return float((best / np.log2(np.arange(2, len(best) + 2))).sum())


def listwise_of_scores(scores: Tensor, relevant: Tensor, temperature: float) -> Tensor:
    """Softmax(score / temperature) mass on relevant documents, (b, D) in [0, 1].

    Args:
        scores: (b, D, C); columns of -inf are no documents. OVERWRITTEN: a block is large.
        relevant: (b, C) bool.
        temperature: above 0.
    """
    mass = scores.new_zeros(scores.shape[:2])
    if not scores.shape[-1]:
        return mass
    # One pass over a row that stays in cache; of the weights only those of relevant documents are
    # read. A row without documents has no weights, but NaN.
    weights = scores.mul_(1 / temperature).softmax(-1)
    query, column = relevant.nonzero().unbind(1)
    mass.index_add_(0, query, weights[query, :, column])
    return mass.nan_to_num_(0).clamp_(0, 1)


def top_in_tie_order(scores: Tensor, tie_rank: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The min(k, C) largest of every row, equal ones by `tie_rank`: values and columns (R, k).

    Args:
        scores: (R, C).
        tie_rank: (C,) int64, all different.
        k: at least 1.
    """
    width = scores.shape[1]
    values, columns = scores.topk(min(k + 1, width), dim=1)
    tied = ((values[:, 1:] == values[:, :-1]) & values[:, 1:].isfinite()).any(1)
    values, columns = values[:, :k].contiguous(), columns[:, :k].contiguous()
    if not tied.any():
        return values, columns
    # topk orders equal scores at will, also across the cut: sort the (few) rows with ties whole.
    by_tie = tie_rank.argsort()
    for rows in tied.nonzero()[:, 0].split(max(1, BLOCK_BYTES // (16 * width))):
        ordered = scores[rows[:, None], by_tie[None]].sort(dim=1, descending=True, stable=True)
        values[rows] = ordered.values[:, :k]
        columns[rows] = by_tie[ordered.indices[:, :k]]
    return values, columns


class _Block(NamedTuple):
    """Scores (b, D, C) of some queries, what their columns are, and how those break ties."""

    queries: slice
    scores: Tensor
    tie_rank: Tensor  # (C,)
    lists: list[Integers] | None  # per query its documents in tie order; None is the whole index


def _blocks(
    index: DocumentIndex, queries: Tensor, candidates: Sequence[Integers] | None
) -> Iterator[_Block]:
    """Scores of queries (B, D, h) in blocks of at most `BLOCK_BYTES`, at least one query each."""
    depths, width = queries.shape[1:]
    if candidates is None:
        floats = depths * len(index)  # of one query
    else:
        floats = max(map(len, candidates), default=0) * (width + 2 * depths)
    step = max(1, BLOCK_BYTES // (4 * max(floats, 1)))
    for start in range(0, len(queries), step):
        some = slice(start, min(start + step, len(queries)))
        block = queries[some].to(index.device, torch.float32)
        check_finite(block, "query")
        if candidates is None:
            scores = index.scores(block.reshape(-1, width)).view(len(block), depths, -1)
            yield _Block(some, scores, index.tie_rank, None)
            continue
        # np.unique: each candidate once, in tie order, so that columns break ties by themselves.
        lists = [index.tie_order[np.unique(index.tie_of[one])] for one in candidates[some]]
        documents = np.full((len(lists), max(map(len, lists))), -1)
        for row, one in enumerate(lists):
            documents[row, : len(one)] = one
        scores = index.candidate_scores(block, documents)
        ties = torch.arange(documents.shape[1], device=index.device)
        yield _Block(some, scores, ties, lists)


def _gains(index: DocumentIndex, block: _Block, relevant: Sequence[Relevant]) -> Tensor:
    """Grade (b, C) of each column of each query of the block, 0 where it is not relevant."""
    gains = np.zeros((len(relevant), block.scores.shape[2]), np.float32)
    for row, (documents, grades) in enumerate(relevant):
        if block.lists is None:
            gains[row, documents] = grades
        else:
            listed = block.lists[row]
            _, columns, judged = np.intersect1d(listed, documents, return_indices=True)
            gains[row, columns] = grades[judged]
    return torch.from_numpy(gains).to(index.device)


def _check_lengths(
    queries: Tensor, relevant: Sequence[Relevant] | None, candidates: Sequence[Integers] | None
) -> None:
    for what, given in (("relevant", relevant), ("candidates", candidates)):
        if given is not None and len(given) != len(queries):
            raise ValueError(f"{len(given)} lists of {what} for {len(queries)} queries")
