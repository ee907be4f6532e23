"""SearchIndex: documents in memory or in a folder; exact, approximate and hybrid search."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from shutil import rmtree
from typing import Final, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maw_gym.distributed import check_same, is_first, wait
from maw_gym.errors import DamagedFileError, InputError
from maw_gym.files.cache import content_key
from maw_gym.files.together import check_one_folder
from maw_gym.retrieval.approximate import ApproximateIndex
from maw_gym.retrieval.bm25 import BM25, Words
from maw_gym.retrieval.document_index import DocumentIndex, first_of_same
from maw_gym.retrieval.fusion import fused_ranking, scored_candidates, weighted_sum
from maw_gym.retrieval.index_files import (
    ABOUT,
    FAISS,
    IDS,
    VECTORS,
    WORDS,
    About,
    mapped_vectors,
    read_about,
    read_ids,
    write_about,
    write_ids,
    write_vectors,
)
from maw_gym.retrieval.search import Ranking, rank_together
from maw_gym.threads import ThreadAside

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
