"""The documents' embeddings, kept on disk: one encoding serves training, tables and search."""

from pathlib import Path
from typing import Final

from torch import Tensor

from maw_gym.corpora import Collection
from maw_gym.encoders.embedder import Embedder
from maw_gym.files.cache import cache_home, content_key, kept_or_built
from maw_gym.files.tensor_files import check_tensors, fingerprint, read_tensors, write_tensors

FORMAT: Final = 1  # raise when the meaning of the numbers changes
QUERY_SIDE: Final = ("depth_query_proj.weight", "depth_key_proj.weight", "centroids")


def document_embeddings(collection: Collection, embedder: Embedder) -> Tensor:
    """Embeddings (N, h) of a collection's documents through the standard attention.

    They do not depend on the depths: encoders that share the standard attention share the file.

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
        tensors = read_tensors(path, "documents").tensors
        check_tensors(path, tensors, shape)
        return tensors["embeddings"]

    def build() -> Tensor:
        embeddings = embedder.encode_documents(collection.doc_texts, progress=True)
        write_tensors(path, {"embeddings": embeddings}, "documents", {})
        return embeddings

    path = cache_home() / "documents" / f"{key}.safetensors"
    return kept_or_built(path, read, build).to(embedder.device)
