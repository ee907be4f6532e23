"""Documents that are read as a stream, encoded part by part.

Equal texts have one vector in the end, whichever batch and part they came in: rounding would else
make vectors of them that differ a little, and order what should tie.
"""

import hashlib
from array import array
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from maw_gym.checks import checked_texts
from maw_gym.encoders.embedder import Embedder
from maw_gym.errors import DamagedFileError, InputError
from maw_gym.files.cache import content_key
from maw_gym.files.tensor_files import read_tensors, write_tensors
from maw_gym.retrieval.search_index import Part

PART: Final = 32_768  # documents whose texts and tokens are held at once
KIND: Final = "part of an index"


def encoded_parts(
    embedder: Embedder,
    doc_ids: Iterable[str],
    texts: Iterable[str],
    dtype: torch.dtype,
    folder: Path | None = None,
) -> Iterator[Part]:
    """Documents encoded in portions of `PART`.

    Args:
        embedder: see `Embedder.encode_documents`.
        doc_ids: N ids, read once.
        texts: N texts, read once beside the ids.
        dtype: of the vectors, torch.float32 or torch.float16.
        folder: where each part is kept in a file of its own, so that an encoding that was stopped
            goes on behind its last part; None keeps nothing.

    Raises:
        InputError: an id or a text that is no string, or more of one than of the other.
    """
    encoder = embedder.fingerprint()
    for given, what in ((doc_ids, "document ids"), (texts, "texts")):
        if not isinstance(given, Iterable):
            checked_texts(given, what)
    streams = iter(doc_ids), iter(texts)
    number = 0
    while True:
        some_ids = checked_texts(islice(streams[0], PART), "document ids")
        some = checked_texts(islice(streams[1], PART))
        if len(some_ids) != len(some):
            raise InputError(
                f"{number * PART + len(some_ids)} document ids for {number * PART + len(some)}"
                " texts; give one each"
            )
        if not some:
            return
        if folder is None:
            yield Part(some_ids, some, *_encoded(embedder, some, dtype))
        else:
            path = folder / f"{number:06}.safetensors"
            about = {"encoder": encoder, "dtype": str(dtype), "content": content_key({"": some})}
            yield Part(some_ids, some, *_kept(path, about, embedder, some, dtype))
        number += 1


@torch.no_grad()
def _encoded(embedder: Embedder, texts: list[str], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Vectors and digests of some texts; equal ones are encoded once."""
    ids = embedder.document_ids(texts)
    digests = [hashlib.blake2b(array("i", row).tobytes(), digest_size=16).digest() for row in ids]
    first: dict[bytes, int] = {}
    for row, digest in enumerate(digests):
        first.setdefault(digest, row)
    vectors = embedder.encode_ids([ids[row] for row in first.values()]).to("cpu", dtype)
    if len(first) < len(ids):
        place = {digest: number for number, digest in enumerate(first)}
        vectors = vectors[torch.tensor([place[digest] for digest in digests])]
    as_bytes = torch.frombuffer(bytearray(b"".join(digests)), dtype=torch.uint8)
    return vectors, as_bytes.view(-1, 16)


def _kept(
    path: Path, about: dict[str, str], embedder: Embedder, texts: list[str], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Vectors and digests from the file of this very part, written first where it is not there."""
    if path.exists():
        try:
            settings, tensors = read_tensors(path, KIND)
            if settings == about:
                return tensors["vectors"], tensors["digests"]
        except DamagedFileError:
            pass
    vectors, digests = _encoded(embedder, texts, dtype)
    write_tensors(path, {"vectors": vectors, "digests": digests}, KIND, about)
    return _kept(path, about, embedder, texts, dtype)  # from the file: nothing stays in memory
