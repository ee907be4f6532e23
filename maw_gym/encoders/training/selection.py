"""The trained encoder of a collection: candidates chosen on validation queries, cached."""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from maw_gym.corpora import Collection, is_pydocs, load_collection
from maw_gym.distributed import check_same, check_shares, from_first
from maw_gym.encoders.collection_states import (
    with_query_states,
    with_token_states,
)
from maw_gym.encoders.embedder import Embedder
from maw_gym.encoders.encoder_files import (
    CONTEXTUAL_OUTPUT,
    encoder_shape,
    untrained_embedder,
)
from maw_gym.encoders.text import TextEncoder, WordLlama
from maw_gym.encoders.training.choice import UNTRAINED, choose, judges
from maw_gym.encoders.training.settings import TrainingSettings
from maw_gym.encoders.training.stages import (
    Trained,
    encoder_path,
    kept_encoder,
    train_encoder,
    trained_attention,
    with_states,
)
from maw_gym.encoders.training.validation import Validation
from maw_gym.files import content_key

log = logging.getLogger(__name__)

CHOICE = 1  # raise when candidates or their choice change


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
        The embedder, and its provenance: what `choose` says of the candidates, and how the chosen
        one was trained.
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
        untrained = _untrained(collection, text, others)
        candidates = _candidates(collection)
        scores = _scores(collection, untrained, candidates, device, settings, text)
        # A rounding apart, others might choose another.
        choice = from_first(choose(scores))
        log.info("encoder of %s: %s", collection.name, choice)
        training: dict[str, Any] = {}
        if choice["chosen"] in untrained:
            embedder = untrained[choice["chosen"]](32).to(device)
        else:
            sources = candidates[choice["chosen"]]
            embedder, training = train_encoder(
                sources, device, settings, checkpoint=path, text=text
            )
        return embedder, {**choice, "training": training}

    return kept_encoder(path, device, build)


def _untrained(
    collection: Collection, text: TextEncoder, others: Sequence[TextEncoder]
) -> dict[str, Callable[[int], Embedder]]:
    """Candidates that need no training, by name: of a number of depths."""

    def make(text: TextEncoder, depths: int) -> Embedder:
        return untrained_embedder(collection.doc_texts, encoder_shape(text, depths), text)

    def mean_pooling(depths: int) -> Embedder:
        embedder = make(text, depths)
        with torch.no_grad():
            embedder.encoder.token_weight.zero_()
            # Enough of V to tell the depths apart.
            torch.nn.init.eye_(embedder.encoder.out_proj.weight).mul_(CONTEXTUAL_OUTPUT)
        return embedder

    return {
        UNTRAINED: partial(make, text),
        "mean pooling": mean_pooling,
        **{f"untrained {other.name}": partial(make, other) for other in others},
    }


def _candidates(collection: Collection) -> dict[str, list[Collection]]:
    """What the trained candidates are trained on, by name."""
    own = bool(collection.splits["encoder"].ids and collection.splits["validation"].ids)
    if is_pydocs(collection):  # pydocs may have read its test queries
        return {"own pairs": [collection]} if own else {}
    if not judges(collection, own).ids:
        return {}
    pydocs = load_collection("pydocs")
    if own:
        return {"own pairs": [collection], "own pairs and pydocs": [collection, pydocs]}
    return {"pydocs": [pydocs]}


def _scores(
    collection: Collection,
    untrained: Mapping[str, Callable[[int], Embedder]],
    candidates: Mapping[str, Sequence[Collection]],
    device: torch.device | str,
    settings: TrainingSettings,
    text: TextEncoder,
) -> dict[str, NDArray[np.floating]]:
    """NDCG@10 of each judging query through the standard attention of each candidate."""
    learned_from = any(collection in sources for sources in candidates.values())
    queries = judges(collection, learned_from)
    scores = {}
    for name in [*untrained, *candidates]:
        if name in untrained:
            embedder = untrained[name](0).to(device)
        else:
            embedder, _ = trained_attention(candidates[name], device, settings, text=text)
        own = settings.suited(embedder.text, device)
        # All documents only for what is trained on their states.
        if name in candidates and not settings.train_text_encoder:
            embedder = with_states(embedder, [collection], own)
        embedder = with_query_states(embedder, collection)
        validation = Validation(collection, embedder, own.document_tokens, queries)
        if name in untrained:  # several stand on one text encoder
            embedder = _with_judged(embedder, collection, validation)
        scores[name] = validation.scores(embedder).numpy()
    return scores


def _with_judged(embedder: Embedder, collection: Collection, validation: Validation) -> Embedder:
    """The embedder, which keeps the states of the documents that candidates are judged on."""
    limit = max(map(len, validation.documents), default=0)
    kind = f"judged documents, {content_key({'documents': validation.doc_ids})}"
    return with_token_states(embedder, collection, kind, limit, lambda: validation.documents)
