"""The two stages of training, and the loop over epochs that they share.

The first trains the standard attention on (query, relevant document) pairs by the symmetric
cross-entropy over in-batch negatives. The second trains the projections of the depths and nothing
else: documents are embedded once, a query goes through one depth and is ranked among the documents
relevant to any training query.
"""

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.utils import parametrize

from maw_gym.checkpoints import Best, EpochCheckpoints, Progress, stage_folder
from maw_gym.corpora import Collection, QuerySet
from maw_gym.distributed import (
    check_same,
    from_first,
    is_first,
    others,
    with_mean_gradients,
)
from maw_gym.encoders.embedder import Embedder, ProgressBar
from maw_gym.encoders.maw import temperatures
from maw_gym.encoders.training.losses import (
    DepthWeights,
    Judged,
    Pairs,
    batch_loss,
    batches,
    depth_loss,
    epoch_rows,
    judged_queries,
)
from maw_gym.encoders.training.settings import TrainingSettings
from maw_gym.files import content_key, fingerprint
from maw_gym.retrieval.documents import DocumentIndex
from maw_gym.retrieval.ranking import rankings_of_depths

log = logging.getLogger(__name__)
DOCUMENTS_CHECKED = 2500  # an epoch is judged by ranking at most this many documents


class Stage(NamedTuple):
    """One stage of a training.

    Attributes:
        name: of its checkpoints and messages.
        epochs: passes over the queries.
        steps: per epoch.
        queries: per epoch, by all steps together.
        groups: parameter groups of AdamW with their peak learning rates.
        weights: everything that changes; the best epoch's are left in them.
        losses: functions that give one epoch's losses, a step each, with gradients; all that is
            random comes from the generator.
        score: of the weights as they are, the larger the better.
        seed: of the generator.
        about: JSON values that the stage depends on, beside the weights it starts from.
    """

    name: str
    epochs: int
    steps: int
    queries: int
    groups: list[dict[str, Any]]
    weights: Mapping[str, Tensor]
    losses: Callable[[torch.Generator], Iterator[Callable[[], Tensor]]]
    score: Callable[[], float]
    seed: int
    about: Mapping[str, Any]


def run(stage: Stage, checkpoint: Path | None = None) -> Best:
    """Train a stage in place; epoch 0, before the first step, is judged with the others."""
    about = {"stage": stage.name, **stage.about}
    start = content_key({"about": about, "weights": fingerprint(stage.weights)})
    check_same(f"start of training {stage.name}", start)
    best = Best(_score(stage), 0, _copied(stage.weights))
    steps = stage.epochs * stage.steps
    if steps == 0:
        return best
    optimizer = torch.optim.AdamW(stage.groups)
    averaged = with_mean_gradients(weight for group in stage.groups for weight in group["params"])
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        [group["lr"] for group in optimizer.param_groups],
        total_steps=max(steps, 2),
        # Of 10 steps a tenth ends where it begins, and OneCycleLR divides by zero.
        pct_start=0.1 if steps != 10 else 0.11,
    )
    generator = torch.Generator().manual_seed(stage.seed)
    folder = None if checkpoint is None else stage_folder(checkpoint, stage.name)
    kept = EpochCheckpoints(folder, about, stage.weights, optimizer, generator, schedule)
    done, best, _ = kept.restore_epoch(Progress(0, best, []))
    check_same(f"checkpoint of training {stage.name}", f"after epoch {done}")
    with ProgressBar(steps, f"training {stage.name}, in steps") as bar:
        bar.update(done * stage.steps)
        for epoch in range(done + 1, stage.epochs + 1):
            began = time.perf_counter()
            before: Tensor | None = None
            for of_batch in stage.losses(generator):
                optimizer.zero_grad(set_to_none=True)
                with others():
                    loss = averaged(of_batch)
                    loss.backward()
                optimizer.step()
                schedule.step()
                # A step late: a GPU would else stand still until the next step is launched.
                _check_finite(before, stage, epoch)
                before = loss.detach()
                bar.update()
            _check_finite(before, stage, epoch)
            rate = stage.queries / (time.perf_counter() - began)
            score = _score(stage)
            bar.bar.set_postfix({"validation nDCG@10": f"{score:.4f}"}, refresh=False)
            message = "%s, epoch %d: %.0f queries/s, validation nDCG@10 %.4f"
            log.info(message, stage.name, epoch, rate, score)
            if score > best.score:
                best = Best(score, epoch, _copied(stage.weights))
            if is_first():
                kept.write_epoch(Progress(epoch, best, []))
    with torch.no_grad():
        for name, value in stage.weights.items():
            value.copy_(best.weights[name])
    return best


def _check_finite(loss: Tensor | None, stage: Stage, epoch: int) -> None:
    if loss is not None and not math.isfinite(value := loss.item()):
        raise FloatingPointError(
            f"loss {value} in epoch {epoch} of training {stage.name}; lower the learning rates"
        )


def _score(stage: Stage) -> float:
    """What the first process finds: a rounding apart, others might keep another epoch."""
    return from_first(stage.score() if is_first() else 0.0)


def _copied(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in weights.items()}


class Validation:
    """nDCG@10 of validation queries over the collection's documents."""

    def __init__(
        self,
        collection: Collection,
        embedder: Embedder,
        document_tokens: int,
        queries: QuerySet | None = None,
    ) -> None:
        self.queries = collection.splits["validation"] if queries is None else queries
        needed = {name for grades in self.queries.relevance for name in grades}
        rows = [row for row, name in enumerate(collection.doc_ids) if name in needed]
        others = (row for row, name in enumerate(collection.doc_ids) if name not in needed)
        rows += [row for row, _ in zip(others, range(DOCUMENTS_CHECKED - len(rows)), strict=False)]
        self.rows = sorted(rows)
        self.doc_ids = [collection.doc_ids[row] for row in self.rows]
        tokens = embedder.text.tokenize([collection.doc_texts[row] for row in self.rows])
        self.documents = [embedder.text.cut(ids, document_tokens) for ids in tokens]
        self.query_tokens = embedder.query_ids(self.queries.texts)

    def index(self, documents: Tensor) -> DocumentIndex:
        """What is ranked, of the embeddings (documents of the collection, h)."""
        return DocumentIndex(self.doc_ids, documents[self.rows])

    def score(
        self,
        embedder: Embedder,
        depths: Tensor | None = None,
        index: DocumentIndex | None = None,
    ) -> float:
        """Mean of `scores`, 0 without queries."""
        scores = self.scores(embedder, depths, index)
        return float(scores.mean()) if len(scores) else 0.0

    @torch.no_grad()
    def scores(
        self,
        embedder: Embedder,
        depths: Tensor | None = None,
        index: DocumentIndex | None = None,
    ) -> Tensor:
        """NDCG@10 (N,) of each query."""
        if not self.queries.ids:
            return torch.zeros(0)
        if index is None:
            index = DocumentIndex(self.doc_ids, embedder.encode_ids(self.documents))
        queries = embedder.encode_ids(self.query_tokens, depths)
        relevant = index.relevant(self.queries)
        found = rankings_of_depths(index, queries[:, None], relevant, observe=False)
        return found.ndcg[:, 0].cpu()


def train_attention(
    embedder: Embedder,
    pairs: Pairs,
    validation: Validation,
    settings: TrainingSettings,
    checkpoint: Path | None = None,
) -> Best:
    """Train the standard attention in place and leave the best epoch's weights in the embedder."""
    stage = Stage(
        name="attention",
        epochs=settings.epochs,
        steps=math.ceil(len(pairs.queries) / settings.batch_size),
        queries=len(pairs.queries),
        groups=_groups(embedder, settings),
        weights=embedder.tensors(),
        losses=partial(_attention_losses, embedder, pairs, settings),
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


def _attention_losses(
    embedder: Embedder, pairs: Pairs, settings: TrainingSettings, generator: torch.Generator
) -> Iterator[Callable[[], Tensor]]:
    for rows, documents in batches(pairs, settings.batch_size, settings.balance, generator):
        yield partial(batch_loss, embedder, pairs, rows, documents, settings)


def train_depths(
    embedder: Embedder,
    pairs: Pairs,
    documents: Tensor,
    validation: Validation,
    index: DocumentIndex,
    settings: TrainingSettings,
    checkpoint: Path | None = None,
) -> Best:
    """Train the depths in place and leave the best epoch's weights in the embedder."""
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
        losses=lambda generator: _depth_losses(embedder, judged, settings, generator),
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


def _depth_losses(
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
