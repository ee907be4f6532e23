"""Rankings through every depth, under trec_eval's tie rule: how good, and what they look like.

Notation: N documents, B queries, D depths, h embedding width, C columns of scores (the documents of
the whole collection, or one query's candidates), b queries of one block.

Of equal scores the smaller `tie_rank` goes first, see `maw_gym.retrieval.documents`.
"""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maw_gym.retrieval.documents import DocumentIndex, Integers, Relevant, check_finite

CUTOFF: Final = 10  # of nDCG
SHARED: Final = 256  # columns in which the best of all depths of a query are looked for first
BLOCK_BYTES: Final = 8 * 2**20  # of one block of scores: with its weights it stays in cache
SHORT: Final = 10  # documents at the top that are looked at closely
LONG: Final = 50  # and from farther away
TEMPERATURE: Final = 0.05  # of softmaxes of scores: the listwise mass, the entropies

STATISTICS: Final[dict[str, tuple[float, float]]] = {
    "first": (-1, 1),
    "gap to the second": (0, 2),
    "gap to the tenth": (0, 2),
    "mean of ten": (-1, 1),
    "spread of ten": (0, 1),
    "entropy of ten": (0, 1),
    "mean of fifty": (-1, 1),
    "spread of fifty": (0, 1),
    "entropy of fifty": (0, 1),
    "overlap with the mean": (0, 1),
    "same first": (0, 1),
}
"""Names and ranges, in order; see `ranking_statistics`."""


class Alignment(NamedTuple):
    """How far up each depth puts the relevant documents: ndcg and listwise, (B, D) in [0, 1]."""

    ndcg: Tensor
    listwise: Tensor


def alignment_of_depths(
    index: DocumentIndex,
    queries: Tensor,
    relevant: Sequence[Relevant],
    candidates: Sequence[Integers] | None = None,
) -> Alignment:
    """NDCG@10 and listwise mass of every depth's ranking, in one pass over blocks of scores.

    Args:
        index: the documents.
        queries: (B, D, h) float32, each depth's embedding of each query, of unit length or zero.
        relevant: per query, see `DocumentIndex.relevant`. The ideal of nDCG counts all of them,
            candidates or not.
        candidates: per query the positions of the documents to rank; None ranks the whole index.

    Returns:
        `Alignment` on the index's device.

    Raises:
        ValueError: lengths that differ, or embeddings that are not finite.
    """
    return _aligned(index, queries, relevant, candidates, None)


def rankings_of_depths(
    index: DocumentIndex,
    queries: Tensor,
    relevant: Sequence[Relevant],
    candidates: Sequence[Integers] | None = None,
    found: Sequence[Integers] | None = None,
) -> tuple[Alignment, Tensor]:
    """`alignment_of_depths`, and the `ranking_statistics` (B, 11 D) of the same rankings.

    The statistics are of `found`: per query those of its candidates that no judgment has put there;
    None are all.
    """
    shape = (len(queries), len(STATISTICS) * queries.shape[1])
    observed = torch.empty(shape, device=index.device)
    alignment = _aligned(index, queries, relevant, candidates, observed if found is None else None)
    if found is not None:
        for block in _blocks(index, queries, relevant, found):
            observed[block.queries] = _observed(block, *_top(block.scores, block.tie_rank, LONG))
    return alignment, observed


@torch.no_grad()
def _aligned(
    index: DocumentIndex,
    queries: Tensor,
    relevant: Sequence[Relevant],
    candidates: Sequence[Integers] | None,
    observed: Tensor | None,
) -> Alignment:
    """The alignment; `observed`, if it is given, is filled in too."""
    for what, given in (("relevant", relevant), ("candidates", candidates)):
        if given is not None and len(given) != len(queries):
            raise ValueError(f"{len(given)} lists of {what} for {len(queries)} queries")
    shape = queries.shape[:2]
    alignment = Alignment(*(torch.empty(shape, device=index.device) for _ in Alignment._fields))
    for block in _blocks(index, queries, relevant, candidates):
        top = _top(block.scores, block.tie_rank, CUTOFF if observed is None else LONG)
        if observed is not None:
            observed[block.queries] = _observed(block, *top)
        judged = relevant[block.queries]
        gains = _gains(index, block, judged)
        ideals = [ideal_dcg(one.grades) for one in judged]
        alignment.ndcg[block.queries] = _ndcg_of_columns(top[1][..., :CUTOFF], gains, ideals)
        mass = listwise_of_scores(block.scores, gains > 0, TEMPERATURE)  # overwrites them
        alignment.listwise[block.queries] = mass
    return alignment


def _top(scores: Tensor, tie_rank: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k best of scores (b, D, C), in order: values and columns (b, D, k)."""
    b, depths, width = scores.shape
    flat = scores.flatten(0, 1)
    if depths == 1 or width < 4 * SHARED:
        values, columns = top_in_tie_order(flat, tie_rank, k)
        return values.view(b, depths, -1), columns.view(b, depths, -1)
    highest, common = scores.amax(1).topk(SHARED + 1)
    common = common[:, :SHARED]
    common = common.gather(1, tie_rank[common].argsort(1))  # columns break ties by themselves
    listed = scores.gather(2, common[:, None].expand(-1, depths, -1)).flatten(0, 1)
    values, at = top_in_tie_order(listed, torch.arange(SHARED, device=scores.device), k)
    columns = common.repeat_interleave(depths, 0).gather(1, at)
    rows = (values[:, -1] <= highest[:, -1].repeat_interleave(depths)).nonzero()[:, 0]
    if len(rows):
        values[rows], columns[rows] = top_in_tie_order(flat[rows], tie_rank, k)
    return values.view(b, depths, -1), columns.view(b, depths, -1)


def _observed(block: "_Block", scores: Tensor, columns: Tensor) -> Tensor:
    """Statistics of the rankings of a block, from the top of each."""
    # The cosine with the mean embedding is the mean of the cosines, up to a factor.
    _, of_mean = top_in_tie_order(block.scores.mean(1), block.tie_rank, SHORT)
    return ranking_statistics(scores, columns, of_mean)


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
    return _ndcg_of_columns(_top(scores, tie_rank, CUTOFF)[1], gains, ideals)


def _ndcg_of_columns(columns: Tensor, gains: Tensor, ideals: Sequence[float]) -> Tensor:
    """`ndcg_of_scores` of the best columns (b, D, at most 10), in order."""
    b, depths, _ = columns.shape
    ranked = gains.gather(1, columns.reshape(b, -1)).view(b, depths, -1)  # (b, D, 10)
    ranks = torch.arange(2, ranked.shape[-1] + 2, device=columns.device)
    # float64 as in trec_eval, so that a perfect ranking is 1 and not 0.99999994
    dcg = (ranked.double() / torch.log2(ranks.double())).sum(-1)
    ideal = torch.tensor(ideals, dtype=torch.float64, device=columns.device)[:, None]
    return torch.where(ideal > 0, dcg / ideal, 0.0).clamp_(0, 1).float()


def ideal_dcg(grades: NDArray[np.float32]) -> float:
    """Largest DCG@10 that documents of these grades (r,) allow."""
    best = np.sort(np.asarray(grades, np.float64))[::-1][:CUTOFF]
    return float((best / np.log2(np.arange(2, len(best) + 2))).sum())


def listwise_of_scores(scores: Tensor, relevant: Tensor, temperature: float) -> Tensor:
    """Softmax(score / temperature) mass on relevant (b, C) documents, (b, D) in [0, 1].

    Scores (b, D, C) are OVERWRITTEN: a block is large; columns of -inf are no documents.
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
    """The min(k, C) largest of scores (R, C), equal ones by `tie_rank` (C,): values and columns."""
    width = scores.shape[1]
    values, columns = scores.topk(min(k + 1, width), dim=1)
    tied = ((values[:, 1:] == values[:, :-1]) & values[:, 1:].isfinite()).any(1)
    # Of scores that are equal across the cut topk has kept any.
    cut = values[:, k - 1] == values[:, k] if width > k else torch.zeros_like(tied)
    values, columns = values[:, :k].contiguous(), columns[:, :k].contiguous()
    if not tied.any():
        return values, columns
    # It has all of the others, in whatever order: put the (few) rows with ties right.
    rows = (tied & ~cut).nonzero()[:, 0]
    listed = columns[rows].gather(1, tie_rank[columns[rows]].argsort(1))
    ordered = scores[rows[:, None], listed].sort(dim=1, descending=True, stable=True)
    values[rows], columns[rows] = ordered.values, listed.gather(1, ordered.indices)
    by_tie = tie_rank.argsort()
    for rows in (tied & cut).nonzero()[:, 0].split(max(1, BLOCK_BYTES // (16 * width))):
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
    index: DocumentIndex,
    queries: Tensor,
    relevant: Sequence[Relevant],
    candidates: Sequence[Integers] | None,
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
            for row, one in enumerate(relevant[some]):
                scores[row, :, one.own : one.own + 1] = -torch.inf  # of -1 it is nothing
            yield _Block(some, scores, index.tie_rank, None)
            continue
        # np.unique: each candidate once, in tie order, so that columns break ties by themselves.
        lists = [index.tie_order[np.unique(index.tie_of[one])] for one in candidates[some]]
        documents = np.full((len(lists), max(map(len, lists))), -1)
        for row, listed in enumerate(lists):
            documents[row, : len(listed)] = np.where(listed == relevant[some][row].own, -1, listed)
        scores = index.candidate_scores(block, documents)
        ties = torch.arange(documents.shape[1], device=index.device)
        yield _Block(some, scores, ties, lists)


def _gains(index: DocumentIndex, block: _Block, relevant: Sequence[Relevant]) -> Tensor:
    """Grade (b, C) of each column of each query of the block, 0 where it is not relevant."""
    gains = np.zeros((len(relevant), block.scores.shape[2]), np.float32)
    for row, (documents, grades, _) in enumerate(relevant):
        if block.lists is None:
            gains[row, documents] = grades
        else:
            listed = block.lists[row]
            _, columns, judged = np.intersect1d(listed, documents, return_indices=True)
            gains[row, columns] = grades[judged]
    return torch.from_numpy(gains).to(index.device)


def ranking_statistics(scores: Tensor, documents: Tensor, mean_documents: Tensor) -> Tensor:
    """The numbers of `STATISTICS` for every depth, all depths of one kind side by side.

    - first: the highest cosine.
    - gap to the second, to the tenth: how far the highest is above these.
    - mean, spread: of the ten and the fifty highest cosines; the spread is their standard
      deviation.
    - entropy: of softmax(cosine / 0.05) over the ten and the fifty, divided by the logarithm of
      their number; 1 where all are equal, and 0 for one document.
    - overlap with the mean: share of the first ten that are among the first ten of the depths' mean
      embedding.
    - same first: share of the depths, this one included, whose first document is the same.

    Where fewer documents are ranked, the last of them stands for the tenth, and means are over
    those there are. Without any document everything is 0.

    Args:
        scores: (b, D, k) cosines, best first, of the first k <= 50 documents; a score below -1
            is none, and comes last.
        documents: (b, D, k) int64, what is ranked; equal numbers are the same document.
        mean_documents: (b, at least min(k, 10)) int64, those of the mean embedding, best first.

    Returns:
        (b, 11 D) float32.
    """
    there = scores >= -1 - 1e-3  # (b, D, k)
    scores = torch.where(there, scores, 0.0)
    first = scores[..., :1]
    columns = [first[..., 0]]
    for place in (2, SHORT):
        last = there[..., :place].sum(-1, keepdim=True).clamp(min=1) - 1  # (b, D, 1)
        columns.append((first - scores.gather(-1, last))[..., 0])
    for length in (SHORT, LONG):
        columns += _spread(scores[..., :length], there[..., :length])
    columns += [_overlap(documents, mean_documents, there), _agreement(documents, there)]
    bounded = [
        values.clamp(low, high)
        for values, (low, high) in zip(columns, STATISTICS.values(), strict=True)
    ]
    return torch.cat(bounded, dim=1).float()


def _spread(scores: Tensor, there: Tensor) -> list[Tensor]:
    """Mean, standard deviation and softmax entropy (b, D) of scores (b, D, k) that are there."""
    count = there.sum(-1)
    divisor = count.clamp(min=1)
    mean = scores.sum(-1) / divisor
    deviation = torch.where(there, scores - mean[..., None], 0.0)
    # Of softmax p: -sum p log p = log(sum exp z) - sum p z, with the highest z at 0.
    z = torch.where(there, (scores - scores[..., :1]) / TEMPERATURE, -torch.inf)
    weights = torch.where(there, z.exp(), 0.0)
    total = weights.sum(-1).clamp(min=1)
    entropy = total.log() - torch.where(there, weights * z, 0.0).sum(-1) / total
    largest = divisor.clamp(min=2).log()
    return [mean, (deviation.square().sum(-1) / divisor).sqrt(), entropy / largest]


def _overlap(documents: Tensor, mean_documents: Tensor, there: Tensor) -> Tensor:
    """Share (b, D) of the first ten that are among the first ten of the mean embedding."""
    ours, theirs = documents[..., :SHORT], mean_documents[:, None, :SHORT]
    common = torch.zeros_like(ours, dtype=torch.bool)
    for place in range(theirs.shape[-1]):  # ten passes, and no (b, D, 10, 10)
        common |= ours == theirs[..., place, None]
    valid = there[..., :SHORT]
    return (common & valid).sum(-1) / valid.sum(-1).clamp(min=1)


def _agreement(documents: Tensor, there: Tensor) -> Tensor:
    """Share (b, D) of the depths with the same first document."""
    first = documents[..., 0]  # (b, D)
    same = (first[:, :, None] == first[:, None]).double().mean(-1)
    return torch.where(there[..., 0], same, 0.0).float()
