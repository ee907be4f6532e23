"""An encoder trained in both stages, each kept in the cache."""

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from maw_gym.checkpoints import forget_checkpoints
from maw_gym.corpora import Collection
from maw_gym.distributed import is_first, processes
from maw_gym.encoders.attention_encoders import MAWEncoder
from maw_gym.encoders.collection_states import (
    with_document_states,
    with_query_states,
)
from maw_gym.encoders.documents import document_embeddings
from maw_gym.encoders.embedder import Embedder
from maw_gym.encoders.encoder_files import (
    encoder_shape,
    load_embedder,
    save_embedder,
    untrained_embedder,
)
from maw_gym.encoders.encoder_settings import EncoderSettings
from maw_gym.encoders.text import TextEncoder, Transformer, WordLlama
from maw_gym.encoders.training.attention_stage import train_attention
from maw_gym.encoders.training.depth_stage import train_depths
from maw_gym.encoders.training.pairs import pairs_of
from maw_gym.encoders.training.settings import TrainingSettings
from maw_gym.encoders.training.validation import Validation
from maw_gym.files import cache_home, cached, content_key

log = logging.getLogger(__name__)

FORMAT = 2  # raise when training itself changes

Trained = tuple[Embedder, dict[str, Any]]


def train_encoder(
    sources: Sequence[Collection],
    device: torch.device | str,
    settings: TrainingSettings,
    shape: EncoderSettings | None = None,
    checkpoint: Path | None = None,
    text: TextEncoder | None = None,
) -> Trained:
    """Train a MAW encoder in both stages; the first is `trained_attention`.

    Args:
        sources: their `encoder` splits are the pairs. The `validation` split of the first chooses
            the epochs, and its documents give the idf weights.
        device: where to train.
        settings: see `TrainingSettings`.
        shape: of the encoder; None is the default MAW encoder.
        checkpoint: the file that the encoder is trained for; epochs of the depths are kept beside
            it, and a training that was stopped goes on after its last one. None keeps nothing.
        text: what the encoder stands on; None is WordLlama.

    Returns:
        The embedder and its provenance.
    """
    text = text or WordLlama()
    settings = settings.suited(text, device)
    shape = shape or encoder_shape(text)
    attention, provenance = trained_attention(sources, device, settings, shape, text)
    embedder = with_states(with_depths(attention, shape.depths), sources, settings)
    documents = [document_embeddings(source, attention) for source in sources]
    validation = Validation(sources[0], embedder, settings.document_tokens)
    best = train_depths(
        embedder,
        pairs_of(sources, embedder),
        torch.cat(documents),
        validation,
        validation.index(documents[0]),
        settings,
        checkpoint,
    )
    return embedder, {
        **provenance,
        "settings": settings.to_json(),
        "depths": {"epoch": best.epoch, "validation nDCG@10": best.score},
    }


def trained_attention(
    sources: Sequence[Collection],
    device: torch.device | str,
    settings: TrainingSettings,
    shape: EncoderSettings | None = None,
    text: TextEncoder | None = None,
) -> Trained:
    """A NON-MAW encoder after the first stage, in the cache: what all depths start from.

    Encoders that differ in the second stage alone, such as one of a single depth, share it.

    Args:
        sources: see `train_encoder`.
        device: where to train.
        settings: of which those of the first stage count.
        shape: of the encoder, whatever its depths; None is the default.
        text: what the encoder stands on; None is WordLlama.

    Returns:
        The embedder and its provenance.
    """
    text = text or WordLlama()
    settings = settings.suited(text, device)
    shape = replace(shape or encoder_shape(text), depths=0)
    about = {"settings": settings.of_attention(), "shape": shape.to_json()}
    path = encoder_path("attention", sources, device, about, text)

    def build() -> Trained:
        log.info("training an encoder on %s", [source.name for source in sources])
        embedder = untrained_embedder(sources[0].doc_texts, shape, text).to(device)
        if settings.train_text_encoder:
            embedder = replace(embedder, text=_trainable(text, settings, embedder.device))
        embedder = with_states(embedder, sources, settings)
        pairs = pairs_of(sources, embedder)
        validation = Validation(sources[0], embedder, settings.document_tokens)
        with torch.no_grad():
            # The residual alone to begin with: training starts from plain pooling.
            embedder.encoder.out_proj.weight.zero_()
        best = train_attention(embedder, pairs, validation, settings, path)
        embedder.encoder.eval().requires_grad_(False)
        for weight in embedder.text.own_weights().values():
            weight.requires_grad_(False)
        return embedder, {
            "collections": [source.provenance["content"] for source in sources],
            "names": [source.name for source in sources],
            "settings": settings.of_attention(),
            "pairs": len(pairs.queries),
            "attention": {"epoch": best.epoch, "validation nDCG@10": best.score},
        }

    return kept_encoder(path, device, build)


def _trainable(text: TextEncoder, settings: TrainingSettings, device: torch.device) -> TextEncoder:
    """A copy of the text encoder whose weights take gradients."""
    if isinstance(text, Transformer):
        longest = settings.query_tokens + settings.document_tokens
        share = -(-settings.batch_size // processes())
        trainable = text.trainable(share * longest, device)
        if trainable.recompute:
            log.info("memory is short: what the backward pass needs is computed again")
        return trainable
    return WordLlama(torch.nn.Parameter(WordLlama().embedding.clone().to(device)))


def with_states(
    embedder: Embedder, sources: Sequence[Collection], settings: TrainingSettings
) -> Embedder:
    """The embedder, which reads what is trained and judged on from disk where states are frozen."""
    cut = replace(
        embedder, query_tokens=settings.query_tokens, document_tokens=settings.document_tokens
    )
    for source in sources:
        cut = with_document_states(with_query_states(cut, source), source)
    # Queries are judged at the length at which they will be searched.
    return with_query_states(replace(embedder, text=cut.text), sources[0])


def with_depths(embedder: Embedder, depths: int) -> Embedder:
    """The embedder with a MAW encoder of that many depths, whose standard attention is the same."""
    encoder = MAWEncoder(replace(embedder.encoder.settings, depths=depths)).to(embedder.device)
    encoder.load_state_dict(encoder.state_dict() | embedder.encoder.state_dict())
    return replace(embedder, encoder=encoder.eval().requires_grad_(False))


def grouping(sources: Sequence[Collection], settings: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a key that says which query is in which group, where training asks for it."""
    if "balance" not in settings:
        return {}
    return {"groups": [dict(source.groups.queries) for source in sources]}


def encoder_path(
    kind: str,
    sources: Sequence[Collection],
    device: torch.device | str,
    about: Mapping[str, Any],
    text: TextEncoder,
) -> Path:
    """Where an encoder is cached; the name holds a key of all it depends on."""
    key = content_key(
        {
            "format": FORMAT,
            "sources": [source.provenance["content"] for source in sources],
            **grouping(sources, about["settings"]),
            "text": text.name,
            "device": torch.device(device).type,
            **about,
        }
    )
    return cache_home() / "encoders" / f"{kind}-{key}.safetensors"


def kept_encoder(path: Path, device: torch.device | str, build: Callable[[], Trained]) -> Trained:
    """The encoder at `path`, built if need be; checkpoints of a finished training go."""
    embedder, provenance = cached(
        path, build, lambda path, made: save_embedder(path, *made), load_embedder, together=True
    )
    with contextlib.suppress(OSError):  # left by a kill after the end; the cache may be read-only
        if is_first():
            forget_checkpoints(path)
    return embedder.to(device), provenance
