"""DocumentIndex: documents to rank, equal ones with equal scores, in trec_eval's order of those.

trec_eval orders by score descending, then by document id DEscending (strcmp on UTF-8 bytes). A
document's `tie_of` is its place in that second order: of equal scores the smaller goes first.

Notation: N documents, h embedding width, B queries, C documents listed for a query.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from copy import copy
from functools import cached_property
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maw_gym.attention.products import linear
from maw_gym.corpora.collection import OWN, QuerySet
from maw_gym.errors import InputError

EMPTY_SCORE: Final = -2.0  # of a document without text: below every cosine, and finite
COMPARED: Final = 1024  # rows compared at once: they stay in a core's cache

Integers = NDArray[np.int64]


class Relevant(NamedTuple):
    """Relevant documents of one query."""

    documents: Integers  # (r,) positions in the index
    grades: NDArray[np.float32]  # (r,) above 0
    own: int = -1  # the document that is the query itself and not to be ranked; -1 is none


class DocumentIndex:
    """Documents of embeddings (N, h) of unit length or zero, held as they are.

    They are scored on `device`, or where the embeddings lie.
    """

    def __init__(
        self, doc_ids: Sequence[str], embeddings: Tensor, device: torch.device | str | None = None
    ) -> None:
        shape = tuple(embeddings.shape)
        if len(shape) != 2 or shape[0] != len(doc_ids):
            raise ValueError(f"{len(doc_ids)} ids for embeddings of shape {shape}")
        check_ids(doc_ids)
        self.doc_ids = tuple(doc_ids)
        self.vectors = embeddings.detach()
        self.device = torch.device(device) if device is not None else embeddings.device
        self.tie_order = trec_order(self.doc_ids)  # (N,) documents
        self.tie_of = np.argsort(self.tie_order)  # (N,) by document
        # (N,) the document that each equals, and those without text
        self.first_of, self.empty = equal_documents(self.vectors, self.device)
        copies = np.flatnonzero(self.first_of != np.arange(len(self)))
        self._copies = torch.from_numpy(copies).to(self.device)
        self._firsts = torch.from_numpy(self.first_of[copies]).to(self.device)
        self.hidden: Tensor | None = None  # (N,) bool, those that are not to be found

    def __len__(self) -> int:
        return len(self.doc_ids)

    @cached_property
    def tie_rank(self) -> Tensor:
        """`tie_of` (N,) on the index's device."""
        return torch.from_numpy(self.tie_of).to(self.device)

    @cached_property
    def positions(self) -> dict[str, int]:
        """Position of each id."""
        return {doc_id: row for row, doc_id in enumerate(self.doc_ids)}

    def places(self, doc_ids: Iterable[str]) -> Integers:
        """Positions of documents; an InputError where an id is unknown."""
        try:
            return np.array([self.positions[doc_id] for doc_id in doc_ids], np.int64)
        except KeyError as unknown:
            raise InputError(f"no document {unknown} in this index") from None

    def only(self, documents: Integers) -> "DocumentIndex":
        """The same index, in which `search.rank` finds no other documents than these."""
        shown = copy(self)
        shown.hidden = torch.ones(len(self), dtype=torch.bool, device=self.device)
        shown.hidden[torch.from_numpy(documents).to(self.device)] = False
        return shown

    def relevant(self, queries: QuerySet) -> list[Relevant]:
        """The relevant documents of every query: graded above 0 and in this index."""
        found = []
        for grades, own in zip(queries.relevance, self.own_documents(queries), strict=True):
            kept = [(d, g) for d, g in grades.items() if g > 0 and d in self.positions]
            documents = np.array([self.positions[d] for d, _ in kept], np.int64)
            found.append(Relevant(documents, np.array([g for _, g in kept], np.float32), int(own)))
        return found

    def own_documents(self, queries: QuerySet) -> Integers:
        """Position (B,) of the document that each query is itself, -1 where there is none."""
        own = [[name for name, grade in one.items() if grade == OWN] for one in queries.relevance]
        return np.array([self.positions.get(one[0], -1) if one else -1 for one in own], np.int64)

    def in_tie_order(self, documents: Integers) -> Integers:
        """Each of the documents once, in trec_eval's order of equal scores."""
        return self.tie_order[np.unique(self.tie_of[documents])]

    def scores(self, queries: Tensor) -> Tensor:
        """Cosines (B, N) of queries (B, h) on the index's device with all documents."""
        scores = linear(queries, self.vectors.to(self.device, queries.dtype))
        scores[:, self.empty] = EMPTY_SCORE
        if len(self._copies):
            scores[:, self._copies] = scores[:, self._firsts]
        return scores

    def candidate_scores(self, queries: Tensor, documents: Integers) -> Tensor:
        """Cosines (B, D, C) of queries (B, D, h) with documents (B, C) of each; -1 scores -inf."""
        vectors = self.first_of[documents]
        sources = np.empty_like(documents)  # the first in the list of those that are equal
        for row, listed in enumerate(vectors):
            _, first, inverse = np.unique(listed, return_index=True, return_inverse=True)
            sources[row] = first[inverse]
        source = torch.from_numpy(sources).to(self.device)[:, None].expand(-1, queries.shape[1], -1)
        scores = torch.bmm(queries, self._rows(vectors).mT).gather(2, source)
        return self._marked(scores, documents)

    def exact_scores(self, queries: Tensor, documents: Integers) -> Tensor:
        """Cosines (B, C) in float64 of queries (B, h) with documents (B, C); -1 scores -inf."""
        vectors = self._rows(self.first_of[documents]).double()
        scores = (vectors * queries[:, None].double()).sum(-1).float()
        return self._marked(scores[:, None], documents)[:, 0]

    def _rows(self, documents: Integers) -> Tensor:
        """Vectors (*, h) float32 of documents (*) on the index's device."""
        chosen = torch.from_numpy(documents).to(self.vectors.device)
        return self.vectors[chosen].to(self.device, torch.float32)

    def _marked(self, scores: Tensor, documents: Integers) -> Tensor:
        """`scores` (B, D, C) with those of empty, hidden and absent documents put right."""
        listed = torch.from_numpy(documents).to(self.device)[:, None]
        scores.masked_fill_(torch.isin(listed, self.empty), EMPTY_SCORE)
        if self.hidden is not None:
            scores.masked_fill_(self.hidden[listed], -torch.inf)
        return scores.masked_fill_(listed < 0, -torch.inf)


def check_ids(doc_ids: Sequence[str]) -> None:
    """Refuse no ids at all, and one that is given twice."""
    if not doc_ids:
        raise InputError("0 document ids; give one document at least")
    if len(set(doc_ids)) < len(doc_ids):
        name, count = Counter(doc_ids).most_common(1)[0]
        raise InputError(f"document ids must differ; {name!r} is given {count} times")


def trec_order(doc_ids: Sequence[str]) -> Integers:
    """Positions (N,) of the ids in the order in which trec_eval puts equal scores."""
    # UTF-8 bytes, as strcmp compares them; lone surrogates may come from a damaged collection.
    keys = [doc_id.encode("utf-8", "surrogatepass") for doc_id in doc_ids]
    return np.array(sorted(range(len(keys)), key=keys.__getitem__, reverse=True), np.int64)


def padded(
    lists: Sequence[NDArray[Any]], fill: float = -1, width: int | None = None
) -> NDArray[Any]:
    """Lists as the rows of an array; None is the width of the longest."""
    width = max(map(len, lists), default=0) if width is None else width
    rows = np.full((len(lists), width), fill)
    for row, one in zip(rows, lists, strict=True):
        row[: len(one)] = one
    return rows


def tie_keys(scores: Tensor, tie_rank: Tensor) -> Tensor:
    """Whole numbers in the order of scores (*, C) float32, of equal ones by `tie_rank` (*, C)."""
    bits = (scores + 0.0).view(torch.int32)  # -0 is 0
    ordered = bits ^ (bits >> 31 & 0x7FFF_FFFF)  # of two negative floats the larger has fewer bits
    return (ordered.long() << 32) - tie_rank


def top(scores: Tensor, tie_rank: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of scores (R, C), equal ones by `tie_rank` (C,) or (R, C); their columns."""
    values, columns = scores.topk(min(k + 1, scores.shape[1]))
    columns = columns[:, :k].contiguous()
    # Of scores that are equal topk takes any, in whatever order.
    tied = (values[:, 1:] == values[:, :-1]) & values[:, 1:].isfinite()
    rows = tied.any(1).nonzero()[:, 0]
    if len(rows):
        keys = tie_keys(scores[rows], tie_rank.expand_as(scores)[rows])
        columns[rows] = keys.topk(columns.shape[1]).indices
    return scores.gather(1, columns), columns


def equal_documents(vectors: Tensor, device: torch.device | str = "cpu") -> tuple[Integers, Tensor]:
    """For each of the vectors (N, h) the first that equals it (N,), and which of them are zero."""
    count, width = vectors.shape
    lines = torch.from_numpy(np.random.default_rng(0).standard_normal((3, width))).to(device)
    places, empty = [], []
    for some in steps(count, COMPARED if lines.device.type == "cpu" else 64 * COMPARED):
        block = vectors[some].to(device).double()
        # No matrix product, which may round equal rows otherwise.
        found = torch.stack([(block * line).sum(1) for line in lines])
        check_finite(found, "document")
        places.append(found.cpu())
        empty.append(some.start + (~block.any(1)).nonzero()[:, 0])
    return first_of_same(torch.cat(places, dim=1).numpy()), torch.cat(empty)


def first_of_same(keys: NDArray[np.float64]) -> Integers:
    """For each column of keys (K, N) the first that is the same, (N,)."""
    order = np.lexsort(keys)  # stable: of columns that are the same the first comes first
    leads = np.append(True, (keys[:, order[1:]] != keys[:, order[:-1]]).any(0))
    first = np.empty_like(order)
    first[order] = order[leads][leads.cumsum() - 1]
    return first


def steps(count: int, step: int) -> Iterator[slice]:
    """`count` things in portions of at most `step`, at least one each."""
    for start in range(0, count, max(1, step)):
        yield slice(start, min(start + max(1, step), count))


def check_finite(embeddings: Tensor, what: str) -> None:
    """Refuse embeddings with a NaN or an infinity; `what` names them in the message."""
    if not embeddings.isfinite().all():
        raise InputError(f"{what} embeddings must be finite; the encoder has probably diverged")
