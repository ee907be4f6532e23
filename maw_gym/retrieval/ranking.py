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

from maw_gym.retrieval.documents import (
    DocumentIndex,
    Integers,
    Relevant,
    check_finite,
    padded,
    steps,
    top,
)

CUTOFF: Final = 10  # of nDCG
SHARED: Final = 256  # columns in which the best of all depths of a query are looked for first
BLOCK_BYTES: Final = 8 * 2**20  # of one block of scores: with its weights it stays in cache
SHORT: Final = 10  # documents at the top that are looked at closely
LONG: Final = 50  # and from farther away
TEMPERATURE: Final = 0.05  # of softmaxes of scores: the listwise mass, the entropies

STATISTICS: Final = (
    *("first", "gap to the second", "gap to the tenth"),
    *("mean of ten", "spread of ten", "entropy of ten"),
    *("mean of fifty", "spread of fifty", "entropy of fifty"),
    *("overlap with the mean", "same first"),
)
"""Names, in order; see `ranking_statistics`."""


class Rankings(NamedTuple):
    """Of the rankings of B queries through D depths, on the index's device."""

    ndcg: Tensor  # (B, D) in [0, 1], nDCG@10
    listwise: Tensor  # (B, D) in [0, 1], mass of softmax(cosine / 0.05) on relevant documents
    statistics: Tensor  # (B, 11 D), see `ranking_statistics`; (B, 0) where they are not observed


class _Block(NamedTuple):
    """Scores (b, D, C) of some queries, how their columns break ties, and the columns' grades."""

    scores: Tensor
    tie_rank: Tensor  # (C,)
    gains: Tensor  # (b, C), 0 where a document is not relevant


@torch.no_grad()
def rankings_of_depths(
    index: DocumentIndex,
    queries: Tensor,
    relevant: Sequence[Relevant],
    candidates: Sequence[Integers] | None = None,
    found: Sequence[Integers] | None = None,
    observe: bool = True,
) -> Rankings:
    """How good the ranking through every depth is, and what it looks like.

    Args:
        index: the documents.
        queries: (B, D, h) float32, each depth's embedding of each query, of unit length or zero.
        relevant: per query; the ideal of nDCG counts all of them, candidates or not.
        candidates: per query the positions of the documents to rank; None ranks the whole index.
        found: those that no judgment has put there, of which the statistics are; None are all.
        observe: whether there shall be statistics.

    Raises:
        InputError: embeddings that are not finite.
    """
    count, depths, _ = queries.shape
    ndcg, listwise = (torch.empty(count, depths, device=index.device) for _ in range(2))
    kinds = len(STATISTICS) if observe else 0
    statistics = torch.empty(count, kinds * depths, device=index.device)
    at_once = observe and found is None
    for some, block in _blocks(index, queries, relevant, candidates):
        values, columns = _best(block, LONG if at_once else CUTOFF)
        if at_once:
            statistics[some] = _observed(block, values, columns)
        ndcg[some] = ndcg_of_columns(columns, block.gains, relevant[some])
        # The weights, which take the place of the scores, are read for relevant documents alone; a
        # query without candidates has no such document, and its weights are NaN.
        weights = block.scores.mul_(1 / TEMPERATURE).softmax(-1)
        row, column = (block.gains > 0).nonzero().unbind(1)
        mass = weights.new_zeros(weights.shape[:2]).index_add_(0, row, weights[row, :, column])
        listwise[some] = mass.clamp_(0, 1)
    if observe and found is not None:
        for some, block in _blocks(index, queries, relevant, found):
            statistics[some] = _observed(block, *_best(block, LONG))
    return Rankings(ndcg, listwise, statistics)


def _blocks(
    index: DocumentIndex,
    queries: Tensor,
    relevant: Sequence[Relevant],
    candidates: Sequence[Integers] | None,
) -> Iterator[tuple[slice, _Block]]:
    """Queries (B, D, h) in blocks of at most `BLOCK_BYTES` of scores, at least one query each."""
    depths, width = queries.shape[1:]
    if candidates is None:
        floats = depths * len(index)  # of one query
    else:
        floats = max(map(len, candidates), default=0) * (width + 2 * depths)
    for some in steps(len(queries), BLOCK_BYTES // (4 * max(floats, 1))):
        asked = queries[some].to(index.device, torch.float32)
        check_finite(asked, "query")
        judged = relevant[some]
        if candidates is None:
            scores = index.scores(asked.reshape(-1, width)).view(len(asked), depths, -1)
            graded = np.zeros((len(asked), len(index)), np.float32)
            for row, (documents, grades, own) in enumerate(judged):
                scores[row, :, own : own + 1] = -torch.inf  # of -1 it is nothing
                graded[row, documents] = grades
            ties = index.tie_rank
        else:
            # In tie order, so that columns break ties by themselves; one column at least.
            lists = [index.in_tie_order(one) for one in candidates[some]]
            listed = padded(lists, width=max(1, *map(len, lists)))
            listed[listed == np.array([[one.own] for one in judged])] = -1
            scores, graded = index.candidate_scores(asked, listed), gains(listed, judged)
            ties = torch.arange(listed.shape[1], device=index.device)
        yield some, _Block(scores, ties, torch.from_numpy(graded).to(index.device))


def _best(block: _Block, k: int) -> tuple[Tensor, Tensor]:
    """The k best of every depth's scores (b, D, C), in order: values and columns (b, D, k)."""
    scores, tie_rank, _ = block
    b, depths, width = scores.shape
    flat = scores.flatten(0, 1)
    if depths == 1 or width < 4 * SHARED:
        values, columns = top(flat, tie_rank, k)
    else:
        # Depths mostly agree on what is good: seek in the columns that are best for any of them.
        highest, common = scores.amax(1).topk(SHARED + 1)
        common = common[:, :SHARED]
        listed = scores.gather(2, common[:, None].expand(-1, depths, -1)).flatten(0, 1)
        common = common.repeat_interleave(depths, 0)
        values, at = top(listed, tie_rank[common], k)
        columns = common.gather(1, at)
        rows = (values[:, -1] <= highest[:, -1].repeat_interleave(depths)).nonzero()[:, 0]
        if len(rows):
            values[rows], columns[rows] = top(flat[rows], tie_rank, k)
    return values.view(b, depths, -1), columns.view(b, depths, -1)


def _observed(block: _Block, scores: Tensor, columns: Tensor) -> Tensor:
    """Statistics of the rankings of a block, from the top of each."""
    # The cosine with the mean embedding is the mean of the cosines, up to a factor.
    _, of_mean = top(block.scores.mean(1), block.tie_rank, SHORT)
    return ranking_statistics(scores, columns, of_mean)


def gains(documents: Integers, relevant: Sequence[Relevant]) -> NDArray[np.float32]:
    """Grade (B, C) of each of the documents (B, C) listed, 0 where it is not relevant."""
    gains = np.zeros(documents.shape, np.float32)
    for row, one in enumerate(relevant):
        _, columns, judged = np.intersect1d(documents[row], one.documents, return_indices=True)
        gains[row, columns] = one.grades[judged]
    return gains


def ndcg_of_columns(columns: Tensor, gains: Tensor, relevant: Sequence[Relevant]) -> Tensor:
    """NDCG@10 (B, D) as trec_eval's ndcg_cut: linear gain, discount log2(rank + 1).

    Source: Järvelin and Kekäläinen, TOIS 20(4), 2002, as implemented in trec_eval's m_ndcg_cut.c.

    The columns (B, D, k) are those of the best documents, best first; `gains` (B, C) their grades.
    The ideal is that of all relevant documents; without any the result is 0.
    """
    b, depths, _ = columns.shape
    columns = columns[..., :CUTOFF]
    ranked = gains.gather(1, columns.reshape(b, -1)).view(b, depths, -1)  # (B, D, 10)
    ranks = torch.arange(2, ranked.shape[-1] + 2, device=columns.device)
    # float64 as in trec_eval, so that a perfect ranking is 1 and not 0.99999994
    dcg = (ranked.double() / torch.log2(ranks.double())).sum(-1)
    best = [np.sort(one.grades.astype(np.float64))[::-1][:CUTOFF] for one in relevant]
    ideals = [float((one / np.log2(np.arange(2, len(one) + 2))).sum()) for one in best]
    ideal = torch.tensor(ideals, dtype=torch.float64, device=columns.device)[:, None]
    return torch.where(ideal > 0, dcg / ideal, 0.0).clamp_(0, 1).float()


def ranking_statistics(scores: Tensor, documents: Tensor, mean_documents: Tensor) -> Tensor:
    """The numbers of `STATISTICS` for every depth, all depths of one kind side by side.

    - first: the highest cosine.
    - gap to the second, to the tenth: how far the highest is above these.
    - mean, spread: of the ten and the fifty highest cosines; spread is the standard deviation.
    - entropy: of softmax(cosine / 0.05) over these, divided by the logarithm of their number; 1
      where all are equal, and 0 for one document.
    - overlap with the mean: share of the first ten that the depths' mean embedding has there too.
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
    kinds = [first[..., 0]]
    for place in (2, SHORT):
        last = there[..., :place].sum(-1, keepdim=True).clamp(min=1) - 1  # (b, D, 1)
        kinds.append((first - scores.gather(-1, last))[..., 0])
    for length in (SHORT, LONG):
        kinds += _spread(scores[..., :length], there[..., :length])
    ours, theirs = documents[:, :, :SHORT, None], mean_documents[:, None, None, :SHORT]
    common = (ours == theirs).any(-1) & there[..., :SHORT]  # (b, D, 10)
    kinds.append(common.sum(-1) / there[..., :SHORT].sum(-1).clamp(min=1))
    leaders = documents[..., 0]
    same = (leaders[:, :, None] == leaders[:, None]).double().mean(-1)
    kinds.append(torch.where(there[..., 0], same, 0.0))
    return torch.cat(kinds, dim=1).float()


def _spread(scores: Tensor, there: Tensor) -> list[Tensor]:
    """Mean, standard deviation and softmax entropy (b, D) of scores (b, D, k) that are there."""
    count = there.sum(-1).clamp(min=1)
    mean = scores.sum(-1) / count
    deviation = torch.where(there, scores - mean[..., None], 0.0)
    # Of softmax p: -sum p log p = log(sum exp z) - sum p z, with the highest z at 0.
    z = torch.where(there, (scores - scores[..., :1]) / TEMPERATURE, -torch.inf)
    weights = torch.where(there, z.exp(), 0.0)
    total = weights.sum(-1).clamp(min=1)
    entropy = total.log() - torch.where(there, weights * z, 0.0).sum(-1) / total
    return [mean, (deviation.square().sum(-1) / count).sqrt(), entropy / count.clamp(min=2).log()]
