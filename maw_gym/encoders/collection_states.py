"""A collection's texts and the hidden states that a frozen transformer gives them.

Static token embeddings are looked up anyway, and weights in training change: their embedders come
back as they are.
"""

from collections.abc import Callable
from dataclasses import replace

from maw_gym.corpora import Collection
from maw_gym.encoders.embedder import Embedder
from maw_gym.encoders.text import Transformer
from maw_gym.encoders.text.states import Ids, StoredStates


def with_query_states(embedder: Embedder, collection: Collection) -> Embedder:
    """The same embedder, which keeps the states of all queries of a collection on disk."""

    def ids() -> Ids:
        return embedder.query_ids(
            [query for split in collection.splits.values() for query in split.texts]
        )

    return with_token_states(embedder, collection, "queries", embedder.query_tokens, ids)


def with_document_states(embedder: Embedder, collection: Collection) -> Embedder:
    """The same embedder, which keeps the states of a collection's documents on disk.

    A transformer that was trained here reads documents once, for their index, and keeps none.
    """
    if isinstance(embedder.text, Transformer) and embedder.text.tuned:
        return embedder

    def ids() -> Ids:
        return embedder.document_ids(collection.doc_texts)

    return with_token_states(embedder, collection, "documents", embedder.document_tokens, ids)


def with_token_states(
    embedder: Embedder, collection: Collection, kind: str, limit: int, ids: Callable[[], Ids]
) -> Embedder:
    """The same embedder, which keeps the states of some texts of a collection on disk.

    Args:
        embedder: over any text encoder.
        collection: has the texts.
        kind: which of its texts these are.
        limit: tokens that they are cut at.
        ids: gives their token ids; called only where the states are not on disk.
    """
    text = embedder.text
    if not isinstance(text, Transformer) or text.trained:
        return embedder
    about = {"texts": kind, "tokens": limit, "collection": collection.provenance["content"]}
    states = StoredStates(text, about, ids, embedder.device, f"hidden states of {kind}")
    return replace(embedder, text=text.knowing(*text.states, states))
