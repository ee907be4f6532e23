"""The first stage: the standard attention on (query, relevant document) pairs.

It minimises the symmetric cross-entropy over in-batch negatives (InfoNCE, van den Oord et al. 2018,
arXiv:1807.03748).
"""

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from maw_gym.checkpoints import Best
from maw_gym.distributed import gathered, share
from maw_gym.encoders.embedder import Embedder
from maw_gym.encoders.text import on_device, padded
from maw_gym.encoders.training.loop import Stage, run
from maw_gym.encoders.training.pairs import Pairs, epoch_rows
from maw_gym.encoders.training.settings import TrainingSettings
from maw_gym.encoders.training.validation import Validation

GROUPS: Final = 4  # documents of a batch are encoded in this many groups of similar length
# A GPU wants few launches: groups are fewer where they would have fewer padded tokens than these.
GROUP_TOKENS: Final = 2**17


def train_attention(
    embedder: Embedder,
    pairs: Pairs,
    validation: Validation,
    settings: TrainingSettings,
    checkpoint: Path | None = None,
) -> Best:
    """Train the standard attention in place and leave the best epoch's weights in the embedder.

    Args:
        embedder: is changed; its encoder may be on any device.
        pairs: what to learn from.
        validation: judges every epoch.
        settings: see `TrainingSettings`.
        checkpoint: see `maw_gym.encoders.training.loop.run`.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    stage = Stage(
        name="attention",
        epochs=settings.epochs,
        steps=math.ceil(len(pairs.queries) / settings.batch_size),
        queries=len(pairs.queries),
        groups=_groups(embedder, settings),
        weights=embedder.tensors(),
        losses=partial(_losses, embedder, pairs, settings),
        score=lambda: validation.score(embedder),
        seed=settings.seed,
        about={
            "settings": settings.of_attention(),
            "pairs": [len(pairs.queries), len(pairs.documents)],
        },
    )
    return run(stage, checkpoint)


def _groups(embedder: Embedder, settings: TrainingSettings) -> list[dict[str, Any]]:
    encoder = embedder.encoder
    trained = [
        parameter
        for name, parameter in encoder.named_parameters()
        # Depths have no part in this stage's loss.
        if name != "token_weight" and not name.startswith("depth_")
    ]
    groups: list[dict[str, Any]] = [
        {
            "params": trained,
            "lr": settings.learning_rate,
            "weight_decay": settings.weight_decay,
        },
        {
            "params": [encoder.token_weight],
            "lr": settings.token_learning_rate,
            "weight_decay": 0.0,
        },
    ]
    of_text = [
        weight
        for name, weight in embedder.text.own_weights().items()
        # States do not pass through the pooler.
        if weight.requires_grad and not name.startswith("pooler.")
    ]
    if of_text:
        decay = 0.0 if embedder.text.static else settings.weight_decay
        groups.append({"params": of_text, "lr": settings.text_learning_rate, "weight_decay": decay})
    return groups


def _losses(
    embedder: Embedder, pairs: Pairs, settings: TrainingSettings, generator: torch.Generator
) -> Iterator[Callable[[], Tensor]]:
    for rows, documents in batches(pairs, settings.batch_size, settings.balance, generator):
        yield partial(batch_loss, embedder, pairs, rows, documents, settings)


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
    """Loss of one batch, with gradients.

    Each of several processes (`maw_gym.distributed`) encodes its share and has the whole loss:
    every document of the batch is a negative, whoever has encoded it.

    Args:
        embedder: is trained.
        pairs: what to learn from.
        rows: (B,) int64 of `pairs.queries`.
        documents: B positions in `pairs.documents`, one relevant to each query.
        settings: see `TrainingSettings`.
    """
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
    """Symmetric InfoNCE over a batch of pairs.

    Args:
        queries: (B, h), of unit length.
        documents: (B, h), of unit length; row i is relevant to query i.
        which: (B,) int64, the documents' identities: a document that stands twice in the batch is
            not its own negative.
        temperature: cosines are divided by it.

    Returns:
        Scalar: mean of the cross-entropies over documents and over queries.
    """
    scores = queries @ documents.T / temperature
    twin = (which[:, None] == which) & ~torch.eye(len(which), dtype=torch.bool, device=which.device)
    scores = scores.masked_fill(twin, torch.finfo(scores.dtype).min)
    target = torch.arange(len(scores), device=scores.device)
    by_query = nn.functional.cross_entropy(scores, target)
    return (by_query + nn.functional.cross_entropy(scores.T, target)) / 2
