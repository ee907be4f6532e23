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

from maw_gym.attention.products import linear
from maw_gym.distributed import from_all, own_range, processes
from maw_gym.retrieval.documents import (
    EMPTY_SCORE,
    DocumentIndex,
    Integers,
    check_finite,
    padded,
    steps,
    tie_keys,
)

MARGIN: Final = 8  # documents kept beyond the k wanted
CLOSE: Final = 1e-5  # matrix products err by less, equal vectors included
CLOSE_QUERIES: Final = 32  # looked at again at once
LISTED: Final = 4096  # documents of a query whose embeddings are gathered at once


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
    """The k best documents of queries (B, h), in the order in which trec_eval puts them.

    Each query's `candidates`, a `part` of the documents, or all are ranked.
    """
    check_finite(queries, "query")
    queries = queries.to(index.device, torch.float32)
    if candidates is None:
        start, stop, _ = (part or slice(None)).indices(len(index))
        return _rank_part(index, queries, k, start, stop)
    k = min(k, len(index))
    lists = [np.unique(listed) for listed in candidates]
    listed = torch.from_numpy(padded(lists, -1, max([k, *map(len, lists)])))
    return _rank_listed(index, queries, listed.to(index.device), k)


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
    """`rank` of the whole index by all processes, each searching a part of the documents."""
    own = rank(index, queries, k, part=own_range(len(index)))
    if processes() == 1:
        return own
    parts = from_all(Ranking(*(values.cpu() for values in own)))
    return merged([Ranking(*(v.to(index.device) for v in one)) for one in parts], index, k)


def merged(rankings: Sequence[Ranking], index: DocumentIndex, k: int) -> Ranking:
    """One ranking of the k best from those of parts of the documents, for the same queries."""
    scores, documents = (torch.cat(values, dim=1) for values in zip(*rankings, strict=True))
    order = tie_keys(scores, index.tie_rank[documents]).topk(min(k, scores.shape[1])).indices
    scores, documents = scores.gather(1, order), documents.gather(1, order)
    return Ranking(scores, documents.masked_fill(scores.isneginf(), -1))


def _rank_listed(index: DocumentIndex, queries: Tensor, documents: Tensor, k: int) -> Ranking:
    """The k best of documents (B, C) by sums in float64; -1 goes last."""
    listed = documents.cpu().numpy()
    numbers = 2**18 if index.device.type == "cpu" else 2**25  # at once; a GPU wants few launches
    parts = []
    for columns in steps(listed.shape[1], LISTED):
        part = documents[:, columns]
        scores = torch.empty(part.shape, device=index.device)
        for rows in steps(len(part), numbers // max(part.shape[1] * queries.shape[1], 1)):
            scores[rows] = index.exact_scores(queries[rows], listed[rows, columns])
        parts.append(Ranking(scores, part))
    return merged(parts, index, k)


def _rank_part(index: DocumentIndex, queries: Tensor, k: int, start: int, stop: int) -> Ranking:
    """The k best of the documents from `start` to `stop`."""
    k, kept = (min(wanted, stop - start) for wanted in (k, k + MARGIN))
    scores = torch.full((len(queries), kept), -torch.inf, device=index.device)
    documents = torch.full(scores.shape, -1, device=index.device)
    for some, first, block in _score_blocks(index, queries, start, stop):
        # Few queries find something better in a block, but for the first ones.
        rows = (block.amax(1) > scores[some, -1]).nonzero()[:, 0]
        best, at = torch.cat([scores[some][rows], block[rows]], 1).topk(kept)
        old = documents[some][rows].gather(1, at.clamp(max=kept - 1))
        scores[some][rows] = best
        documents[some][rows] = torch.where(at < kept, old, at - kept + first)
    if not k:
        return Ranking(scores, documents)
    found = _rank_listed(index, queries, documents, k)
    if kept < stop - start:
        # Whoever was dropped has at most the last score kept: look again where that is too near.
        last = found.scores[:, -1]
        near = ((last <= scores[:, -1] + CLOSE) & last.isfinite()).nonzero()[:, 0]
        for some in steps(len(near), CLOSE_QUERIES):
            _rank_close(index, queries, near[some], found, start, stop)
    return found


def _rank_close(
    index: DocumentIndex, queries: Tensor, rows: Tensor, found: Ranking, start: int, stop: int
) -> None:
    """Rank the part again for some rows of the queries, with everything near their last place."""
    floor = found.scores[rows, -1:] - 2 * CLOSE
    near = [
        (block >= floor).nonzero() + torch.tensor([0, first], device=index.device)
        for _, first, block in _score_blocks(index, queries[rows], start, stop)
    ]
    places = torch.cat(near)
    for at, row in enumerate(rows.tolist()):
        listed = places[places[:, 0] == at, 1]
        best = _rank_listed(index, queries[row, None], listed[None], found.scores.shape[1])
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
        for some in steps(len(queries), high):
            block = linear(queries[some], vectors)
            block[:, empty] = EMPTY_SCORE
            if index.hidden is not None:
                block[:, index.hidden[first : first + len(vectors)]] = -torch.inf
            yield some, first, block
