"""Contrastive training of encoders, in two stages.

First the standard attention on (query, relevant document) pairs; then the depths: each starts from
the standard projections and is trained on one k-means cluster of the queries. Both minimise the
symmetric cross-entropy over in-batch negatives (InfoNCE, van den Oord et al. 2018,
arXiv:1807.03748).
"""

import logging
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from maw_gym.encoders.clusters import cluster, contents, nearest
from maw_gym.encoders.embedder import Embedder
from maw_gym.encoders.text import padded
from maw_gym.encoders.training.pairs import Pairs
from maw_gym.encoders.training.validation import Validation
from maw_gym.errors import InputError
from maw_gym.files.epoch_checkpoints import Best, EpochCheckpoints, Progress, stage_folder
from maw_gym.files.tensor_files import fingerprint

log = logging.getLogger(__name__)

GROUPS = 4  # documents of a batch are encoded in this many groups of similar length


@dataclass(frozen=True)
class TrainingSettings:
    """How an encoder is trained; part of its cache key.

    Attributes:
        epochs: of the standard attention.
        learning_rate: peak of the one-cycle schedule for its projections.
        token_learning_rate: the same for the pooling weight of each token.
        depth_epochs: of the depths.
        depth_learning_rate: peak for everything but the token weights in the second stage.
        weight_decay: AdamW's, on the projections.
        batch_size: pairs per step; every other document of the batch is a negative.
        temperature: tau, cosines are divided by it.
        query_tokens: queries are cut here in training.
        document_tokens: documents are cut here in training.
        train_embedding: train the token embeddings too.
        embedding_learning_rate: peak for them.
        seed: of the order of the pairs and of the clusters.
    """

    epochs: int = 6
    learning_rate: float = 2e-3
    token_learning_rate: float = 2e-2
    depth_epochs: int = 3
    depth_learning_rate: float = 3e-3
    weight_decay: float = 0.01
    batch_size: int = 512
    temperature: float = 0.05
    query_tokens: int = 32
    document_tokens: int = 128
    train_embedding: bool = False
    embedding_learning_rate: float = 1e-2
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batch_size", "query_tokens", "document_tokens"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("epochs", "depth_epochs"):
            if getattr(self, name) < 0:
                raise InputError(f"{name} must not be negative, got {getattr(self, name)}")
        for name in ("learning_rate", "token_learning_rate", "depth_learning_rate", "temperature"):
            if not (math.isfinite(getattr(self, name)) and getattr(self, name) > 0):
                raise InputError(f"{name} must be a number above 0, got {getattr(self, name)}")

    def to_json(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return asdict(self)


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


def train(
    embedder: Embedder,
    pairs: Pairs,
    validation: Validation,
    settings: TrainingSettings,
    clusters: Tensor | None = None,
    checkpoint: Path | None = None,
) -> Best:
    """Train one stage in place and leave the best epoch's weights in the embedder.

    Args:
        embedder: is changed; its encoder may be on any device.
        pairs: what to learn from.
        validation: judges every epoch, epoch 0 included.
        settings: see `TrainingSettings`.
        clusters: (queries,) int64, the depth of each training query: the second stage. None trains
            the standard attention.
        checkpoint: of the file that the whole training is for; every epoch of this stage is kept
            beside it, and a training that was stopped goes on after its last.

    Raises:
        FloatingPointError: the loss is not finite.
    """
    epochs = settings.epochs if clusters is None else settings.depth_epochs
    rate = settings.learning_rate if clusters is None else settings.depth_learning_rate
    best = Best(validation.score(embedder, clusters is not None), 0, _copied(embedder))
    steps = epochs * math.ceil(len(pairs.queries) / settings.batch_size)
    if steps == 0:
        return best
    optimizer = _optimizer(embedder, settings, rate, clusters is not None)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        [group["lr"] for group in optimizer.param_groups],
        total_steps=max(steps, 2),
        # Of 10 steps a tenth ends where it begins, and OneCycleLR divides by zero.
        pct_start=0.1 if steps != 10 else 0.11,
    )
    generator = torch.Generator().manual_seed(settings.seed + (clusters is not None))
    stage = "attention" if clusters is None else "depths"
    about = {
        "stage": stage,
        "settings": settings.to_json(),
        "pairs": [len(pairs.queries), len(pairs.documents)],
        "clusters": None if clusters is None else fingerprint({"clusters": clusters}),
    }
    place = None if checkpoint is None else stage_folder(checkpoint, stage)
    kept = EpochCheckpoints(place, about, embedder.tensors(), optimizer, generator, schedule)
    done, best, _ = kept.restore(Progress(0, best, []))
    with tqdm(total=steps, desc=f"training {stage}", delay=2, leave=False, disable=None) as bar:
        bar.update(done * steps // epochs)
        for epoch in range(done + 1, epochs + 1):
            for rows, documents in _batches(pairs, settings.batch_size, generator):
                depth = None if clusters is None else clusters[rows].to(embedder.device)
                loss = batch_loss(embedder, pairs, rows, documents, depth, settings)
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                if not math.isfinite(loss.item()):
                    raise FloatingPointError(
                        f"loss {loss.item()} in epoch {epoch} of training {stage}; lower the"
                        " learning rates"
                    )
                optimizer.step()
                schedule.step()
                bar.update()
            score = validation.score(embedder, clusters is not None)
            bar.set_postfix({"validation nDCG@10": f"{score:.4f}"}, refresh=False)
            log.info("%s, epoch %d: validation nDCG@10 %.4f", stage, epoch, score)
            if score > best.score:
                best = Best(score, epoch, _copied(embedder))
            kept.write(Progress(epoch, best, []))
    with torch.no_grad():
        for name, value in embedder.tensors().items():
            value.copy_(best.weights[name])
    return best


def _copied(embedder: Embedder) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in embedder.tensors().items()}


def _optimizer(
    embedder: Embedder, settings: TrainingSettings, rate: float, depths: bool
) -> torch.optim.Optimizer:
    encoder = embedder.encoder
    trained = [
        parameter
        for name, parameter in encoder.named_parameters()
        # Depths have no part in the first stage's loss.
        if name != "token_weight" and (depths or not name.startswith("depth_"))
    ]
    groups: list[dict[str, Any]] = [
        {"params": trained, "lr": rate, "weight_decay": settings.weight_decay},
        {
            "params": [encoder.token_weight],
            "lr": settings.token_learning_rate,
            "weight_decay": 0.0,
        },
    ]
    if embedder.text.own_weights():
        groups.append(
            {
                "params": list(embedder.text.own_weights().values()),
                "lr": settings.embedding_learning_rate,
                "weight_decay": 0.0,
            }
        )
    return torch.optim.AdamW(groups)


def _batches(
    pairs: Pairs, size: int, generator: torch.Generator
) -> Iterator[tuple[Tensor, list[int]]]:
    """Rows (B,) of queries in random order, and one relevant document each, drawn uniformly."""
    for rows in torch.randperm(len(pairs.queries), generator=generator).split(size):
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
    depth: Tensor | None,
    settings: TrainingSettings,
) -> Tensor:
    """Loss of one batch, with gradients.

    Args:
        embedder: is trained.
        pairs: what to learn from.
        rows: (B,) int64 of `pairs.queries`.
        documents: B positions in `pairs.documents`, one relevant to each query.
        depth: (B,) int64 in [0, D), the depth of each query; None is the standard attention.
        settings: see `TrainingSettings`.
    """
    device = embedder.device
    ids, mask = padded(
        [embedder.text.cut(pairs.queries[row], settings.query_tokens) for row in rows.tolist()]
    )
    queries = embedder.embed(ids.to(device), mask.to(device), depth)
    texts = [embedder.text.cut(pairs.documents[row], settings.document_tokens) for row in documents]
    order = torch.tensor(sorted(range(len(texts)), key=lambda row: len(texts[row])))
    encoded = []
    for group in order.chunk(GROUPS):
        ids, mask = padded([texts[row] for row in group.tolist()])
        encoded.append(embedder.embed(ids.to(device), mask.to(device)))
    vectors = torch.cat(encoded)[order.argsort().to(device)]
    which = torch.tensor(documents, device=device)
    return contrastive_loss(queries, vectors, which, settings.temperature)


def specialise_depths(
    embedder: Embedder,
    pairs: Pairs,
    validation: Validation,
    settings: TrainingSettings,
    checkpoint: Path | None = None,
) -> Best:
    """The second stage: one depth per cluster of queries, then depths from focused to broad.

    Args:
        embedder: with a MAW encoder whose standard attention is trained; is changed.
        pairs: what to learn from.
        validation: judges every epoch with queries routed by their nearest centroid.
        settings: see `TrainingSettings`.
        checkpoint: see `train`.
    """
    encoder = embedder.maw
    encoder.copy_standard_to_depths()
    queries = [embedder.text.cut(ids, settings.query_tokens) for ids in pairs.queries]
    encoder.centroids = cluster(contents(embedder, queries), encoder.depths, settings.seed)
    clusters = nearest(embedder, queries).cpu()
    best = train(embedder, pairs, validation, settings, clusters, checkpoint)
    encoder.reorder_depths(mean_entropy(embedder, queries).argsort(stable=True))
    return best


@torch.no_grad()
def mean_entropy(embedder: Embedder, ids: list[list[int]]) -> Tensor:
    """Mean attention entropy (D,) of every depth over texts given as token ids."""
    total = torch.zeros(embedder.maw.depths, device=embedder.device)
    for _, statistics, _ in embedder.query_statistics(ids, progress="ordering depths"):
        total += statistics.entropy.sum(0)
    return total / max(len(ids), 1)
