"""The two stages of training: what they learn from, their losses, and the loop that they share.

The first trains the standard attention on (query, relevant document) pairs by the symmetric
cross-entropy over in-batch negatives. The second trains the projections of the depths and nothing
else: documents are embedded once, a query goes through one depth and is ranked among the documents
relevant to any training query.

Notation: B queries of a batch, h hidden width, D depths, M documents to rank.
"""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from maw_gym.checkpoints import Best, EpochCheckpoints, Progress, stage_folder
from maw_gym.corpora import Collection, QuerySet
from maw_gym.corpora.splits import balanced_shares
from maw_gym.distributed import averaging, check_same, from_first, gathered, is_first, others, share
from maw_gym.encoders.embedder import Embedder, progress_bar
from maw_gym.encoders.maw import temperatures
from maw_gym.encoders.text import on_device, padded, tokenized, tokenized_documents
from maw_gym.encoders.training.settings import TrainingSettings
from maw_gym.files import content_key, fingerprint
from maw_gym.retrieval.documents import DocumentIndex
from maw_gym.retrieval.ranking import rankings_of_depths

log = logging.getLogger(__name__)

GROUPS: Final = 4  # documents of a batch are encoded in this many groups of similar length
# A GPU wants few launches: groups are fewer where they would have fewer padded tokens than these.
GROUP_TOKENS: Final = 2**17
PARTS: Final = ("common", "own")  # of a depth's projections, see `DepthWeights`
DOCUMENTS_CHECKED = 2500  # an epoch is judged by ranking at most this many documents


class Pairs(NamedTuple):
    """Training queries and documents, as token ids."""

    queries: list[list[int]]
    documents: list[list[int]]
    relevant: list[list[int]]  # of each query the positions of its documents, at least one
    groups: list[str]  # of each query, see `Collection.query_groups`; else its collection


def pairs_of(collections: Sequence[Collection], embedder: Embedder) -> Pairs:
    """The `encoder` splits of the collections."""
    pairs = Pairs([], [], [], [])
    for collection in collections:
        split, start = collection.splits["encoder"], len(pairs.documents)
        position = {name: start + row for row, name in enumerate(collection.doc_ids)}
        pairs.documents.extend(tokenized_documents(embedder.text, collection.doc_texts))
        queries = tokenized(embedder.text, split.texts, "query")
        groups = collection.query_groups("encoder")
        for ids, grades, group in zip(queries, split.relevance, groups, strict=True):
            places = [position[name] for name, grade in grades.items() if grade > 0]
            # A text without tokens teaches nothing, and its gradient would be of a zero vector.
            relevant = [place for place in places if pairs.documents[place]]
            if ids and relevant:
                pairs.queries.append(ids)
                pairs.relevant.append(relevant)
                pairs.groups.append(group or collection.name)
    return pairs


def epoch_rows(groups: Sequence[str], balance: float, generator: torch.Generator) -> Tensor:
    """Rows (N,) of the queries of one epoch, in the order in which they are learned from."""
    if balance == 1:
        return torch.randperm(len(groups), generator=generator)
    shares = torch.from_numpy(balanced_shares(groups, balance))
    return torch.multinomial(shares, len(groups), replacement=True, generator=generator)


class Validation:
    """nDCG@10 of validation queries over the collection's documents."""

    def __init__(
        self,
        collection: Collection,
        embedder: Embedder,
        document_tokens: int,
        queries: QuerySet | None = None,  # None are those of its `validation` split
    ) -> None:
        self.queries = collection.splits["validation"] if queries is None else queries
        needed = {name for grades in self.queries.relevance for name in grades}
        rows = [row for row, name in enumerate(collection.doc_ids) if name in needed]
        rest = (row for row, name in enumerate(collection.doc_ids) if name not in needed)
        rows += [row for row, _ in zip(rest, range(DOCUMENTS_CHECKED - len(rows)), strict=False)]
        self.rows = sorted(rows)
        self.doc_ids = [collection.doc_ids[row] for row in self.rows]
        tokens = tokenized_documents(embedder.text, collection.doc_texts, self.rows)
        self.documents = [embedder.text.cut(ids, document_tokens) for ids in tokens]
        self.query_tokens = embedder.query_ids(self.queries.texts)

    def index(self, documents: Tensor) -> DocumentIndex:
        """What is ranked, of the embeddings (documents of the collection, h)."""
        return DocumentIndex(self.doc_ids, documents[self.rows])

    @torch.no_grad()
    def scores(
        self, embedder: Embedder, depths: Tensor | None = None, index: DocumentIndex | None = None
    ) -> Tensor:
        """NDCG@10 (N,) of each query, through its depth (N,) or the standard attention."""
        if not self.queries.ids:
            return torch.zeros(0)
        if index is None:
            index = DocumentIndex(self.doc_ids, embedder.encode_ids(self.documents))
        queries = embedder.encode_ids(self.query_tokens, depths)[:, None]
        found = rankings_of_depths(index, queries, index.relevant(self.queries), observe=False)
        return found.ndcg[:, 0].cpu()

    def score(self, embedder: Embedder, *given: Any) -> float:
        """Mean of `scores`, 0 without queries."""
        scores = self.scores(embedder, *given)
        return float(scores.mean()) if len(scores) else 0.0


def contrastive_loss(
    queries: Tensor, documents: Tensor, which: Tensor, temperature: float
) -> Tensor:
    """Symmetric InfoNCE over a batch of pairs (B, h); a document is no negative of its twins."""
    scores = queries @ documents.T / temperature
    twin = (which[:, None] == which) & ~torch.eye(len(which), dtype=torch.bool, device=which.device)
    scores = scores.masked_fill(twin, torch.finfo(scores.dtype).min)
    target = torch.arange(len(scores), device=scores.device)
    by_query = nn.functional.cross_entropy(scores, target)
    return (by_query + nn.functional.cross_entropy(scores.T, target)) / 2


def listwise_loss(
    queries: Tensor, documents: Tensor, relevant: Tensor, temperature: float
) -> Tensor:
    """Minus the log of the softmax mass on relevant documents (B, M), mean over queries."""
    scores = queries @ documents.T / temperature
    found = scores.masked_fill(~relevant, -math.inf).logsumexp(-1)
    return (scores.logsumexp(-1) - found).mean()


def batch_loss(
    embedder: Embedder, pairs: Pairs, rows: Tensor, documents: list[int], settings: TrainingSettings
) -> Tensor:
    """First stage: loss of queries (B,) and a document of each; processes encode shares."""
    device, cut, own = embedder.device, embedder.text.cut, share(len(rows))
    asked = [cut(pairs.queries[row], settings.query_tokens) for row in rows[own].tolist()]
    texts = [cut(pairs.documents[row], settings.document_tokens) for row in documents[own]]
    queries = embedder.embed(*padded(asked, device))
    groups = GROUPS
    # What is computed again for the backward pass is held for one group at a time.
    if device.type != "cpu" and not getattr(embedder.text, "recompute", False):
        padded_tokens = len(texts) * max(map(len, texts))
        groups = min(max(padded_tokens // GROUP_TOKENS, 1), GROUPS)
    order = torch.tensor(sorted(range(len(texts)), key=lambda row: len(texts[row])))
    encoded = [
        embedder.embed(*padded([texts[row] for row in group.tolist()], device))
        for group in order.chunk(groups)
    ]
    vectors = torch.cat(encoded)[on_device(order.argsort(), device)]
    which = on_device(torch.tensor(documents), device)
    queries, vectors = gathered(queries, len(rows)), gathered(vectors, len(rows))
    return contrastive_loss(queries, vectors, which, settings.temperature)


def depth_loss(
    embedder: Embedder,
    pairs: Pairs,
    vectors: Tensor,
    rows: list[int],
    depth: Tensor,
    settings: TrainingSettings,
    generator: torch.Generator,
) -> Tensor:
    """Second stage: loss of queries, each through its depth (B,), among vectors (M, h)."""
    device, own = embedder.device, share(len(rows))
    asked = [embedder.text.cut(pairs.queries[row], settings.query_tokens) for row in rows[own]]
    queries = gathered(embedder.embed(*padded(asked, device), depth[own].to(device)), len(rows))
    relevant = [pairs.relevant[row] for row in rows]
    total = len(vectors)
    column = torch.arange(total)
    if total > settings.depth_negatives:
        drawn = torch.randperm(total, generator=generator)[: settings.depth_negatives].tolist()
        ranked = torch.tensor(sorted({*drawn, *chain.from_iterable(relevant)}))
        vectors, total = vectors[ranked], len(ranked)
        column[ranked] = torch.arange(total)
    right = torch.zeros(len(rows), total, dtype=torch.bool)
    for place, documents in enumerate(relevant):
        right[place, column[documents]] = True
    return listwise_loss(queries, vectors, right.to(device), settings.temperature)


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


class Stage(NamedTuple):
    """What differs between the stages of a training; `run` does what they share."""

    name: str  # of its checkpoints and messages
    epochs: int
    seed: int
    groups: Sequence[tuple[Sequence[Tensor], float, float]]  # peak learning rates, weight decays
    weights: Mapping[str, Tensor]  # all that changes; the best epoch's are left in them
    loss: Callable[[Tensor, torch.Generator], Tensor]  # of a batch, given as rows of the pairs
    score: Callable[[], float]  # of the weights as they are, the larger the better
    about: Mapping[str, Any]  # JSON values that it depends on, beside the weights


def run(
    stage: Stage, pairs: Pairs, settings: TrainingSettings, checkpoint: Path | None = None
) -> Best:
    """Train a stage in place; epoch 0, before the first step, is judged with the others."""

    def score() -> float:
        # A rounding apart, other processes might keep another epoch.
        return from_first(stage.score() if is_first() else 0.0)

    def copied() -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in stage.weights.items()}

    counts = [len(pairs.queries), len(pairs.documents)]
    about = {"stage": stage.name, "pairs": counts, **stage.about}
    start = content_key({"about": about, "weights": fingerprint(stage.weights)})
    check_same(f"start of training {stage.name}", start)
    best = Best(score(), 0, copied())
    of_epoch = math.ceil(len(pairs.queries) / settings.batch_size)
    steps = stage.epochs * of_epoch
    if steps == 0:
        return best
    names = ("params", "lr", "weight_decay")
    optimizer = torch.optim.AdamW([dict(zip(names, one, strict=True)) for one in stage.groups])
    averaged = averaging(weight for group in stage.groups for weight in group[0])
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        [rate for _, rate, _ in stage.groups],
        total_steps=max(steps, 2),
        # Of 10 steps a tenth ends where it begins, and OneCycleLR divides by zero.
        pct_start=0.1 if steps != 10 else 0.11,
    )
    generator = torch.Generator().manual_seed(stage.seed)
    folder = None if checkpoint is None else stage_folder(checkpoint, stage.name)
    kept = EpochCheckpoints(folder, about, stage.weights, optimizer, generator, schedule)
    done, best, _ = kept.restore_epoch(Progress(0, best, []))
    check_same(f"checkpoint of training {stage.name}", f"after epoch {done}")
    with progress_bar(steps, f"training {stage.name}, in steps") as bar:
        bar.update(done * of_epoch)
        for epoch in range(done + 1, stage.epochs + 1):
            losses: list[Tensor] = []
            order = epoch_rows(pairs.groups, settings.balance, generator)
            for rows in order.split(settings.batch_size):
                optimizer.zero_grad(set_to_none=True)
                with others():
                    loss = averaged(partial(stage.loss, rows, generator))
                    loss.backward()
                optimizer.step()
                schedule.step()
                losses.append(loss.detach())
                bar.update()
            # At the end: a GPU would else wait for each step before the next is launched.
            if not (mean := torch.stack(losses).mean()).isfinite():
                raise FloatingPointError(
                    f"loss {mean.item()} in epoch {epoch} of training {stage.name}; lower the"
                    " learning rates"
                )
            found = score()
            bar.set_postfix({"validation nDCG@10": f"{found:.4f}"}, refresh=False)
            log.info("%s, epoch %d: validation nDCG@10 %.4f", stage.name, epoch, found)
            if found > best.score:
                best = Best(found, epoch, copied())
            if is_first():
                kept.write_epoch(Progress(epoch, best, []))
    with torch.no_grad():
        for name, value in stage.weights.items():
            value.copy_(best.weights[name])
    return best


def train_attention(
    embedder: Embedder,
    pairs: Pairs,
    validation: Validation,
    settings: TrainingSettings,
    checkpoint: Path | None = None,
) -> Best:
    """Train the standard attention in place and leave the best epoch's weights in the embedder."""
    decay, text = settings.weight_decay, embedder.text
    weights = dict(embedder.encoder.named_parameters())
    pooling = [weights.pop("token_weight")]
    # Depths have no part in this stage's loss; states do not pass through a model's pooler.
    of_encoder = [weight for name, weight in weights.items() if not name.startswith("depth_")]
    of_text = [
        weight
        for name, weight in text.own_weights().items()
        if weight.requires_grad and not name.startswith("pooler.")
    ]
    groups: list[tuple[Sequence[Tensor], float, float]] = [
        (of_encoder, settings.learning_rate, decay),
        (pooling, settings.token_learning_rate, 0.0),
        (of_text, settings.text_learning_rate, 0.0 if text.static else decay),
    ]

    def loss(rows: Tensor, generator: torch.Generator) -> Tensor:
        # Of each query one relevant document, drawn uniformly.
        draws = torch.rand(len(rows), generator=generator).tolist()
        options = [pairs.relevant[row] for row in rows.tolist()]
        documents = [some[int(x * len(some))] for some, x in zip(options, draws, strict=True)]
        return batch_loss(embedder, pairs, rows, documents, settings)

    stage = Stage(
        "attention",
        settings.epochs,
        settings.seed,
        groups if of_text else groups[:2],
        embedder.tensors(),
        loss,
        lambda: validation.score(embedder),
        {"settings": settings.of_attention()},
    )
    return run(stage, pairs, settings, checkpoint)


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

    Queries are ranked among those of the documents' embeddings (documents of the pairs, h) that are
    relevant to any of them, and validation queries among the documents of the index.
    """
    encoder = embedder.maw
    needed = sorted(set(chain.from_iterable(pairs.relevant)))
    position = {row: place for place, row in enumerate(needed)}
    relevant = [[position[row] for row in rows] for rows in pairs.relevant]
    pairs = pairs._replace(relevant=relevant, documents=[pairs.documents[row] for row in needed])
    ranked = documents[needed]
    judged_through = torch.arange(len(validation.queries.ids)) % encoder.depths
    encoder.depths_from_standard()
    encoder.requires_grad_(False)
    projections = {"query": encoder.depth_query_proj, "key": encoder.depth_key_proj}
    weights: dict[str, Tensor] = {}
    for name, projection in projections.items():
        projection.requires_grad_(True)
        part = DepthWeights(temperatures(encoder.depths, embedder.device))
        parametrize.register_parametrization(projection, "weight", part)
        weights[f"{name}.common"], weights[f"{name}.own"] = projection.parameters()
    common, own = ([weights[f"{name}.{part}"] for name in projections] for part in PARTS)

    def loss(rows: Tensor, generator: torch.Generator) -> Tensor:
        depth = torch.randint(encoder.depths, (len(rows),), generator=generator)
        return depth_loss(embedder, pairs, ranked, rows.tolist(), depth, settings, generator)

    def score() -> float:
        with parametrize.cached():
            return validation.score(embedder, judged_through, index)

    stage = Stage(
        "depths",
        settings.depth_epochs,
        settings.seed + 1,
        [
            (common, settings.depth_learning_rate, settings.weight_decay),
            (own, settings.depth_own_learning_rate, settings.weight_decay),
        ],
        weights,
        loss,
        score,
        {"settings": settings.to_json(), "frozen": fingerprint({"documents": ranked})},
    )
    best = run(stage, pairs, settings, checkpoint)
    for projection in projections.values():
        parametrize.remove_parametrizations(projection, "weight")
    encoder.requires_grad_(False)
    return best
