"""Exact search: the best documents of every query, block by block, in trec_eval's order.

Notation: N documents, B queries, h embedding width, k documents wanted, m kept for a closer look.

Matrix products find who may be among the best; sums in float64 say in which order. So the result is
the same for blocks of any size, for parts of the documents searched apart and merged, and for any
number of processes. Beside the embeddings no more is held than one block of scores and B x m.
"""

from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from maw_gym.attention.products import linear
from maw_gym.distributed import from_all, own_range, processes
from maw_gym.retrieval.documents import EMPTY_SCORE, DocumentIndex, Integers, check_finite, steps

MARGIN: Final = 8  # documents kept beyond the k wanted
CLOSE: Final = 1e-5  # matrix products err by less, equal vectors included
CLOSE_QUERIES: Final = 64  # looked at again at once
GROUPS: Final = 32  # columns of a block that are looked at through their maximum


class Ranking(NamedTuple):
    """Top of a ranking: scores (B, k) descending, and documents (B, k) as positions in the index.

    Where a query has fewer than k candidates, the rest is -inf and -1.
    """

    scores: Tensor
    documents: Tensor


@torch.no_grad()
def rank(
    index: DocumentIndex,
    queries: Tensor,
    k: int,
    candidates: Sequence[Integers] | None = None,
    part: slice | None = None,
) -> Ranking:
    """The k best documents of every query, in the order in which trec_eval puts them."""
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if candidates is not None and len(candidates) != len(queries):
        raise ValueError(f"{len(candidates)} lists of candidates for {len(queries)} queries")
    check_finite(queries, "query")
    queries = queries.to(index.device, torch.float32)
    if candidates is not None:
        return _rank_listed(index, queries, min(k, len(index)), candidates)
    start, stop, _ = (part or slice(None)).indices(len(index))
    return _rank_part(index, queries, k, start, stop)


def rank_without(
    index: DocumentIndex,
    queries: Tensor,
    k: int,
    own: Integers,
    candidates: Sequence[Integers] | None = None,
) -> Ranking:
    """`rank` without the documents `own` (B,) that queries are themselves, by all processes."""
    more = k + int((own >= 0).any())
    if candidates is None:
        found = rank_together(index, queries, more)
    else:
        found = rank(index, queries, more, candidates)
    if more == k:
        return found
    places = torch.from_numpy(own).to(found.documents.device)[:, None]
    left_out = (found.documents == places) & (places >= 0)
    order = left_out.long().argsort(dim=1, stable=True)[:, :k]
    scores = found.scores.masked_fill(left_out, -torch.inf).gather(1, order)
    return Ranking(scores, found.documents.masked_fill(left_out, -1).gather(1, order))


def rank_together(index: DocumentIndex, queries: Tensor, k: int) -> Ranking:
    """`rank` of the whole index by all processes together, each searching a part of the
    documents.
    """
    own = rank(index, queries, k, part=own_range(len(index)))
    if processes() == 1:
        return own
    parts = from_all(Ranking(*(values.cpu() for values in own)))
    device = index.device
    rankings = [Ranking(*(values.to(device) for values in part)) for part in parts]
    return merged(rankings, index.tie_rank, k)


def merged(rankings: Sequence[Ranking], tie_rank: Tensor, k: int) -> Ranking:
    """One ranking of the k best from those of parts of the documents, for the same queries."""
    scores, documents = (torch.cat(values, dim=1) for values in zip(*rankings, strict=True))
    return _ordered(Ranking(scores, documents), tie_rank, k)


def _rank_listed(
    index: DocumentIndex, queries: Tensor, width: int, candidates: Sequence[Integers]
) -> Ranking:
    """The best of each query's own list."""
    scores = torch.full((len(queries), width), -torch.inf, device=index.device)
    documents = torch.full((len(queries), width), -1, dtype=torch.int64, device=index.device)
    longest = max(map(len, candidates), default=0)
    for some in index.gathered(longest, len(queries)):
        lists = [np.unique(listed) for listed in candidates[some]]
        padded = np.full((len(lists), max(map(len, lists))), -1)
        for row, listed in enumerate(lists):
            padded[row, : len(listed)] = listed
        found = Ranking(
            index.exact_scores(queries[some], padded), torch.from_numpy(padded).to(index.device)
        )
        best = _ordered(found, index.tie_rank, width)
        scores[some, : best.scores.shape[1]] = best.scores
        documents[some, : best.scores.shape[1]] = best.documents
    return Ranking(scores, documents)


def _rank_part(index: DocumentIndex, queries: Tensor, k: int, start: int, stop: int) -> Ranking:
    """The k best of the documents from `start` to `stop`."""
    width, kept = (min(wanted, stop - start) for wanted in (k, k + MARGIN))
    scores = torch.full((len(queries), kept), -torch.inf, device=index.device)
    documents = torch.full((len(queries), kept), -1, dtype=torch.int64, device=index.device)
    for some, first, block in _score_blocks(index, queries, start, stop):
        _keep_best(scores[some], documents[some], block, first)
    found = Ranking(scores[:, :width].clone(), documents[:, :width].clone())
    for some in index.gathered(kept, len(queries)):
        exact = index.exact_scores(queries[some], documents[some].cpu().numpy())
        best = _ordered(Ranking(exact, documents[some]), index.tie_rank, width)
        found.scores[some], found.documents[some] = best
    if kept < stop - start:
        # Whoever was dropped has at most the last score kept: look again where that is too near.
        close = (found.scores[:, -1] <= scores.amin(1) + CLOSE).nonzero()[:, 0]
        _rank_close(index, queries, close, found, start, stop)
    return found


def _rank_close(
    index: DocumentIndex, queries: Tensor, rows: Tensor, found: Ranking, start: int, stop: int
) -> None:
    """Rank the part again for some `rows` of the queries, with everything near their last place."""
    width = found.scores.shape[1]
    for some in steps(len(rows), CLOSE_QUERIES):
        chosen = rows[some]
        floor = found.scores[chosen, -1:] - 2 * CLOSE
        near: list[list[Tensor]] = [[] for _ in chosen]
        for inner, first, block in _score_blocks(index, queries[chosen], start, stop):
            for row, scores in enumerate(block >= floor[inner], inner.start):
                near[row].append(scores.nonzero()[:, 0] + first)
        for row, pieces in zip(chosen.tolist(), near, strict=True):
            listed = torch.cat(pieces)
            exact = torch.cat(
                [
                    index.exact_scores(queries[row, None], listed[None, some].cpu().numpy())
                    for some in index.gathered(1, len(listed))
                ],
                dim=1,
            )
            best = _ordered(Ranking(exact, listed[None]), index.tie_rank, width)
            found.scores[row], found.documents[row] = best.scores[0], best.documents[0]


def _score_blocks(
    index: DocumentIndex, queries: Tensor, start: int, stop: int
) -> Iterator[tuple[slice, int, Tensor]]:
    """Which queries, the first document, and cosines by matrix products."""
    # What stays in a core's cache; a GPU wants few launches.
    high, wide = (1024, 2048) if index.device.type == "cpu" else (4096, 32_768)
    for first in range(start, stop, wide):
        vectors = index.vectors[first : min(first + wide, stop)].to(index.device, torch.float32)
        empty = index.empty[(index.empty >= first) & (index.empty < first + len(vectors))] - first
        missing = -len(vectors) % GROUPS
        for some in steps(len(queries), high):
            block = linear(queries[some], vectors)
            block[:, empty] = EMPTY_SCORE
            yield some, first, pad(block, (0, missing), value=-torch.inf) if missing else block


def _keep_best(scores: Tensor, documents: Tensor, block: Tensor, first: int) -> None:
    """Put scores (R, W) of the documents from `first` on in the place of worse ones (R, m)."""
    worst = scores.amin(1, keepdim=True)
    if worst.isneginf().all() and block.shape[1] >= scores.shape[1]:  # nothing is kept yet
        best, at = block.topk(scores.shape[1])
        documents.copy_(torch.where(best.isneginf(), -1, at + first))
        scores.copy_(best)
        return
    # Most blocks have hardly anything to give: look at the maxima of columns before at columns.
    columns = block.view(len(block), GROUPS, -1)  # (R, 32, W / 32)
    rows, group = (columns.amax(1) > worst).nonzero(as_tuple=True)
    if not len(rows):
        return
    values = columns[rows, :, group]  # (hits, 32)
    hit, line = (values > worst[rows]).nonzero(as_tuple=True)
    rows, group, values = rows[hit], group[hit], values[hit, line]  # rows stay ascending
    counts = torch.bincount(rows, minlength=len(block))
    place = torch.arange(len(rows), device=rows.device) - (counts.cumsum(0) - counts)[rows]
    shape = (len(block), int(counts.max()))
    fresh = torch.full(shape, -torch.inf, device=block.device)
    fresh[rows, place] = values
    which = torch.full(shape, -1, dtype=torch.int64, device=block.device)
    which[rows, place] = first + line * columns.shape[2] + group
    best, at = torch.cat([scores, fresh], 1).topk(scores.shape[1])
    documents.copy_(torch.cat([documents, which], 1).gather(1, at))
    scores.copy_(best)


def _ordered(ranking: Ranking, tie_rank: Tensor, k: int) -> Ranking:
    """The k best by score descending, equal ones by `tie_rank`; -1 goes last."""
    scores, documents = ranking
    ties = tie_rank[documents].masked_fill(documents < 0, len(tie_rank))
    by_tie = ties.argsort(1)
    best, at = scores.gather(1, by_tie).sort(dim=1, descending=True, stable=True)
    return Ranking(best[:, :k], documents.gather(1, by_tie.gather(1, at))[:, :k])
