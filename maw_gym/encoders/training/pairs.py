"""What encoders learn from: queries and their relevant documents, as token ids."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from maw_gym.corpora import Collection
from maw_gym.corpora.splits import balanced_shares
from maw_gym.encoders.embedder import Embedder


class Pairs(NamedTuple):
    """Training queries and documents, as token ids.

    Attributes:
        queries: token ids of each query.
        documents: token ids of each document.
        relevant: per query the positions of its relevant documents, at least one.
        groups: per query its group, see `Collection.query_groups`; the collection is one where it
            has none.
    """

    queries: list[list[int]]
    documents: list[list[int]]
    relevant: list[list[int]]
    groups: list[str]


def pairs_of(collections: Sequence[Collection], embedder: Embedder) -> Pairs:
    """The `encoder` splits of the collections, as one set of pairs."""
    queries: list[list[int]] = []
    documents: list[list[int]] = []
    relevant: list[list[int]] = []
    groups: list[str] = []
    for collection in collections:
        split = collection.splits["encoder"]
        position = {name: len(documents) + row for row, name in enumerate(collection.doc_ids)}
        queries += embedder.text.tokenize(split.texts)
        documents += embedder.text.tokenize(collection.doc_texts)
        relevant += [
            [position[name] for name, grade in grades.items() if grade > 0]
            for grades in split.relevance
        ]
        groups += [group or collection.name for group in collection.query_groups("encoder")]
    # A text without tokens teaches nothing, and its gradient would be that of a zero vector.
    relevant = [[at for at in places if documents[at]] for places in relevant]
    kept = [row for row, ids in enumerate(queries) if ids and relevant[row]]
    return Pairs(
        [queries[row] for row in kept],
        documents,
        [relevant[row] for row in kept],
        [groups[row] for row in kept],
    )


def epoch_rows(groups: Sequence[str], balance: float, generator: torch.Generator) -> Tensor:
    """Rows (N,) of the queries of one epoch, in the order in which they are learned from.

    Args:
        groups: of each of the N queries.
        balance: 1 takes every query once; less draws N of them, so that large groups do not rule,
            see `balanced_shares`.
        generator: of order and draws.
    """
    if balance == 1:
        return torch.randperm(len(groups), generator=generator)
    shares = torch.from_numpy(balanced_shares(groups, balance))
    return torch.multinomial(shares, len(groups), replacement=True, generator=generator)
