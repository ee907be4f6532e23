"""What encoders learn from, and the losses of the two stages of their training.

Notation: B queries of a batch, h hidden width, D depths, M documents to rank.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn

from maw_gym.corpora import Collection
from maw_gym.corpora.splits import balanced_shares
from maw_gym.distributed import gathered, share
from maw_gym.encoders.embedder import Embedder
from maw_gym.encoders.text import on_device, padded
from maw_gym.encoders.training.settings import TrainingSettings

GROUPS: Final = 4  # documents of a batch are encoded in this many groups of similar length
# A GPU wants few launches: groups are fewer where they would have fewer padded tokens than these.
GROUP_TOKENS: Final = 2**17


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
    """Rows (N,) of the queries of one epoch, in the order in which they are learned from."""
    if balance == 1:
        return torch.randperm(len(groups), generator=generator)
    shares = torch.from_numpy(balanced_shares(groups, balance))
    return torch.multinomial(shares, len(groups), replacement=True, generator=generator)


def batches(
    pairs: Pairs, size: int, balance: float, generator: torch.Generator
) -> Iterator[tuple[Tensor, list[int]]]:
    """Rows (B,) of queries, see `epoch_rows`, and one relevant document each, drawn uniformly."""
    for rows in epoch_rows(pairs.groups, balance, generator).split(size):
        draws = torch.rand(len(rows), generator=generator).tolist()
        chosen = [pairs.relevant[row] for row in rows.tolist()]
        documents = [
            options[int(draw * len(options))] for options, draw in zip(chosen, draws, strict=True)
        ]
        yield rows, documents


def batch_loss(
    embedder: Embedder,
    pairs: Pairs,
    rows: Tensor,
    documents: list[int],
    settings: TrainingSettings,
) -> Tensor:
    """Loss of one batch, with gradients."""
    device = embedder.device
    cut = embedder.text.cut
    own = share(len(rows))
    asked = [cut(pairs.queries[row], settings.query_tokens) for row in rows[own].tolist()]
    queries = embedder.embed(*padded(asked, device))
    texts = [cut(pairs.documents[row], settings.document_tokens) for row in documents[own]]
    order = torch.tensor(sorted(range(len(texts)), key=lambda row: len(texts[row])))
    encoded = []
    for group in order.chunk(_groups_of(texts, embedder)):
        encoded.append(embedder.embed(*padded([texts[row] for row in group.tolist()], device)))
    vectors = torch.cat(encoded)[on_device(order.argsort(), device)]
    which = on_device(torch.tensor(documents), device)
    queries, vectors = gathered(queries, len(rows)), gathered(vectors, len(rows))
    return contrastive_loss(queries, vectors, which, settings.temperature)


def _groups_of(texts: list[list[int]], embedder: Embedder) -> int:
    """How many groups of similar length the texts of a batch are encoded in."""
    # What is computed again for the backward pass is held for one group at a time.
    if embedder.device.type == "cpu" or getattr(embedder.text, "recompute", False):
        return GROUPS
    padded_tokens = len(texts) * max(map(len, texts))
    return min(max(padded_tokens // GROUP_TOKENS, 1), GROUPS)


def contrastive_loss(
    queries: Tensor, documents: Tensor, which: Tensor, temperature: float
) -> Tensor:
    """Symmetric InfoNCE over a batch of pairs."""
    scores = queries @ documents.T / temperature
    twin = (which[:, None] == which) & ~torch.eye(len(which), dtype=torch.bool, device=which.device)
    scores = scores.masked_fill(twin, torch.finfo(scores.dtype).min)
    target = torch.arange(len(scores), device=scores.device)
    by_query = nn.functional.cross_entropy(scores, target)
    return (by_query + nn.functional.cross_entropy(scores.T, target)) / 2


class DepthWeights(nn.Module):
    """A depth projection while it is trained: depth d is ``(common + own_d) / sqrt(T_d)``."""

    scale: Tensor

    def __init__(self, temperature: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", temperature.rsqrt()[:, None, None])

    def forward(self, common: Tensor, own: Tensor) -> Tensor:
        """The projection's weight (D h, h), of (h, h) and (D, h, h)."""
        return ((common + own) * self.scale).flatten(0, 1)

    def right_inverse(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """The two parts of a weight (D h, h): depth 0, and what the others differ from it by."""
        blocks = weight.view(len(self.scale), -1, weight.shape[1]) / self.scale
        return blocks[0].clone(), blocks - blocks[0]


class Judged(NamedTuple):
    """Training queries and the documents that they are ranked among.

    Attributes:
        queries: token ids of each query.
        documents: (M, h), of unit length.
        relevant: per query the rows of its relevant documents, at least one.
        groups: per query its group.
    """

    queries: list[list[int]]
    documents: Tensor
    relevant: list[list[int]]
    groups: list[str]


def judged_queries(queries: list[list[int]], documents: Tensor, pairs: Pairs) -> Judged:
    """The queries of the pairs, cut as `queries`, among the documents relevant to any of them."""
    needed = sorted({row for rows in pairs.relevant for row in rows})
    position = {row: place for place, row in enumerate(needed)}
    relevant = [[position[row] for row in rows] for rows in pairs.relevant]
    return Judged(queries, documents[needed], relevant, pairs.groups)


def depth_loss(
    embedder: Embedder,
    judged: Judged,
    rows: list[int],
    depth: Tensor,
    settings: TrainingSettings,
    generator: torch.Generator,
) -> Tensor:
    """Loss of one batch, with gradients; each of several processes encodes its share."""
    device = embedder.device
    own = share(len(rows))
    ids, mask = padded([judged.queries[row] for row in rows[own]], device)
    vectors = embedder.embed(ids, mask, depth[own].to(device))
    vectors = gathered(vectors, len(rows))
    ranked, relevant = _ranked(judged, rows, settings.depth_negatives, generator)
    return listwise_loss(
        vectors, judged.documents[ranked], relevant.to(device), settings.temperature
    )


def _ranked(
    judged: Judged, rows: list[int], most: int, generator: torch.Generator
) -> tuple[Tensor | slice, Tensor]:
    """The documents that a batch is ranked among, and which are relevant (B, documents) bool."""
    total = len(judged.documents)
    ranked: Tensor | slice = slice(None)
    column = torch.arange(total)
    if total > most:
        drawn = torch.randperm(total, generator=generator)[:most].tolist()
        ranked = torch.tensor(sorted({*drawn, *(d for row in rows for d in judged.relevant[row])}))
        column[ranked] = torch.arange(len(ranked))
        total = len(ranked)
    relevant = torch.zeros(len(rows), total, dtype=torch.bool)
    for place, row in enumerate(rows):
        relevant[place, column[judged.relevant[row]]] = True
    return ranked, relevant


def listwise_loss(
    queries: Tensor, documents: Tensor, relevant: Tensor, temperature: float
) -> Tensor:
    """Minus the log of the softmax mass on relevant documents, mean over queries."""
    scores = queries @ documents.T / temperature
    found = scores.masked_fill(~relevant, -math.inf).logsumexp(-1)
    return (scores.logsumexp(-1) - found).mean()
