"""The trained encoder of a collection: candidates chosen on validation queries, cached."""

import contextlib
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from maw_gym.corpora import Collection, is_pydocs, load_collection
from maw_gym.encoders.attention_encoders import EncoderSettings
from maw_gym.encoders.embedder import Embedder
from maw_gym.encoders.encoder_files import load_embedder, save_embedder, untrained_embedder
from maw_gym.encoders.text import WordLlama
from maw_gym.encoders.training.pairs import pairs_of
from maw_gym.encoders.training.stages import TrainingSettings, specialise_depths, train
from maw_gym.encoders.training.validation import Validation
from maw_gym.files.cache import cache_home, content_key, kept_or_built
from maw_gym.files.epoch_checkpoints import forget_checkpoints

log = logging.getLogger(__name__)

FORMAT = 1  # raise when training itself changes


def trained_embedder(
    collection: Collection,
    device: torch.device | str = "cpu",
    settings: TrainingSettings | None = None,
) -> tuple[Embedder, dict[str, Any]]:
    """The best of several encoders on the collection's validation queries.

    Candidates are the untrained encoder, one trained on the collection's own `encoder` split, and
    one trained on that and pydocs; for a collection without an `encoder` split, the untrained one
    and the one trained on pydocs. Of equal scores the earlier wins. Without validation queries
    nothing can be chosen, and the untrained encoder is taken.

    Args:
        collection: what to encode.
        device: where training runs.
        settings: of the training; None are the defaults.

    Returns:
        The embedder, and its provenance: the candidates' validation scores, which was chosen, and
        how it was trained.
    """
    settings = settings or TrainingSettings()
    path = _path("chosen", [collection], device, settings)

    def build() -> tuple[Embedder, dict[str, Any]]:
        embedder, provenance = _choose(collection, device, settings)
        save_embedder(path, embedder, provenance)
        return embedder, provenance

    embedder, provenance = kept_or_built(path, load_embedder, build)
    return embedder.to(device), provenance


def _choose(
    collection: Collection, device: torch.device | str, settings: TrainingSettings
) -> tuple[Embedder, dict[str, Any]]:
    untrained = untrained_embedder(collection.doc_texts).to(device)
    validation = Validation(collection, untrained, settings.document_tokens)
    found: dict[str, tuple[float, Embedder, dict[str, Any]]] = {
        "untrained": (validation.score(untrained), untrained, {})
    }
    for name, sources in _candidates(collection).items():
        embedder, provenance = _trained(sources, device, settings)
        found[name] = (validation.score(embedder), embedder, provenance)
    scores = {name: score for name, (score, _, _) in found.items()}
    chosen = max(scores, key=lambda name: scores[name]) if validation.queries.ids else "untrained"
    log.info("encoder of %s: %s, of validation nDCG@10 %s", collection.name, chosen, scores)
    _, embedder, provenance = found[chosen]
    return embedder, {"chosen": chosen, "validation nDCG@10": scores, "training": provenance}


def _path(
    kind: str,
    sources: Sequence[Collection],
    device: torch.device | str,
    settings: TrainingSettings,
) -> Path:
    """Where an encoder is cached; the name holds a key of all it depends on."""
    key = content_key(
        {
            "format": FORMAT,
            "sources": [source.provenance["content"] for source in sources],
            "settings": settings.to_json(),
            "text": WordLlama.name,
            "device": torch.device(device).type,
        }
    )
    return cache_home() / "encoders" / f"{kind}-{key}.safetensors"


def _candidates(collection: Collection) -> dict[str, list[Collection]]:
    if not collection.splits["validation"].ids:
        return {}
    own = bool(collection.splits["encoder"].ids)
    if is_pydocs(collection):  # pydocs may have read its test queries
        return {"own pairs": [collection]} if own else {}
    pydocs = load_collection("pydocs")
    if own:
        return {"own pairs": [collection], "own pairs and pydocs": [collection, pydocs]}
    return {"pydocs": [pydocs]}


def _trained(
    sources: Sequence[Collection],
    device: torch.device | str,
    settings: TrainingSettings,
) -> tuple[Embedder, dict[str, Any]]:
    """The embedder trained on `sources` and judged on the first of them; read if it was built."""
    path = _path("trained", sources, device, settings)

    def build() -> tuple[Embedder, dict[str, Any]]:
        log.info("training an encoder on %s", [source.name for source in sources])
        embedder, provenance = train_encoder(sources, sources[0], device, settings, checkpoint=path)
        save_embedder(path, embedder, provenance)
        return embedder, provenance

    embedder, provenance = kept_or_built(path, load_embedder, build)
    with contextlib.suppress(OSError):  # left by a kill after the end; the cache may be read-only
        forget_checkpoints(path)
    return embedder.to(device), provenance


def train_encoder(
    sources: Sequence[Collection],
    judge: Collection,
    device: torch.device | str,
    settings: TrainingSettings,
    shape: EncoderSettings | None = None,
    checkpoint: Path | None = None,
) -> tuple[Embedder, dict[str, Any]]:
    """Train an encoder in both stages.

    Args:
        sources: their `encoder` splits are the pairs.
        judge: its `validation` split chooses the epochs; its documents give the idf weights.
        device: where to train.
        settings: see `TrainingSettings`.
        shape: of the encoder; None is the default MAW encoder. NON-MAW encoders and a training
            without depth epochs have no second stage.
        checkpoint: the file that the encoder is trained for; epochs are kept beside it, and a
            training that was stopped goes on after its last one. None keeps nothing.

    Returns:
        The embedder and its provenance.
    """
    embedder = untrained_embedder(judge.doc_texts, shape).to(device)
    if settings.train_embedding:
        table = torch.nn.Parameter(WordLlama().embedding.clone().to(device))
        embedder = Embedder(WordLlama(table), embedder.encoder)
    pairs = pairs_of(sources, embedder)
    validation = Validation(judge, embedder, settings.document_tokens)
    with torch.no_grad():
        # The residual alone to begin with: training starts from plain pooling.
        embedder.encoder.out_proj.weight.zero_()
    best = train(embedder, pairs, validation, settings, checkpoint=checkpoint)
    provenance: dict[str, Any] = {
        "collections": [source.provenance["content"] for source in sources],
        "names": [source.name for source in sources],
        "settings": settings.to_json(),
        "pairs": len(pairs.queries),
        "attention": {"epoch": best.epoch, "validation nDCG@10": best.score},
    }
    if embedder.encoder.settings.depths and settings.depth_epochs:
        best = specialise_depths(embedder, pairs, validation, settings, checkpoint)
        provenance["depths"] = {"epoch": best.epoch, "validation nDCG@10": best.score}
    embedder.encoder.eval().requires_grad_(False)
    return embedder, provenance
