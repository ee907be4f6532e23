"""Documents that are read as a stream, encoded part by part.

Equal texts have one vector in the end, whichever batch and part they came in: rounding would else
make vectors of them that differ a little, and order what should tie.

A thread writes what is encoded while the next part is. Another one finds tokens ahead where a GPU
would else wait for them; a CPU's cores have enough to do.
"""

import gc
import hashlib
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from threading import Lock
from typing import Final, NamedTuple, TypeVar

import torch
from torch import Tensor
from tqdm import tqdm

from maw_gym import files
from maw_gym.checks import checked_texts
from maw_gym.distributed import is_first, process, processes
from maw_gym.encoders.embedder import Embedder
from maw_gym.encoders.text import on_device
from maw_gym.errors import DamagedFileError, InputError
from maw_gym.retrieval.index import Part
from maw_gym.threads import ThreadAside

PART: Final = 8192  # documents read at once; the texts and vectors of a few parts are held
KIND: Final = "part of an index"
UNWRITTEN: Final = 2  # parts that may wait for the disk
BESIDE: Final = {"cpu": False, "cuda": True}  # whether tokens are found while others are encoded

Thing = TypeVar("Thing")


def encoded_parts(
    embedder: Embedder,
    doc_ids: Iterable[str],
    texts: Iterable[str],
    dtype: torch.dtype,
    folder: Path | None = None,
) -> Iterator[Part]:
    """Documents encoded in portions of `PART`.

    The parts can be read (`Part.encoded`) when all have been seen. With a folder each of several
    processes (`maw_gym.distributed`) encodes a share of them; what the others have encoded can be
    read when all have come to the end of the same documents.

    Args:
        embedder: see `Embedder.encode_documents`.
        doc_ids: N ids, read once.
        texts: N texts, read once beside the ids.
        dtype: of the vectors, torch.float32 or torch.float16.
        folder: where each part is kept in a file of its own, so that an encoding that was stopped
            goes on behind its last part; None keeps them in memory.

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
    beside = BESIDE["cpu" if embedder.device.type == "cpu" else "cuda"]
    with ThreadAside(UNWRITTEN) as writer, ThreadPoolExecutor(1) as tokenizer, bar:

        def read() -> Iterator[_Portion]:
            for number, (some_ids, some) in enumerate(_portions(doc_ids, texts)):
                content = _content(some)
                file, own = None, True
                if folder is not None:
                    path = folder / f"{number:06}.safetensors"
                    file = _PartFile(path, about | {"content": content})
                    own = number % processes() == process() and not file.is_whole()
                find: Callable[[], _Tokens] | None = None
                if own:
                    find = partial(_tokens, embedder, some)
                    find = tokenizer.submit(find).result if beside else find
                yield _Portion(some_ids, some, content, file, find)

        # Far enough that this process's next part is among what is read.
        ahead = 0 if not beside else 1 if folder is None else processes()
        for portion in _ahead(read(), ahead):
            file = portion.file
            if portion.tokens is not None:
                tokens = portion.tokens()
                vectors = _on_cpu(_encoded(embedder, tokens, dtype))
                kept = writer.submit(_kept, vectors, tokens.digests, file)
            encoded = kept.result if file is None else file.read
            yield Part(portion.doc_ids, portion.texts, portion.content, encoded)
            bar.update(len(portion.texts))


class _PartFile(NamedTuple):
    """The file of a part; `about` says what it is of."""

    path: Path
    about: dict[str, str]

    def is_whole(self) -> bool:
        """Whether it is there and of this very part."""
        try:
            if self.path.exists():
                self.read()
                return True
        except DamagedFileError:
            pass
        return False

    def read(self) -> tuple[Tensor, Tensor]:
        """Vectors and digests; mapped, not held."""
        settings, tensors = files.read(self.path, KIND)
        if settings != self.about:
            raise DamagedFileError(f"{self.path} is of other documents")
        return tensors["vectors"], tensors["digests"]


class _Tokens(NamedTuple):
    """Token ids of some texts.

    Attributes:
        ids: of the different ones.
        rows: for each text, which of these it has.
        digests: (n, 16) uint8 of each text's.
    """

    ids: list[list[int]]
    rows: list[int]
    digests: Tensor


class _Portion(NamedTuple):
    """What is read of the documents at once.

    Attributes:
        doc_ids: see `Part`.
        texts: see `Part`.
        content: see `Part`.
        file: where vectors go; None is memory.
        tokens: gives the tokens; None where vectors are there already, or come from another
            process.
    """

    doc_ids: list[str]
    texts: list[str]
    content: str
    file: _PartFile | None
    tokens: Callable[[], _Tokens] | None


def _ahead(things: Iterable[Thing], count: int) -> Iterator[Thing]:
    """The things, each when `count` more have been taken, or there are no more."""
    taken: deque[Thing] = deque()
    try:
        for thing in things:
            taken.append(thing)
            if len(taken) > count:
                yield taken.popleft()
    except Exception:
        yield from taken  # what came before it is not lost
        raise
    yield from taken


def _on_cpu(vectors: Tensor) -> Callable[[], Tensor]:
    """What gives vectors on the CPU, and waits for a GPU that has not computed them yet."""
    if not vectors.is_cuda:
        return vectors.cpu
    computed = torch.cuda.Event(blocking=True)
    # The stream of the thread that calls later may be another.
    computed.record(torch.cuda.current_stream(vectors.device))

    def wait() -> Tensor:
        computed.synchronize()
        return vectors.cpu()

    return wait


def _kept(
    vectors: Callable[[], Tensor], digests: Tensor, file: _PartFile | None
) -> tuple[Tensor, Tensor]:
    """Vectors and digests of a part, written to its file where it has one."""
    values = vectors()
    if file is not None:
        files.write(file.path, {"vectors": values, "digests": digests}, KIND, file.about)
    return values, digests


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


class _Collector:
    """Python's collector of cycles, which rests while any thread wants it to."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._wanted = 0
        self._enabled = False

    @contextmanager
    def resting(self) -> Iterator[None]:
        """Without it.

        Thousands of lists of token ids, none of which is in a cycle, would make it look through
        all objects of the process again and again.
        """
        with self._lock:
            if self._wanted == 0:
                self._enabled = gc.isenabled()
                gc.disable()
            self._wanted += 1
        try:
            yield
        finally:
            with self._lock:
                self._wanted -= 1
                if self._wanted == 0 and self._enabled:
                    gc.enable()


COLLECTOR: Final = _Collector()


@COLLECTOR.resting()
def _tokens(embedder: Embedder, texts: list[str]) -> _Tokens:
    """Token ids of n texts."""
    ids = embedder.document_ids(texts)
    digests = [hashlib.blake2b(array("i", row).tobytes(), digest_size=16).digest() for row in ids]
    different: dict[bytes, int] = {}
    rows = [different.setdefault(digest, len(different)) for digest in digests]
    as_bytes = torch.frombuffer(bytearray(b"".join(digests)), dtype=torch.uint8).view(-1, 16)
    return _Tokens(list(dict(zip(rows, ids, strict=True)).values()), rows, as_bytes)


@torch.no_grad()
def _encoded(embedder: Embedder, tokens: _Tokens, dtype: torch.dtype) -> Tensor:
    """Vectors of n texts, on the encoder's device; equal ones are encoded once."""
    vectors = embedder.encode_ids(tokens.ids).to(dtype)
    return vectors[on_device(torch.tensor(tokens.rows), vectors.device)]
