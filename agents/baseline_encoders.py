"""Encoders and rankers without routing: what a routed encoder has to beat.

All of them start from the MAW encoder's own first stage and take as many optimiser steps on the
same pairs as its depths do, or are not trained at all; epochs are chosen on validation queries,
epoch 0 included.
"""

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import torch
from torch import Tensor, nn

from maw_gym.corpora import Collection, load_collection
from maw_gym.encoders.embedder import Embedder, encoder_shape, untrained_embedder
from maw_gym.encoders.text import TextEncoder, WordLlama
from maw_gym.encoders.training.selection import (
    Trained,
    encoder_path,
    kept_encoder,
    train_encoder,
    trained_attention,
    trained_in_place,
)
from maw_gym.encoders.training.settings import TrainingSettings
from maw_gym.errors import InputError, one_of
from maw_gym.retrieval.evaluation import DEPTH_OF_RANKING, Evaluation, evaluate_rankings
from maw_gym.retrieval.search import Ranking
from maw_gym.tables.task import RetrievalTask

log = logging.getLogger(__name__)

UNTRAINED: Final = ("mean_pooling", "zero_shot")
TRAINED: Final = ("non_maw", "single_depth")


def baseline_encoder(
    name: str,
    collection: Collection,
    sources: Sequence[Collection] = (),
    device: torch.device | str = "cpu",
    settings: TrainingSettings | None = None,
    text: TextEncoder | None = None,
) -> Trained:
    """An encoder of `UNTRAINED` or `TRAINED`; trained ones are kept in the cache folder.

    ``non_maw`` trains the standard attention for as many steps as a MAW encoder has in both stages;
    ``single_depth`` is a MAW encoder of one depth.
    """
    one_of("encoder", name, UNTRAINED + TRAINED)
    text = text or WordLlama()
    settings = (settings or TrainingSettings()).suited(text, device)
    ordinary = encoder_shape(text, 0)
    if name in UNTRAINED:
        embedder = untrained_embedder(collection.doc_texts, ordinary, text)
        if name == "mean_pooling":
            with torch.no_grad():
                embedder.encoder.out_proj.weight.zero_()
                embedder.encoder.token_weight.zero_()
        return embedder.to(device), {"baseline": name}
    if not any(source.splits["encoder"].ids for source in sources):
        raise InputError(f"encoder {name!r} needs a collection with an `encoder` split to train on")
    shape = encoder_shape(text).to_json()
    about = {"baseline": name, "settings": settings.to_json(), "shape": shape}

    def build() -> Trained:
        log.info("training encoder %s", name)
        began = time.perf_counter()
        if name == "single_depth":
            one = replace(ordinary, depths=1)
            embedder, provenance = train_encoder(sources, device, settings, one, text=text)
        else:
            embedder, provenance = trained_attention(sources, device, settings, ordinary, text)
            embedder.encoder.requires_grad_(True)
            again = replace(settings, epochs=settings.depth_epochs, seed=settings.seed + 1)
            pairs, best = trained_in_place(embedder, sources, again)
            epochs = settings.epochs + settings.depth_epochs
            provenance |= {
                "settings": settings.to_json(),
                "steps": epochs * math.ceil(pairs / settings.batch_size),
                "continued": best,
            }
        seconds = round(time.perf_counter() - began, 1)
        return embedder, {"baseline": name, "seconds": seconds, **provenance}

    return kept_encoder(encoder_path(name, sources, device, about, text), device, build)


def training_sources(task: RetrievalTask) -> list[Collection]:
    """The collections that a task's encoder was trained on, for baselines on the same pairs."""
    training = task.encoder_provenance.get("training") or task.encoder_provenance
    names = training.get("names")
    if not names:
        names = [task.collection.name if task.collection.splits["encoder"].ids else "pydocs"]
    return [
        task.collection if name == task.collection.name else load_collection(name) for name in names
    ]


def evaluate_encoder(
    embedder: Embedder, collection: Collection, split: str, device: torch.device | str = "cpu"
) -> tuple[Evaluation, Ranking]:
    """Retrieval of an encoder that routes nothing: it has no depth, or one."""
    depths = None
    if embedder.encoder.settings.depths:
        depths = torch.zeros(len(collection.splits[split].ids), dtype=torch.long)
    return RetrievalTask(collection, embedder, device).evaluate(split, depths)


@torch.no_grad()
def ensemble_queries(embedder: Embedder, texts: Sequence[str]) -> Tensor:
    """Embeddings (N, h) of queries: the mean of all depths' embeddings, of unit length."""
    ids = embedder.query_ids(texts)
    result = torch.zeros(len(ids), embedder.text.width, device=embedder.device)
    for rows, statistics in embedder.query_statistics(ids):
        result[rows] = nn.functional.normalize(statistics.embeddings.mean(1), dim=-1)
    return result


def evaluate_bm25(task: RetrievalTask, split: str) -> tuple[Evaluation, Ranking]:
    """Retrieval of BM25 over the whole collection, equal scores in trec_eval's order."""
    queries = task.collection.splits[split]
    own = task.index.own_documents(queries)
    ranking = task.bm25.rank(queries.texts, DEPTH_OF_RANKING, own)
    documents = ranking.documents.numpy()
    return evaluate_rankings(queries, task.collection.doc_ids, documents), ranking
