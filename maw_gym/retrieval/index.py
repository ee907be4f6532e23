"""SearchIndex: documents in memory or in a folder; exact, approximate and hybrid search."""

import hashlib
import io
import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from shutil import rmtree
from typing import Any, Final, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maw_gym.distributed import check_same, is_first, wait
from maw_gym.errors import DamagedFileError, InputError
from maw_gym.files import (
    canonical,
    check_one_folder,
    check_readable,
    content_key,
    synced,
    written_whole,
)
from maw_gym.retrieval.bm25 import BM25, Words
from maw_gym.retrieval.documents import DocumentIndex, first_of_same, steps
from maw_gym.retrieval.hybrid import fused_ranking, scored_candidates, weighted_sum
from maw_gym.retrieval.search import MARGIN, Ranking, merged, rank_together
from maw_gym.threads import ThreadAside

FORMAT: Final = 1
ABOUT: Final = "index.json"
IDS: Final = "documents.jsonl"  # one id a line
VECTORS: Final = "vectors.npy"
WORDS: Final = "words.safetensors"  # BM25
FAISS: Final = "approximate.faiss"
LARGEST_ABOUT: Final = 1_000_000  # bytes of index.json


class About(NamedTuple):
    """What index.json says.

    Attributes:
        encoder: fingerprint of the encoder that made the vectors.
        kind: "exact", or "faiss:" and a factory string.
        files: names of the other files.
    """

    encoder: str
    kind: str
    files: tuple[str, ...]


def write_ids(path: Path, doc_ids: Iterable[str]) -> None:
    """Write ids, whole or not at all."""
    with written_whole(path) as temporary, temporary.open("w", newline="") as file:
        encode = json.JSONEncoder().encode  # json.dumps looks at its options every time
        file.writelines(f"{encode(doc_id)}\n" for doc_id in doc_ids)


def read_ids(path: Path) -> list[str]:
    """The ids that `write_ids` has written.

    Raises:
        DamagedFileError: it holds something else.
    """
    try:
        with path.open(newline="") as file:
            doc_ids = [json.loads(line) for line in file]
    except (OSError, ValueError, RecursionError) as problem:
        raise DamagedFileError(f"{path} is not readable: {problem}") from None
    if not all(isinstance(doc_id, str) for doc_id in doc_ids):
        raise DamagedFileError(f"{path} holds ids that are no strings")
    return doc_ids


def write_vectors(
    path: Path, parts: Sequence[Tensor], first: NDArray[np.int64], thread: ThreadAside
) -> Future[str]:
    """Write the vectors of all parts one behind the other, that of a copy being its first's.

    Args:
        path: of the file, which can be mapped when this returns.
        parts: (n, h) each.
        first: (N,) of each vector the first that it is to equal.
        thread: sees to the checksum, and that the file is on the disk.

    Returns:
        What gives the file's sha256 (hex) when both are done.
    """
    digest = hashlib.sha256()
    starts = np.cumsum([0, *map(len, parts)])
    header: dict[str, Any] = {
        "descr": np.lib.format.dtype_to_descr(parts[0][:0].cpu().numpy().dtype),
        "fortran_order": False,
        "shape": (int(starts[-1]), parts[0].shape[1]),
    }
    opening = io.BytesIO()
    np.lib.format.write_array_header_1_0(opening, header)
    digest.update(opening.getvalue())
    with written_whole(path, sync=False) as temporary, temporary.open("wb") as file:
        file.write(opening.getvalue())
        for start, part in zip(starts, parts, strict=False):
            rows = np.arange(start, start + len(part))
            copies = np.flatnonzero(first[rows] != rows)
            values = part.cpu().numpy()
            if len(copies):
                values = values.copy()
                for copy in copies:
                    source = first[start + copy]
                    at = int(np.searchsorted(starts, source, "right")) - 1
                    values[copy] = parts[at][source - starts[at]].cpu().numpy()
            thread.submit(digest.update, values.data.cast("B"))
            file.write(values.data)
    return thread.submit(_settled, path, digest.hexdigest)


def _settled(path: Path, checksum: Callable[[], str]) -> str:
    synced(path)
    return checksum()


def mapped_vectors(path: Path) -> Tensor:
    """The vectors of a file, copied where they are written to."""
    try:
        vectors = np.load(path, mmap_mode="c", allow_pickle=False)
    except (ValueError, EOFError, SyntaxError) as problem:
        raise DamagedFileError(f"{path} is not readable: {problem}") from None
    if vectors.ndim != 2 or vectors.dtype not in (np.float32, np.float16):
        raise DamagedFileError(f"{path} holds {vectors.dtype} of shape {vectors.shape}, no vectors")
    return torch.from_numpy(vectors)


def write_about(
    folder: Path, encoder: str, kind: str, files: Sequence[str], known: Mapping[str, Future[str]]
) -> None:
    """Write index.json: the folder is whole from now on.

    Args:
        folder: of the index.
        encoder: see `About`.
        kind: see `About`.
        files: see `About`.
        known: give the checksums of some of the files, once these are on the disk.
    """
    about = {
        "format": FORMAT,
        "encoder": encoder,
        "index": kind,
        "sha256": {
            name: known[name].result() if name in known else _sha256(folder / name)
            for name in files
        },
    }
    with written_whole(folder / ABOUT) as temporary:
        temporary.write_text(canonical(about))


def read_about(folder: Path) -> About:
    """What index.json says, after the other files have been compared with it.

    Raises:
        DamagedFileError: a file is not what was written.
        InputError: a file is missing.
    """
    path = folder / ABOUT
    if not path.exists():
        raise InputError(f"no index in {str(folder)!r}; save one there first")
    check_readable(path, "index.json of an index", LARGEST_ABOUT)
    try:
        content = json.loads(path.read_text())
        about = About(content["encoder"], content["index"], tuple(content["sha256"]))
        checksums = list(content["sha256"].values())
        whole = (
            content["format"] == FORMAT
            and {IDS, VECTORS} <= set(about.files) <= {IDS, VECTORS, WORDS, FAISS}
            and all(isinstance(text, str) for text in (*about[:2], *checksums))
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as problem:
        raise DamagedFileError(f"{path} is not readable: {problem}") from None
    if not whole:
        raise DamagedFileError(f"{path} was not written by this version of maw_gym")
    for name, written in zip(about.files, checksums, strict=True):
        check_readable(folder / name, "file of an index")
        if _sha256(folder / name) != written:
            raise DamagedFileError(f"{folder / name} is damaged: its checksum is another")
    return about


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


TRAINING_VECTORS: Final = 100_000  # that an index learns its clusters or codes from, at most
ADDED: Final = 65_536  # vectors added at once


class ApproximateIndex:
    """FAISS finds documents, exact cosines put them in order.

    Args:
        documents: what is searched.
        index: a FAISS index of their vectors by inner product.
    """

    def __init__(self, documents: DocumentIndex, index: Any) -> None:
        self.documents = documents
        self.index = index

    @classmethod
    def of(cls, documents: DocumentIndex, factory: str) -> "ApproximateIndex":
        """Build an index.

        Args:
            documents: what is to be searched.
            factory: a string that `faiss.index_factory` knows, for instance ``"HNSW32"``; behind a
                semicolon may stand parameters of the search as `faiss.ParameterSpace` knows them:
                ``"HNSW32;efSearch=128"``, ``"IVF1024,Flat;nprobe=16"``.

        Raises:
            InputError: FAISS is not installed, does not know the string, or cannot build the index
                of so few documents.
        """
        faiss = _faiss()
        vectors = documents.vectors
        try:
            kind, _, parameters = factory.partition(";")
            index = faiss.index_factory(vectors.shape[1], kind, faiss.METRIC_INNER_PRODUCT)
            if not index.is_trained:
                some = np.linspace(0, len(vectors) - 1, min(len(vectors), TRAINING_VECTORS))
                index.train(_floats(vectors[torch.from_numpy(some.astype(np.int64))]))
            for rows in steps(len(vectors), ADDED):
                index.add(_floats(vectors[rows]))
            if parameters:
                faiss.ParameterSpace().set_index_parameters(index, parameters)
        except RuntimeError as problem:
            raise InputError(
                f"FAISS cannot build {factory!r} of {len(vectors)} documents: {_reason(problem)}"
            ) from None
        return cls(documents, index)

    def rank(self, queries: Tensor, k: int) -> Ranking:
        """About the k best documents of every query (B, h), in the order of `search.rank`."""
        count = min(k + MARGIN, len(self.documents))
        _, found = self.index.search(_floats(queries), count)
        queries = queries.to(self.documents.device, torch.float32)
        rankings = []
        for some in self.documents.gathered(count, len(queries)):
            scores = self.documents.exact_scores(queries[some], found[some])
            listed = torch.from_numpy(found[some]).to(scores.device)
            rankings.append(merged([Ranking(scores, listed)], self.documents.tie_rank, k))
        if not rankings:
            return Ranking(torch.zeros(0, count), torch.zeros(0, count, dtype=torch.int64))
        return Ranking(*map(torch.cat, zip(*rankings, strict=True)))

    def save(self, path: Path) -> None:
        """Write FAISS's own file, whole or not at all."""
        with written_whole(path) as temporary:
            _faiss().write_index(self.index, str(temporary))

    @classmethod
    def load(cls, path: Path, documents: DocumentIndex) -> "ApproximateIndex":
        """The index of these documents that `save` has written.

        Raises:
            DamagedFileError: the file is damaged, or of other documents.
            InputError: it is not there, or FAISS is not installed.
        """
        faiss = _faiss()
        check_readable(path, "FAISS index")
        try:
            index = faiss.read_index(str(path))
        except RuntimeError as problem:
            raise DamagedFileError(f"{path} is no FAISS index: {_reason(problem)}") from None
        shape = tuple(documents.vectors.shape)
        if (index.ntotal, index.d) != shape or index.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise DamagedFileError(
                f"{path} is of {index.ntotal} vectors of width {index.d}, not of these {shape}"
            )
        return cls(documents, index)


def _faiss() -> Any:
    logging.getLogger("faiss.loader").setLevel(logging.WARNING)  # it tells what it tries
    try:
        import faiss
    except ImportError:
        raise InputError(
            "approximate search needs FAISS; install it by pip install 'maw_gym[faiss]'"
        ) from None
    return faiss


def _floats(vectors: Tensor) -> np.ndarray:
    return np.ascontiguousarray(vectors.to("cpu", torch.float32).numpy())


def _reason(problem: Exception) -> str:
    """What FAISS says, without the place in its source."""
    return re.sub(r"^.*\.cpp:\d+: (Error: )?", "", str(problem).splitlines()[0])


PARTS: Final = "parts"  # folder of what is encoded so far
EXACT: Final = "exact"
FUSED: Final = 100  # documents of each ranking that a hybrid search fuses, at least
UNSUMMED: Final = 4  # parts that are written and wait for the checksum


class Part(NamedTuple):
    """Some documents in a row, encoded.

    Attributes:
        doc_ids: their ids.
        texts: their texts.
        content: key of the texts.
        encoded: gives, when all parts have been seen, their vectors (n, h) on the CPU, zero for a
            text without tokens, and digests (n, 16) uint8, the same for texts that are the same to
            the encoder.
    """

    doc_ids: list[str]
    texts: list[str]
    content: str
    encoded: Callable[[], tuple[Tensor, Tensor]]


class SearchIndex:
    """What a search needs to know of the documents.

    Args:
        documents: ids and vectors.
        encoder: fingerprint of the encoder that made the vectors.
        bm25: of the same documents, for hybrid search.
        approximate: of the same documents, in the place of exact search.
        kind: "exact", or "faiss:" and the factory string of `approximate`.
        folder: of whose files the vectors are a map.
    """

    def __init__(
        self,
        documents: DocumentIndex,
        encoder: str,
        bm25: BM25 | None = None,
        approximate: ApproximateIndex | None = None,
        kind: str = EXACT,
        folder: Path | None = None,
    ) -> None:
        self.documents = documents
        self.encoder = encoder
        self.bm25 = bm25
        self.approximate = approximate
        self.kind = kind
        self.folder = folder

    @classmethod
    def of(
        cls,
        parts: Iterable[Part],
        encoder: str,
        *,
        kind: str = EXACT,
        hybrid: bool = True,
        folder: Path | None = None,
        device: torch.device | str = "cpu",
    ) -> Self:
        """Index documents that come part by part.

        Several processes (`maw_gym.distributed`) do this together: into a folder that all see the
        first one writes, without a folder each has an index of its own.

        Args:
            parts: the documents, encoded.
            encoder: see the class.
            kind: see the class.
            hybrid: count words for BM25.
            folder: where the index is written and from then on mapped; None keeps it in memory.
            device: where it is searched.

        Raises:
            InputError: no document, an id given twice, an unknown kind, or a file cannot be
                written.
        """
        if kind != EXACT and not kind.startswith("faiss:"):
            raise InputError(f"unknown index {kind!r}; give 'exact' or 'faiss:' and a factory")
        words = Words() if hybrid else None
        seen: list[Part] = []
        for part in parts:
            if words is not None:
                words.add(part.texts)
            seen.append(part._replace(texts=[]))
        doc_ids = [doc_id for part in seen for doc_id in part.doc_ids]
        check_ids(doc_ids)
        if folder is None:
            vectors, first = joined(part.encoded() for part in seen)
            documents = DocumentIndex(doc_ids, with_copies(vectors, first).to(device))
            return cls._around(documents, encoder, kind, words)
        check_same("kind of index", content_key({"of": [encoder, kind, hybrid]}))
        index = None
        with ThreadAside(UNSUMMED) as thread:
            documents, known = _written(seen, doc_ids, folder, device, thread)
            if is_first():
                index = cls._around(documents, encoder, kind, words, folder)
                index._save(folder, known)
                rmtree(folder / PARTS, ignore_errors=True)
        wait()
        if index is not None:
            return index
        files = (WORDS,) * hybrid + (FAISS,) * (kind != EXACT)
        return cls._saved(documents, folder, About(encoder, kind, files))

    @classmethod
    def _around(
        cls,
        documents: DocumentIndex,
        encoder: str,
        kind: str,
        words: Words | None,
        folder: Path | None = None,
    ) -> Self:
        """The index of documents, with what else is made of them."""
        count = len(documents)
        bm25 = None if words is None else BM25(documents.doc_ids, *words.weighed(count))
        approximate = None
        if kind != EXACT:
            approximate = ApproximateIndex.of(documents, kind.removeprefix("faiss:"))
        return cls(documents, encoder, bm25, approximate, kind, folder)

    def rank(
        self, embeddings: Tensor, k: int, texts: Sequence[str] = (), weight: float | None = None
    ) -> Ranking:
        """The k best documents of every query.

        Args:
            embeddings: (B, h) float32 of the queries.
            k: at least 1.
            texts: the B queries, for a hybrid search.
            weight: of the cosines beside BM25, see `weighted_sum`; None searches without BM25.

        Raises:
            InputError: a hybrid search without BM25.
        """
        if weight is None:
            return self._nearest(embeddings, k)
        if self.bm25 is None:
            raise InputError("this index has no BM25; index the documents with hybrid=True")
        count = max(k, FUSED)
        lists = list(self._nearest(embeddings, count).documents.cpu().numpy())
        candidates = scored_candidates(self.documents, self.bm25, embeddings, texts, lists, count)
        return fused_ranking(candidates, weighted_sum(candidates, weight), k)

    def _nearest(self, embeddings: Tensor, k: int) -> Ranking:
        if self.approximate is not None:
            return self.approximate.rank(embeddings, k)
        return rank_together(self.documents, embeddings, k)

    def save(self, folder: Path) -> None:
        """Write everything to a folder.

        Raises:
            InputError: a file cannot be written.
        """
        (folder / ABOUT).unlink(missing_ok=True)
        known: dict[str, Future[str]] = {}
        with ThreadAside(UNSUMMED) as thread:
            if self.folder is None or self.folder.resolve() != folder.resolve():
                vectors, everyone = [self.documents.vectors], np.arange(len(self.documents))
                known[VECTORS] = write_vectors(folder / VECTORS, vectors, everyone, thread)
            self._save(folder, known)

    def _save(self, folder: Path, known: Mapping[str, Future[str]]) -> None:
        """Write everything but the vectors, see `write_about`."""
        write_ids(folder / IDS, self.documents.doc_ids)
        files = [IDS, VECTORS]
        if self.bm25 is not None:
            self.bm25.save(folder / WORDS)
            files.append(WORDS)
        if self.approximate is not None:
            self.approximate.save(folder / FAISS)
            files.append(FAISS)
        write_about(folder, self.encoder, self.kind, files, known)

    @classmethod
    def load(cls, folder: Path, encoder: str, device: torch.device | str = "cpu") -> Self:
        """The index that was written to `folder`; its vectors are mapped, not read.

        Raises:
            DamagedFileError: a file is not what was written.
            InputError: a file is missing, or another encoder made the vectors.
        """
        about = read_about(folder)
        if about.encoder != encoder:
            raise InputError(
                f"{folder} was made by encoder {about.encoder[:12]}, not {encoder[:12]};"
                " index the documents again"
            )
        doc_ids = read_ids(folder / IDS)
        try:
            documents = DocumentIndex(doc_ids, mapped_vectors(folder / VECTORS), device)
        except DamagedFileError:
            raise
        except ValueError as problem:
            raise DamagedFileError(f"{folder} holds no index: {problem}") from None
        return cls._saved(documents, folder, about)

    @classmethod
    def _saved(cls, documents: DocumentIndex, folder: Path, about: About) -> Self:
        """What stands in a folder around its documents."""
        bm25 = BM25.load(folder / WORDS, documents.doc_ids) if WORDS in about.files else None
        approximate = None
        if FAISS in about.files:
            approximate = ApproximateIndex.load(folder / FAISS, documents)
        return cls(documents, about.encoder, bm25, approximate, about.kind, folder)


def _written(
    parts: Sequence[Part],
    doc_ids: Sequence[str],
    folder: Path,
    device: torch.device | str,
    thread: ThreadAside,
) -> tuple[DocumentIndex, dict[str, Future[str]]]:
    """The documents of all parts, mapped from a file that the first process writes.

    All processes do this together. Only the first has the second result: what `thread` finds of
    the file, see `write_vectors`.
    """
    known: dict[str, Future[str]] = {}
    contents = [part.content for part in parts]
    check_same("stream of documents", content_key({"ids": doc_ids, "texts": contents}))
    check_one_folder(folder)
    if is_first():
        (folder / ABOUT).unlink(missing_ok=True)
        with ThreadPoolExecutor() as pool:  # the checksum of each part keeps a core busy
            encoded = pool.map(lambda part: part.encoded(), parts)
            known[VECTORS] = write_vectors(folder / VECTORS, *joined(encoded), thread)
    wait()
    return DocumentIndex(doc_ids, mapped_vectors(folder / VECTORS), device), known


def joined(
    encoded: Iterable[tuple[Tensor, Tensor]],
) -> tuple[list[Tensor], NDArray[np.int64]]:
    """The vectors of all parts, and for each document the first whose text is the same, (N,)."""
    vectors, digests = zip(*encoded, strict=True)
    return list(vectors), first_of_same(torch.cat(digests).view(torch.int64).T)


def with_copies(vectors: Sequence[Tensor], first: NDArray[np.int64]) -> Tensor:
    """The vectors (N, h) of all parts in memory, that of a copy being its first's."""
    whole = torch.cat(list(vectors))
    copies = np.flatnonzero(first != np.arange(len(first)))
    whole[torch.from_numpy(copies)] = whole[torch.from_numpy(first[copies])]
    return whole


def check_ids(doc_ids: Sequence[str]) -> None:
    """Refuse no ids at all, and one that is given twice."""
    if not doc_ids:
        raise InputError("0 document ids; give one document at least")
    if len(set(doc_ids)) < len(doc_ids):
        name, count = Counter(doc_ids).most_common(1)[0]
        raise InputError(f"document ids must differ; {name!r} is given {count} times")
