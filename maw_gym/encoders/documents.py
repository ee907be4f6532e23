"""The documents' embeddings, kept on disk: one encoding serves training, tables and search."""

from pathlib import Path
from typing import Final

from torch import Tensor

from maw_gym import files
from maw_gym.corpora import Collection
from maw_gym.distributed import check_same, processes
from maw_gym.encoders.collection_states import with_document_states
from maw_gym.encoders.embedder import Embedder, encoded_documents
from maw_gym.files import (
    cache_home,
    cached,
    check_tensors,
    content_key,
    fingerprint,
)

FORMAT: Final = 1  # raise when the meaning of the numbers changes
QUERY_SIDE: Final = ("depth_query_proj.weight", "depth_key_proj.weight")


def document_embeddings(collection: Collection, embedder: Embedder) -> Tensor:
    """Embeddings (N, h) of a collection's documents through the standard attention.

    They do not depend on the depths: encoders that share the standard attention share the file.
    Several processes (`maw_gym.distributed`) encode a share each.

    Args:
        collection: its documents are read from the cache folder or encoded.
        embedder: encodes them on its device, where the result lies too.
    """
    tensors = {
        name: tensor for name, tensor in embedder.tensors().items() if name not in QUERY_SIDE
    }
    key = content_key(
        {
            "format": FORMAT,
            "collection": collection.provenance["content"],
            "text": embedder.text.name,
            "tensors": fingerprint(tensors),
            "heads": embedder.encoder.heads,
            "document_tokens": embedder.document_tokens,
            "device": embedder.device.type,  # devices round differently
        }
    )
    shape = {"embeddings": (len(collection.doc_ids), embedder.text.width)}

    def read(path: Path) -> Tensor:
        tensors = files.read(path, "documents").tensors
        check_tensors(path, tensors, shape)
        return tensors["embeddings"]

    path = cache_home() / "documents" / f"{key}.safetensors"
    # States are kept by one process; several are quicker without, each with its own share.
    knowing = with_document_states(embedder, collection) if processes() == 1 else embedder

    def build() -> Tensor:
        return encoded_documents(knowing, collection.doc_ids, collection.doc_texts)[1]

    def save(path: Path, embeddings: Tensor) -> None:
        files.write(path, {"embeddings": embeddings}, "documents", {})

    check_same("collection", collection.provenance["content"])
    return cached(path, build, save, read, together=True).to(embedder.device)
