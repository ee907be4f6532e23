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
from typing import Any, Final

import torch
from torch import Tensor, nn

from maw_gym.corpora import Collection, load_collection
from maw_gym.encoders.embedder import Embedder, encoder_shape, untrained_embedder
from maw_gym.encoders.files import load_embedder, save_embedder
from maw_gym.encoders.maw import EncoderSettings
from maw_gym.encoders.text import TextEncoder, WordLlama
from maw_gym.encoders.training.losses import pairs_of
from maw_gym.encoders.training.selection import (
    grouping,
    train_encoder,
    trained_attention,
    with_states,
)
from maw_gym.encoders.training.settings import TrainingSettings
from maw_gym.encoders.training.stages import Validation, train_attention
from maw_gym.errors import InputError
from maw_gym.files import cache_home, cached, content_key
from maw_gym.retrieval.evaluation import DEPTH_OF_RANKING, Evaluation, evaluate_rankings
from maw_gym.retrieval.search import Ranking
from maw_gym.tables.task import RetrievalTask

log = logging.getLogger(__name__)

UNTRAINED: Final = ("mean_pooling", "zero_shot")
TRAINED: Final = ("non_maw", "single_depth")
ENCODERS: Final = UNTRAINED + TRAINED
FORMAT: Final = 2  # raise when training itself changes


def baseline_encoder(
    name: str,
    collection: Collection,
    sources: Sequence[Collection] = (),
    device: torch.device | str = "cpu",
    settings: TrainingSettings | None = None,
    shape: EncoderSettings | None = None,
    text: TextEncoder | None = None,
) -> tuple[Embedder, dict[str, Any]]:
    """An encoder of `ENCODERS`; trained ones are kept in the cache folder.

    - ``mean_pooling``: the mean of the tokens' states.
    - ``zero_shot``: NON-MAW, untrained.
    - ``non_maw``: NON-MAW, trained as long as both stages of a MAW encoder.
    - ``single_depth``: MAW with one depth, of the same standard attention and so of the same
      document index, and trained exactly as the depths are: same steps, same documents to rank.
      Its queries have projections of their own, as in every MAW encoder, but nothing is chosen:
      the fair control for a claim about routing.

    Args:
        name: see above.
        collection: what is searched.
        sources: collections whose `encoder` splits are the pairs, see `training_sources`; the
            first has the validation queries that choose the epochs.
        device: where training runs.
        settings: of the MAW encoder's training; None are the defaults.
        shape: of the MAW encoder; None is the default.
        text: what encoders stand on, before any training; None is WordLlama.

    Returns:
        The embedder and its provenance.

    Raises:
        InputError: another name, or a trained encoder without pairs to train on.
    """
    if name not in ENCODERS:
        raise InputError(f"unknown encoder {name!r}; choose one of {', '.join(ENCODERS)}")
    text = text or WordLlama()
    settings = (settings or TrainingSettings()).suited(text, device)
    maw = shape or encoder_shape(text)
    ordinary = replace(maw, depths=0)
    if name in UNTRAINED:
        embedder = untrained_embedder(collection.doc_texts, ordinary, text)
        if name == "mean_pooling":
            with torch.no_grad():
                embedder.encoder.out_proj.weight.zero_()
                embedder.encoder.token_weight.zero_()
        return embedder.to(device), {"baseline": name}
    if not any(source.splits["encoder"].ids for source in sources):
        raise InputError(f"encoder {name!r} needs a collection with an `encoder` split to train on")
    key = content_key(
        {
            "format": FORMAT,
            "baseline": name,
            "sources": [source.provenance["content"] for source in sources],
            **grouping(sources, settings.to_json()),
            "settings": settings.to_json(),
            "shape": maw.to_json(),
            "text": text.name,
            "device": torch.device(device).type,
        }
    )
    path = cache_home() / "encoders" / f"{name}-{key}.safetensors"

    def build() -> tuple[Embedder, dict[str, Any]]:
        log.info("training encoder %s", name)
        began = time.perf_counter()
        if name == "single_depth":
            one = replace(maw, depths=1)
            embedder, provenance = train_encoder(sources, device, settings, one, text=text)
        else:
            embedder, provenance = train_without_depths(sources, device, settings, ordinary, text)
        seconds = round(time.perf_counter() - began, 1)
        provenance = {"baseline": name, "seconds": seconds, **provenance}
        return embedder, provenance

    embedder, provenance = cached(
        path, build, lambda path, made: save_embedder(path, *made), load_embedder
    )
    return embedder.to(device), provenance


def train_without_depths(
    sources: Sequence[Collection],
    device: torch.device | str,
    settings: TrainingSettings,
    shape: EncoderSettings,
    text: TextEncoder | None = None,
) -> tuple[Embedder, dict[str, Any]]:
    """Train a NON-MAW encoder for as many steps as a MAW encoder has in both stages.

    The first stage is the MAW encoder's. The second goes on from its best epoch with the same loss,
    for as many epochs as the depths have, and with a warm restart as they have.

    Args:
        sources: see `baseline_encoder`.
        device: where training runs.
        settings: see `TrainingSettings`.
        shape: of the encoder, without depths.
        text: what it stands on; None is WordLlama. Only the first stage trains it along.

    Returns:
        The embedder and its provenance.
    """
    embedder, provenance = trained_attention(sources, device, settings, shape, text)
    embedder = with_states(embedder, sources, settings)
    embedder.encoder.requires_grad_(True)
    again = replace(settings, epochs=settings.depth_epochs, seed=settings.seed + 1)
    pairs = pairs_of(sources, embedder)
    validation = Validation(sources[0], embedder, settings.document_tokens)
    best = train_attention(embedder, pairs, validation, again)
    embedder.encoder.eval().requires_grad_(False)
    epochs = settings.epochs + settings.depth_epochs
    return embedder, {
        **provenance,
        "settings": settings.to_json(),
        "steps": epochs * math.ceil(len(pairs.queries) / settings.batch_size),
        "continued": {"epoch": best.epoch, "validation nDCG@10": best.score},
    }


def training_sources(task: RetrievalTask) -> list[Collection]:
    """The collections that a task's encoder was trained on, for baselines on the same pairs.

    Of an untrained encoder: the collection itself, or pydocs where it has no `encoder` split.
    """
    training = task.encoder_provenance.get("training") or task.encoder_provenance
    names = training.get("names")
    if not names:
        names = [task.collection.name if task.collection.splits["encoder"].ids else "pydocs"]
    return [
        task.collection if name == task.collection.name else load_collection(name) for name in names
    ]


def evaluate_encoder(
    embedder: Embedder,
    collection: Collection,
    split: str,
    device: torch.device | str = "cpu",
    k: int = DEPTH_OF_RANKING,
) -> tuple[Evaluation, Ranking]:
    """Retrieval of an encoder that routes nothing.

    Args:
        embedder: a NON-MAW one, or a MAW one with a single depth, which its queries take.
        collection: what is searched.
        split: whose queries are ranked.
        device: where texts are encoded and ranked.
        k: documents retrieved per query.

    Raises:
        InputError: the encoder has several depths.
    """
    count = embedder.encoder.settings.depths
    if count > 1:
        raise InputError(f"an encoder of {count} depths needs a router; this is for one without")
    depths = torch.zeros(len(collection.splits[split].ids), dtype=torch.long) if count else None
    return RetrievalTask(collection, embedder, device).evaluate(split, depths, k)


@torch.no_grad()
def ensemble_queries(embedder: Embedder, texts: Sequence[str]) -> Tensor:
    """Embeddings (N, h) of queries: the mean of all depths' embeddings, of unit length.

    The control for choosing one depth; it costs what D queries cost.
    """
    ids = embedder.query_ids(texts)
    result = torch.zeros(len(ids), embedder.text.width, device=embedder.device)
    for rows, statistics, _ in embedder.query_statistics(ids):
        result[rows] = nn.functional.normalize(statistics.embeddings.mean(1), dim=-1)
    return result


def evaluate_bm25(
    task: RetrievalTask, split: str, k: int = DEPTH_OF_RANKING
) -> tuple[Evaluation, Ranking]:
    """Retrieval of BM25 over the whole collection, equal scores in trec_eval's order."""
    queries = task.collection.splits[split]
    ranking = task.bm25.rank(queries.texts, k, task.index.own_documents(queries))
    documents = ranking.documents.numpy()
    return evaluate_rankings(queries, task.collection.doc_ids, documents), ranking
