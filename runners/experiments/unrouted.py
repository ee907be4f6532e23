"""Methods that choose no depth: BM25 and encoders."""

from collections.abc import Sequence
from dataclasses import field

import torch
from torch import Tensor

from agents.baseline_encoders import (
    baseline_encoder,
    ensemble_queries,
    evaluate_bm25,
    evaluate_encoder,
    training_sources,
)
from maw_gym.encoders.embedder import Embedder, untrained_embedder
from maw_gym.encoders.training.selection import UNTRAINED, choose, judges
from maw_gym.encoders.training.settings import TrainingSettings
from maw_gym.encoders.training.stages import Validation
from maw_gym.retrieval.evaluation import evaluate_embeddings
from maw_gym.settings import checked
from maw_gym.tables.task import RetrievalTask
from runners.experiments.results import Did, size
from runners.experiments.settings import TaskSettings
from runners.experiments.training import Log


@checked
class EncoderSpec(TaskSettings):
    """All that an encoder without routing depends on."""

    training: TrainingSettings = field(default_factory=TrainingSettings)
    """as long and as wide as the MAW encoder's"""


def bm25(task: RetrievalTask, spec: TaskSettings, split: str, log: Log | None) -> Did:
    """BM25 over the whole collection."""
    return Did(ranked=evaluate_bm25(task, split))


def standard_attention(task: RetrievalTask, spec: TaskSettings, split: str, log: Log | None) -> Did:
    """The MAW encoder's standard attention."""
    return Did(
        ranked=task.evaluate(split),
        parameters=size(task.embedder.encoder, but="depth_"),
        encode=lambda texts: task.embedder.encode_queries(texts).cpu(),
    )


def ensemble(task: RetrievalTask, spec: TaskSettings, split: str, log: Log | None) -> Did:
    """The mean of all depths' embeddings."""

    def encode(texts: Sequence[str]) -> Tensor:
        return ensemble_queries(task.embedder, texts)

    queries = task.collection.splits[split]
    return Did(
        ranked=evaluate_embeddings(
            task.index, queries, encode(queries.texts), task.candidates(split)
        ),
        parameters=size(task.embedder.encoder),
        encode=lambda texts: encode(texts).cpu(),
    )


def with_bm25(
    fusion: str, task: RetrievalTask, spec: TaskSettings, split: str, log: Log | None
) -> Did:
    """The MAW encoder's standard attention and BM25 together."""
    facts = {"weight of cosines": task.hybrid_weight} if fusion == "sum" else {}
    return Did(ranked=task.evaluate_hybrid(split, fusion=fusion), facts=facts)


def unrouted(name: str, task: RetrievalTask, spec: EncoderSpec, split: str, log: Log | None) -> Did:
    """An encoder of `agents.baseline_encoders`."""
    sources = training_sources(task)
    embedder, provenance = baseline_encoder(
        name, task.collection, sources, task.device, spec.training, text=task.pretrained
    )
    did = Did(facts={"encoder": provenance})
    if "pairs" in provenance:
        # Of an encoder from the cache, the time is the one it took when it was trained.
        did.training_seconds = provenance.get("seconds")
        if sources[0].name != task.collection.name:
            embedder = _chosen(task, embedder, spec.training, did)
    did.parameters = 0 if name == "mean_pooling" else size(embedder.encoder)
    depth = torch.zeros(1, dtype=torch.long) if embedder.encoder.settings.depths else None
    did.encode = lambda texts: embedder.encode_queries(texts, depth).cpu()
    did.ranked = evaluate_encoder(embedder, task.collection, split, task.device)
    return did


def _chosen(
    task: RetrievalTask, trained: Embedder, training: TrainingSettings, did: Did
) -> Embedder:
    """Of the trained and the untrained encoder the better one on queries outside test.

    The MAW encoder has this choice too, where it was trained on another collection.
    """
    text = task.pretrained
    untrained = untrained_embedder(task.collection.doc_texts, trained.encoder.settings, text)
    untrained = untrained.to(task.device)
    cut = training.suited(text, task.device).document_tokens
    queries = judges(task.collection, learned_from=False)
    validation = Validation(task.collection, untrained, cut, queries)
    embedders = {UNTRAINED: untrained, "trained": trained}
    choice = choose({name: validation.scores(one).numpy() for name, one in embedders.items()})
    did.facts |= choice
    return embedders[choice["chosen"]]
