"""The trained encoder of a collection: candidates, their training, and the choice among them."""

import contextlib
import copy
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from maw_gym.checkpoints import forget_checkpoints
from maw_gym.corpora import Collection, QuerySet, is_pydocs, load_collection
from maw_gym.distributed import check_same, check_shares, from_first, is_first, processes
from maw_gym.encoders.embedder import CONTEXTUAL_OUTPUT, Embedder, encoder_shape, untrained_embedder
from maw_gym.encoders.files import (
    document_embeddings,
    load_embedder,
    save_embedder,
    with_document_states,
    with_query_states,
    with_token_states,
)
from maw_gym.encoders.maw import EncoderSettings, MAWEncoder
from maw_gym.encoders.text import TextEncoder, WordLlama, tokenized_once
from maw_gym.encoders.training.settings import TrainingSettings
from maw_gym.encoders.training.stages import Validation, pairs_of, train_attention, train_depths
from maw_gym.encoders.transformer import Transformer
from maw_gym.errors import InputError
from maw_gym.files import cache_home, cached, content_key

log = logging.getLogger(__name__)
FORMAT = 2  # raise when training itself changes
CHOICE = 2  # raise when candidates or their choice change
Trained = tuple[Embedder, dict[str, Any]]
UNTRAINED: Final = "untrained"
JUDGES: Final = 2000  # so many queries at most are asked
# Over a transformer an encoder of pydocs takes a quarter of an hour to train on a CPU. Of fewer
# queries the standard error of nDCG@10 (deviations of some .3) is beyond what it could be better.
JUDGES_OF_TRANSFORMERS: Final = 100


def train_encoder(
    sources: Sequence[Collection],
    device: torch.device | str,
    settings: TrainingSettings,
    shape: EncoderSettings | None = None,
    checkpoint: Path | None = None,
    text: TextEncoder | None = None,
) -> Trained:
    """A MAW encoder after both stages, of which the first is `trained_attention`.

    The `encoder` splits of the sources are the pairs. The `validation` split of the first chooses
    the epochs, and its documents give the idf weights. Epochs of the depths are kept beside
    `checkpoint`, the file that the encoder is trained for.
    """
    text = text or WordLlama()
    shape, settings = shape or encoder_shape(text), settings.suited(text, device)
    attention, provenance = trained_attention(sources, device, settings, shape, text)
    embedder = with_states(with_depths(attention, shape.depths), sources, settings)
    documents = [document_embeddings(source, attention) for source in sources]
    validation = Validation(sources[0], embedder, settings.document_tokens)
    pairs, index = pairs_of(sources, embedder), validation.index(documents[0])
    best = train_depths(
        embedder, pairs, torch.cat(documents), validation, index, settings, checkpoint
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
    """The NON-MAW encoder after the first stage, cached: those that differ in the second share it.

    Arguments are those of `train_encoder`.
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
            if not isinstance(text, (WordLlama, Transformer)):
                raise InputError(f"text encoder {text.name!r} cannot be trained along")
            longest = settings.query_tokens + settings.document_tokens
            tokens = -(-settings.batch_size // processes()) * longest
            embedder = replace(embedder, text=text.trainable(tokens, embedder.device))
        with torch.no_grad():
            # The residual alone to begin with: training starts from plain pooling.
            embedder.encoder.out_proj.weight.zero_()
        pairs, best = trained_in_place(embedder, sources, settings, path)
        return embedder, {
            "collections": [source.provenance["content"] for source in sources],
            "names": [source.name for source in sources],
            "settings": settings.of_attention(),
            "pairs": pairs,
            "attention": best,
        }

    return kept_encoder(path, device, build)


def trained_in_place(
    embedder: Embedder,
    sources: Sequence[Collection],
    settings: TrainingSettings,
    checkpoint: Path | None = None,
) -> tuple[int, dict[str, Any]]:
    """Train the standard attention; the number of pairs, and the best epoch."""
    knowing = with_states(embedder, sources, settings)
    pairs = pairs_of(sources, knowing)
    validation = Validation(sources[0], knowing, settings.document_tokens)
    best = train_attention(knowing, pairs, validation, settings, checkpoint)
    return len(pairs.queries), {"epoch": best.epoch, "validation nDCG@10": best.score}


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


def encoder_path(
    kind: str,
    sources: Sequence[Collection],
    device: torch.device | str,
    about: Mapping[str, Any],
    text: TextEncoder,
) -> Path:
    """Where an encoder is cached; the name holds a key of all it depends on."""
    content = {
        "format": FORMAT,
        "sources": [source.provenance["content"] for source in sources],
        "text": text.name,
        "device": torch.device(device).type,
        **about,
    }
    if "balance" in about["settings"]:  # training asks which query is in which group
        content["groups"] = [dict(source.groups.queries) for source in sources]
    return cache_home() / "encoders" / f"{kind}-{content_key(content)}.safetensors"


def kept_encoder(path: Path, device: torch.device | str, build: Callable[[], Trained]) -> Trained:
    """The encoder at `path`, built if need be; checkpoints of a finished training go."""
    with tokenized_once():
        embedder, provenance = cached(
            path, build, lambda path, made: save_embedder(path, *made), load_embedder, together=True
        )
    with contextlib.suppress(OSError):  # left by a kill after the end; the cache may be read-only
        if is_first():
            forget_checkpoints(path)
    return embedder.to(device), provenance


def judges(collection: Collection, learned_from: bool) -> QuerySet:
    """The queries that choose an encoder: all outside test that no candidate has learned from.

    `learned_from` says whether one has learned from the collection's `encoder` split.
    """
    splits = ("validation", "train") if learned_from else ("validation", "train", "encoder")
    parts = zip(*(collection.splits[split] for split in splits), strict=True)
    return QuerySet(*(tuple(chain.from_iterable(part))[:JUDGES] for part in parts))


def choose(scores: Mapping[str, NDArray[np.floating]]) -> dict[str, Any]:
    """The candidate of the largest mean, as JSON values, of nDCG@10 (N,) by the candidate's name.

    A candidate takes the place of `UNTRAINED` only where its advantage, the mean difference of the
    two over queries, exceeds the standard error of that mean (null of one query): with few queries
    the largest mean is often luck.
    """
    before = np.asarray(scores[UNTRAINED], np.float64)
    chosen, best, candidates = UNTRAINED, before.mean() if len(before) else 0.0, {}
    for name, values in scores.items():
        difference = np.asarray(values, np.float64) - before
        count = len(difference)
        mean = float(np.mean(values)) if count else 0.0
        advantage = float(difference.mean()) if count else 0.0
        error = float(difference.std(ddof=1)) / math.sqrt(count) if count > 1 else None
        candidates[name] = {"nDCG@10": mean, "advantage": advantage, "standard error": error}
        if error is not None and advantage > error and mean > best:
            chosen, best = name, mean
    return {"chosen": chosen, "queries": len(before), "candidates": candidates}


def trained_embedder(
    collection: Collection,
    device: torch.device | str = "cpu",
    settings: TrainingSettings | None = None,
    text: TextEncoder | None = None,
    others: Sequence[TextEncoder] = (),
) -> Trained:
    """The best of several encoders, with its depths.

    Candidates are the untrained encoder, the same with equal pooling weights ("mean pooling"), one
    trained on the collection's own `encoder` split, and one trained on that and pydocs; for a
    collection without an `encoder` split the one trained on pydocs; and untrained encoders over
    other text encoders. Their standard attentions are compared, see `choose`. Depths are trained
    for the chosen one, if it is a trained one.

    Args:
        collection: what to encode.
        device: where training runs.
        settings: of the training; None are the defaults.
        text: what the encoder stands on; None is WordLlama.
        others: further text encoders, of which an untrained encoder is a candidate.

    Returns:
        The embedder, and its provenance: the candidates' nDCG@10, the chosen one's training.
    """
    text = text or WordLlama()
    settings = (settings or TrainingSettings()).suited(text, device)
    check_shares(settings.batch_size)
    check_same("collection", collection.provenance["content"])
    about = {
        "settings": settings.to_json(),
        "choice": CHOICE,
        "others": [other.name for other in others],
    }
    path = encoder_path("trained", [collection], device, about, text)

    def build() -> Trained:
        untrained = _untrained(collection, [text, *others])
        candidates = _candidates(collection, text)
        scores = _scores(collection, untrained, candidates, device, settings, text)
        # A rounding apart, others might choose another.
        choice = from_first(choose(scores))
        log.info("encoder of %s: %s", collection.name, choice)
        chosen = choice["chosen"]
        if chosen in untrained:
            return with_depths(untrained[chosen].to(device), 32), {**choice, "training": {}}
        sources = candidates[chosen]
        embedder, training = train_encoder(sources, device, settings, None, path, text)
        return embedder, {**choice, "training": training}

    return kept_encoder(path, device, build)


def _untrained(collection: Collection, texts: Sequence[TextEncoder]) -> dict[str, Embedder]:
    """Candidates that need no training, by name, without depths; the first text has two."""
    made = [untrained_embedder(collection.doc_texts, encoder_shape(one, 0), one) for one in texts]
    pooled = copy.deepcopy(made[0].encoder)
    with torch.no_grad():
        pooled.token_weight.zero_()
        # Enough of V to tell the depths apart.
        torch.nn.init.eye_(pooled.out_proj.weight).mul_(CONTEXTUAL_OUTPUT)
    others = {f"untrained {one.text.name}": one for one in made[1:]}
    return {UNTRAINED: made[0], "mean pooling": replace(made[0], encoder=pooled), **others}


def _candidates(collection: Collection, text: TextEncoder) -> dict[str, list[Collection]]:
    """What the trained candidates are trained on, by name."""
    own = bool(collection.splits["encoder"].ids and collection.splits["validation"].ids)
    asked = len(judges(collection, own).ids)
    if is_pydocs(collection):  # pydocs may have read its test queries
        return {"own pairs": [collection]} if own else {}
    if not asked:
        return {}
    if not own and asked < JUDGES_OF_TRANSFORMERS and not text.static:
        log.info("%d queries are too few to prefer a %s trained on pydocs", asked, text.name)
        return {}
    pydocs = load_collection("pydocs")
    if own:
        return {"own pairs": [collection], "own pairs and pydocs": [collection, pydocs]}
    return {"pydocs": [pydocs]}


def _scores(
    collection: Collection,
    untrained: Mapping[str, Embedder],
    candidates: Mapping[str, Sequence[Collection]],
    device: torch.device | str,
    settings: TrainingSettings,
    text: TextEncoder,
) -> dict[str, NDArray[np.floating]]:
    """NDCG@10 of each judging query through the standard attention of each candidate."""
    queries = judges(collection, any(collection in sources for sources in candidates.values()))

    def scores_of(embedder: Embedder, trained: bool) -> NDArray[np.floating]:
        own = settings.suited(embedder.text, device)
        validation = Validation(collection, embedder, own.document_tokens, queries)
        ids = validation.documents
        if trained or len(ids) == len(collection.doc_ids):
            embedder = with_states(embedder, [collection], own)
        else:  # several stand on one text encoder
            kind = f"judged documents, {content_key({'documents': validation.doc_ids})}"
            longest = max(map(len, ids), default=0)
            embedder = with_token_states(embedder, collection, kind, longest, lambda: ids)
            embedder = with_query_states(embedder, collection)
        found: NDArray[np.floating] = validation.scores(embedder).numpy()
        return found

    scores = {name: scores_of(one.to(device), False) for name, one in untrained.items()}
    for name, sources in candidates.items():
        scores[name] = scores_of(trained_attention(sources, device, settings, text=text)[0], True)
    return scores
