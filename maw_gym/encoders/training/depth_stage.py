"""The second stage: the projections of the depths, and nothing else.

The standard path is frozen, so documents are embedded once. A query goes through one depth and is
ranked among the documents relevant to any training query; the loss is the cross-entropy of its own
relevant ones. Every depth starts from the trained standard projections at its own temperature.

Notation: D depths, h hidden width, B queries of a batch, M documents to rank.
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from maw_gym.checkpoints import Best
from maw_gym.distributed import gathered, share
from maw_gym.encoders.attention_encoders import temperatures
from maw_gym.encoders.embedder import Embedder
from maw_gym.encoders.text import padded
from maw_gym.encoders.training.loop import Stage, run
from maw_gym.encoders.training.pairs import Pairs, epoch_rows
from maw_gym.encoders.training.settings import TrainingSettings
from maw_gym.encoders.training.validation import Validation
from maw_gym.files import fingerprint
from maw_gym.retrieval.documents import DocumentIndex


class DepthWeights(nn.Module):
    """A depth projection while it is trained: depth d is ``(common + own_d) / sqrt(T_d)``.

    Q and K both, so that the scores are divided by T_d. What all depths need, `common` learns from
    every query; a single depth meets one query in D. Gradients and AdamW's steps act on projections
    at temperature 1, so that no temperature is trained faster than another.

    Args:
        temperature: (D,), the T_d.
    """

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


def train_depths(
    embedder: Embedder,
    pairs: Pairs,
    documents: Tensor,
    validation: Validation,
    index: DocumentIndex,
    settings: TrainingSettings,
    checkpoint: Path | None = None,
) -> Best:
    """Train the depths in place and leave the best epoch's weights in the embedder.

    Args:
        embedder: with a MAW encoder whose standard attention is trained; is changed.
        pairs: what to learn from.
        documents: (documents of the pairs, h), their embeddings through the standard attention.
        validation: judges every epoch: its queries through the depths in turn.
        index: the documents that `validation` ranks.
        settings: see `TrainingSettings`.
        checkpoint: see `maw_gym.encoders.training.loop.run`.

    Raises:
        FloatingPointError: the loss is not finite.
        InputError: the encoder has no depths.
    """
    encoder = embedder.maw
    queries = [embedder.text.cut(ids, settings.query_tokens) for ids in pairs.queries]
    scale = temperatures(encoder.depths, embedder.device)
    judged_through = torch.arange(len(validation.queries.ids)) % encoder.depths
    encoder.depths_from_standard(scale)
    encoder.eval().requires_grad_(False)
    for weight in embedder.text.own_weights().values():
        weight.requires_grad_(False)
    projections = {"query": encoder.depth_query_proj, "key": encoder.depth_key_proj}
    for projection in projections.values():
        projection.weight.requires_grad_(True)
        part = DepthWeights(scale)
        parametrize.register_parametrization(projection, "weight", part)
    weights = {
        f"{name}.{part}": weight
        for name, projection in projections.items()
        for part, weight in zip(("common", "own"), projection.parameters(), strict=True)
    }
    judged = judged_queries(queries, documents, pairs)

    def score() -> float:
        with parametrize.cached():
            return validation.score(embedder, judged_through, index)

    stage = Stage(
        name="depths",
        epochs=settings.depth_epochs,
        steps=math.ceil(len(queries) / settings.batch_size),
        queries=len(queries),
        groups=[
            {
                "params": [weight for name, weight in weights.items() if name.endswith(part)],
                "lr": rate,
                "weight_decay": settings.weight_decay,
            }
            for part, rate in (
                ("common", settings.depth_learning_rate),
                ("own", settings.depth_own_learning_rate),
            )
        ],
        weights=weights,
        losses=lambda generator: _losses(embedder, judged, settings, generator),
        score=score,
        seed=settings.seed + 1,
        about={
            "settings": settings.to_json(),
            "pairs": [len(queries), len(judged.documents)],
            "frozen": fingerprint({"documents": judged.documents}),
        },
    )
    best = run(stage, checkpoint)
    for projection in projections.values():
        parametrize.remove_parametrizations(projection, "weight")
    encoder.requires_grad_(False)
    return best


def judged_queries(queries: list[list[int]], documents: Tensor, pairs: Pairs) -> Judged:
    """The queries of the pairs, cut as `queries`, among the documents relevant to any of them."""
    needed = sorted({row for rows in pairs.relevant for row in rows})
    position = {row: place for place, row in enumerate(needed)}
    relevant = [[position[row] for row in rows] for rows in pairs.relevant]
    return Judged(queries, documents[needed], relevant, pairs.groups)


def _losses(
    embedder: Embedder,
    judged: Judged,
    settings: TrainingSettings,
    generator: torch.Generator,
) -> Iterator[Callable[[], Tensor]]:
    depths = embedder.maw.depths
    order = epoch_rows(judged.groups, settings.balance, generator)
    for rows in order.split(settings.batch_size):
        depth = torch.randint(depths, (len(rows),), generator=generator)
        yield partial(depth_loss, embedder, judged, rows.tolist(), depth, settings, generator)


def depth_loss(
    embedder: Embedder,
    judged: Judged,
    rows: list[int],
    depth: Tensor,
    settings: TrainingSettings,
    generator: torch.Generator,
) -> Tensor:
    """Loss of one batch, with gradients; each of several processes encodes its share.

    Args:
        embedder: its depths are trained.
        judged: what to learn from.
        rows: B of `judged.queries`.
        depth: (B,) int64, the depth that each query goes through.
        settings: see `TrainingSettings`.
        generator: draws documents, where there are too many to rank them all.
    """
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
    """Minus the log of the softmax mass on relevant documents, mean over queries.

    The mass is what tables call listwise alignment. With one relevant document this is InfoNCE
    (van den Oord et al. 2018, arXiv:1807.03748).

    Args:
        queries: (B, h), of unit length.
        documents: (M, h), of unit length.
        relevant: (B, M) bool, at least one True in each row.
        temperature: cosines are divided by it.
    """
    scores = queries @ documents.T / temperature
    found = scores.masked_fill(~relevant, -math.inf).logsumexp(-1)
    return (scores.logsumexp(-1) - found).mean()
