"""A collection's texts and the hidden states that a frozen transformer gives them.

Static token embeddings are looked up anyway, and weights in training change: their embedders come
back as they are.
"""

from collections.abc import Sequence
from dataclasses import replace

from maw_gym.corpora import Collection
from maw_gym.encoders.embedder import Embedder
from maw_gym.encoders.text import Transformer
from maw_gym.encoders.text.states import StoredStates


def with_query_states(embedder: Embedder, collection: Collection) -> Embedder:
    """The same embedder, which keeps the states of all queries of a collection on disk."""
    queries = [query for split in collection.splits.values() for query in split.texts]
    return _with_states(embedder, collection, "queries", queries, embedder.query_tokens)


def with_document_states(embedder: Embedder, collection: Collection) -> Embedder:
    """The same embedder, which keeps the states of a collection's documents on disk.

    A transformer that was trained here reads documents once, for their index, and keeps none.
    """
    if isinstance(embedder.text, Transformer) and embedder.text.tuned:
        return embedder
    documents = collection.doc_texts
    return _with_states(embedder, collection, "documents", documents, embedder.document_tokens)


def _with_states(
    embedder: Embedder, collection: Collection, kind: str, texts: Sequence[str], limit: int
) -> Embedder:
    text = embedder.text
    if not isinstance(text, Transformer) or text.trained:
        return embedder
    states = StoredStates(
        text,
        {"texts": kind, "tokens": limit, "collection": collection.provenance["content"]},
        lambda: [text.cut(ids, limit) for ids in text.tokenize(texts)],
        embedder.device,
        f"hidden states of {kind}",
    )
    return replace(embedder, text=text.knowing(*text.states, states))
