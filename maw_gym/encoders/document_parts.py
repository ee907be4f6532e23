"""Documents that are read as a stream, encoded part by part.

Equal texts have one vector in the end, whichever batch and part they came in: rounding would else
make vectors of them that differ a little, and order what should tie.
"""

import gc
import hashlib
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Final

import torch
from torch import Tensor
from tqdm import tqdm

from maw_gym.checks import checked_texts
from maw_gym.distributed import is_first, process, processes
from maw_gym.encoders.embedder import Embedder
from maw_gym.encoders.text import on_device
from maw_gym.errors import DamagedFileError, InputError
from maw_gym.files.tensor_files import read_tensors, write_tensors
from maw_gym.retrieval.search_index import Part

PART: Final = 8192  # documents whose texts and tokens are held at once
KIND: Final = "part of an index"
UNWRITTEN: Final = 2  # parts that may wait for the disk


def encoded_parts(
    embedder: Embedder,
    doc_ids: Iterable[str],
    texts: Iterable[str],
    dtype: torch.dtype,
    folder: Path | None = None,
) -> Iterator[Part]:
    """Documents encoded in portions of `PART`.

    With a folder the parts can be read (`Part.encoded`) when all have been seen. Each of several
    processes (`maw_gym.distributed`) encodes a share of them; what the others have encoded can be
    read when all have come to the end of the same documents.

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
    about = {"encoder": embedder.fingerprint(), "dtype": str(dtype)}
    total = len(doc_ids) if isinstance(doc_ids, Sized) else None
    bar = tqdm(
        total=total,
        desc="documents",
        unit="doc",
        delay=2,
        leave=False,
        disable=None if is_first() else True,
    )
    with _writer() as write, bar:
        for number, (some_ids, some) in enumerate(_portions(doc_ids, texts)):
            content = _content(some)
            if folder is None:
                vectors, digests = _encoded(embedder, some, dtype)
                encoded = partial(_known, vectors.cpu(), digests)
            else:
                path, of_part = folder / f"{number:06}.safetensors", about | {"content": content}
                encoded = partial(_read, path, of_part)
                if number % processes() == process() and not _is_there(path, of_part):
                    write(partial(_write, path, of_part, *_encoded(embedder, some, dtype)))
            yield Part(some_ids, some, content, encoded)
            bar.update(len(some))


@contextmanager
def _writer() -> Iterator[Callable[[Callable[[], None]], None]]:
    """Gives a function that lets a thread write something, one thing after the other.

    It waits where `UNWRITTEN` are not written yet, and raises what writing one of them has raised;
    in the end all are written.
    """
    waiting: deque[Future[None]] = deque()
    with ThreadPoolExecutor(1) as thread:

        def write(something: Callable[[], None]) -> None:
            waiting.append(thread.submit(something))
            while len(waiting) > UNWRITTEN or (waiting and waiting[0].done()):
                waiting.popleft().result()

        yield write
        for left in waiting:
            left.result()


def _content(texts: list[str]) -> str:
    """A key of the texts. Every process makes it of all documents, so it is to be cheap."""
    digest = hashlib.blake2b(array("q", map(len, texts)).tobytes(), digest_size=8)
    digest.update("".join(texts).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _portions(
    doc_ids: Iterable[str], texts: Iterable[str]
) -> Iterator[tuple[list[str], list[str]]]:
    """Ids and texts, `PART` at a time."""
    for given, what in ((doc_ids, "document ids"), (texts, "texts")):
        if not isinstance(given, Iterable):
            checked_texts(given, what)
    ids_left, texts_left = iter(doc_ids), iter(texts)
    before = 0
    while True:
        some_ids = checked_texts(islice(ids_left, PART), "document ids")
        some = checked_texts(islice(texts_left, PART))
        if len(some_ids) != len(some):
            raise InputError(
                f"{before + len(some_ids)} document ids for {before + len(some)} texts; give one"
                " each"
            )
        if not some:
            return
        yield some_ids, some
        before += len(some)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without Python's collector of cycles.

    Thousands of lists of token ids, none of which is in a cycle, would make it look through all
    objects of the process again and again.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@torch.no_grad()
@_uncollected()
def _encoded(embedder: Embedder, texts: list[str], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Vectors, on the encoder's device, and digests of some texts; equal ones are encoded once."""
    ids = embedder.document_ids(texts)
    digests = [hashlib.blake2b(array("i", row).tobytes(), digest_size=16).digest() for row in ids]
    first: dict[bytes, int] = {}
    for row, digest in enumerate(digests):
        first.setdefault(digest, row)
    vectors = embedder.encode_ids([ids[row] for row in first.values()]).to(dtype)
    if len(first) < len(ids):
        place = {digest: number for number, digest in enumerate(first)}
        rows = torch.tensor([place[digest] for digest in digests])
        vectors = vectors[on_device(rows, vectors.device)]
    as_bytes = torch.frombuffer(bytearray(b"".join(digests)), dtype=torch.uint8)
    return vectors, as_bytes.view(-1, 16)


def _is_there(path: Path, about: dict[str, str]) -> bool:
    """Whether the file of this very part is whole."""
    try:
        if path.exists():
            _read(path, about)
            return True
    except DamagedFileError:
        pass
    return False


def _write(path: Path, about: dict[str, str], vectors: Tensor, digests: Tensor) -> None:
    """Write the file of a part."""
    # .cpu() waits for a GPU, which the thread that encodes does not.
    write_tensors(path, {"vectors": vectors.cpu(), "digests": digests}, KIND, about)


def _read(path: Path, about: dict[str, str]) -> tuple[Tensor, Tensor]:
    """Vectors and digests from the file of this very part; mapped, not held."""
    settings, tensors = read_tensors(path, KIND)
    if settings != about:
        raise DamagedFileError(f"{path} is of other documents")
    return tensors["vectors"], tensors["digests"]


def _known(vectors: Tensor, digests: Tensor) -> tuple[Tensor, Tensor]:
    return vectors, digests
