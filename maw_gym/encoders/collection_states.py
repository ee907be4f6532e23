"""A collection's texts and the hidden states that a frozen transformer gives them."""

from collections.abc import Sequence
from dataclasses import replace

from maw_gym.corpora import Collection
from maw_gym.encoders.embedder import Embedder
from maw_gym.encoders.text import Transformer
from maw_gym.encoders.text.states import StoredStates


def with_stored_states(embedder: Embedder, collection: Collection, documents: bool) -> Embedder:
    """The same embedder, which computes the states of a collection's texts once and keeps them.

    Static token embeddings are looked up anyway, and weights in training change: their embedders
    come back as they are.

    Args:
        embedder: cuts the texts.
        collection: all its queries are kept.
        documents: keep its documents too.
    """
    text = embedder.text
    if not isinstance(text, Transformer) or text.trained:
        return embedder

    def stored(kind: str, texts: Sequence[str], limit: int) -> StoredStates:
        about = {"texts": kind, "tokens": limit, "collection": collection.provenance["content"]}
        return StoredStates(
            text,
            about,
            lambda: [text.cut(ids, limit) for ids in text.tokenize(texts)],
            embedder.device,
            f"hidden states of {kind}",
        )

    queries = [query for split in collection.splits.values() for query in split.texts]
    states = [stored("queries", queries, embedder.query_tokens)]
    if documents:
        states.append(stored("documents", collection.doc_texts, embedder.document_tokens))
    return replace(embedder, text=text.knowing(*text.states, *states))
