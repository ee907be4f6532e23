"""DocumentIndex: documents to rank, equal ones scored once, in trec_eval's order of equal scores.

Notation: N documents, U distinct vectors of theirs, h embedding width, R rows of queries.

trec_eval orders by score descending, then by document id DEscending (strcmp on UTF-8 bytes). A
`tie_rank` is a document's place in that second order: of equal scores the smaller goes first.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from maw_gym.corpora.records import QuerySet

EMPTY_SCORE: Final = -2.0  # of a document without text: below every cosine, and finite
SAME: Final = 1e-6  # documents nearer than this are one vector: rounding must not order equal texts

Integers = NDArray[np.int64]


class Relevant(NamedTuple):
    """Relevant documents of one query: positions in the index (r,) and grades (r,) above 0."""

    documents: Integers
    grades: NDArray[np.float32]


class DocumentIndex:
    """Documents to be ranked whole or in candidate lists, with ties broken as trec_eval does.

    Equal documents must tie exactly, but matrix products round differently by column, and encoders
    by batch. So vectors within 1e-6 of each other (L2) are one vector, scored once.

    Args:
        doc_ids: N different ids.
        embeddings: (N, h) float32, rows of unit length, or zero for a document without text.
        device: where scores are computed; None is where `embeddings` lies.

    Raises:
        ValueError: shapes that do not fit, an id given twice, or a value that is not finite.
    """

    def __init__(
        self, doc_ids: Sequence[str], embeddings: Tensor, device: torch.device | str | None = None
    ) -> None:
        if embeddings.ndim != 2 or len(embeddings) != len(doc_ids) or not len(doc_ids):
            raise ValueError(
                f"{len(doc_ids)} ids for embeddings of shape {tuple(embeddings.shape)}"
            )
        check_finite(embeddings, "document")
        self.doc_ids = tuple(doc_ids)
        self.positions = {doc_id: row for row, doc_id in enumerate(self.doc_ids)}
        if len(self.positions) != len(self.doc_ids):
            raise ValueError("document ids must differ; one is given twice")
        self.device = torch.device(device) if device is not None else embeddings.device
        self.tie_order = trec_order(self.doc_ids)  # (N,) documents
        self.tie_of = np.argsort(self.tie_order)  # (N,) by document
        # + 0.0 turns -0.0 into 0.0, which has other bytes.
        rows = embeddings.detach().to("cpu", torch.float32).numpy() + np.float32(0)
        first, self.vector_of = distinct_rows(rows, SAME)  # by document
        self.vectors = torch.from_numpy(rows[first]).to(self.device)  # (U, h)
        self.empty = (self.vectors == 0).all(1)  # (U,), at most one is True
        # Columns of the whole collection: each distinct vector's first document, then the copies.
        copies = np.setdiff1d(np.arange(len(rows)), first)
        columns = np.concatenate([first, copies])
        self.column_of = np.argsort(columns)  # (N,) by document
        self.columns = torch.from_numpy(columns).to(self.device)  # (N,) documents
        self.tie_rank = torch.from_numpy(self.tie_of[columns]).to(self.device)  # (N,) by column
        self.copied = torch.from_numpy(self.vector_of[copies]).to(self.device)  # (N - U,)

    def __len__(self) -> int:
        return len(self.doc_ids)

    def relevant(self, queries: QuerySet) -> list[Relevant]:
        """The relevant documents of every query: graded above 0 and in this index."""
        found = []
        for grades in queries.relevance:
            kept = {
                self.positions[d]: g for d, g in grades.items() if g > 0 and d in self.positions
            }
            found.append(
                Relevant(np.array(list(kept), np.int64), np.array(list(kept.values()), np.float32))
            )
        return found

    def scores(self, queries: Tensor) -> Tensor:
        """Cosines (R, N) of queries (R, h) on this device; `columns` names the documents."""
        distinct = len(self.vectors)
        scores = torch.empty(len(queries), len(self), device=self.device)
        torch.mm(queries, self.vectors.T, out=scores[:, :distinct])
        scores[:, self.empty.nonzero()[:, 0]] = EMPTY_SCORE
        if distinct < len(self):
            scores[:, distinct:] = scores[:, self.copied]
        return scores

    def candidate_scores(self, queries: Tensor, documents: Integers) -> Tensor:
        """Cosines (b, D, C) of queries (b, D, h) on this device with their own lists of documents.

        Args:
            queries: D embeddings of each of b queries.
            documents: (b, C), -1 where a list is shorter: scored -inf.
        """
        vectors = self.vector_of[documents]
        # Equal vectors take the score of the first of them, see the class.
        firsts = np.empty_like(documents)
        for row, one in enumerate(vectors):
            _, first, place = np.unique(one, return_index=True, return_inverse=True)
            firsts[row] = first[place]
        chosen = torch.from_numpy(vectors).to(self.device)
        source = torch.from_numpy(firsts).to(self.device)[:, None].expand(-1, queries.shape[1], -1)
        scores = torch.bmm(queries, self.vectors[chosen].mT).gather(2, source)
        scores.masked_fill_(self.empty[chosen][:, None], EMPTY_SCORE)
        return scores.masked_fill_(
            torch.from_numpy(documents < 0).to(self.device)[:, None], -torch.inf
        )


def trec_order(doc_ids: Sequence[str]) -> Integers:
    """Positions (N,) of the ids in the order in which trec_eval puts equal scores."""
    # UTF-8 bytes, as strcmp compares them; lone surrogates may come from a damaged collection.
    keys = [doc_id.encode("utf-8", "surrogatepass") for doc_id in doc_ids]
    return np.array(sorted(range(len(keys)), key=keys.__getitem__, reverse=True), np.int64)


def distinct_rows(rows: NDArray[np.float32], tolerance: float) -> tuple[Integers, Integers]:
    """Rows that differ by more than `tolerance` (L2), and which of them stands for each row.

    Returns:
        first: (U,) the first row of each group, ascending.
        group: (N,) in [0, U); rows that are equal or near are of one group.
    """
    as_bytes = np.ascontiguousarray(rows).view(np.dtype((np.void, rows.itemsize * rows.shape[1])))
    _, first, inverse = np.unique(as_bytes[:, 0], return_index=True, return_inverse=True)
    different = rows[first]
    # Near rows lie near on any line: sort along a random one, compare neighbours only.
    line = np.random.default_rng(0).standard_normal(rows.shape[1])
    place = different.astype(np.float64) @ (line / np.linalg.norm(line))
    order = np.argsort(place)
    pairs = [np.empty((2, 0), np.int64)]
    for shift in range(1, len(order)):
        near = np.flatnonzero(place[order[shift:]] - place[order[:-shift]] <= tolerance)
        if not len(near):
            break
        one, other = order[near], order[near + shift]
        same = np.linalg.norm(different[one] - different[other], axis=1) <= tolerance
        pairs.append(np.stack([one[same], other[same]]))
    one, other = np.concatenate(pairs, axis=1)
    graph = coo_array((np.ones(len(one)), (one, other)), shape=(len(order), len(order)))
    _, labels = connected_components(graph, directed=False)
    _, first, group = np.unique(labels[inverse], return_index=True, return_inverse=True)
    by_row = np.argsort(first)
    return first[by_row], np.argsort(by_row)[group]


def check_finite(embeddings: Tensor, what: str) -> None:
    """Refuse embeddings with a NaN or an infinity; `what` names them in the message."""
    if not embeddings.isfinite().all():
        raise ValueError(f"{what} embeddings must be finite; the encoder has probably diverged")
