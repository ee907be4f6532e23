"""SearchIndex: documents in memory or in a folder; exact, approximate and hybrid search."""

import json
import logging
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maw_gym.distributed import check_same, is_first, wait
from maw_gym.errors import DamagedFileError, InputError, first_line
from maw_gym.files import (
    MANIFEST,
    check_one_folder,
    content_key,
    read_manifest,
    write_manifest,
    written_folder,
)
from maw_gym.retrieval.bm25 import BM25, Words
from maw_gym.retrieval.documents import DocumentIndex, steps
from maw_gym.retrieval.hybrid import hybrid_ranking
from maw_gym.retrieval.search import MARGIN, Ranking, rank, rank_together

KIND: Final = "search index"
IDS: Final = "documents.jsonl"  # one id a line
VECTORS: Final = "vectors.npy"
WORDS: Final = "words"  # folder of BM25
FAISS: Final = "approximate.faiss"
EXACT: Final = "exact"
TRAINING_VECTORS: Final = 100_000  # that FAISS learns its clusters or codes from, at most
ADDED: Final = 65_536  # vectors added to FAISS's index at once
# FAISS's mark of lists in another file, which it would open for writing, with how many lists there
# are and the bytes of an entry: below 2^40, in 8 bytes each.
LISTS_ELSEWHERE: Final = re.compile(rb"ilod.{5}\0{3}.{5}\0{3}", re.DOTALL)


class SearchIndex:
    """What a search needs to know of the documents."""

    def __init__(
        self,
        documents: DocumentIndex,
        encoder: str,
        bm25: BM25 | None = None,
        approximate: "ApproximateIndex | None" = None,
        kind: str = EXACT,
    ) -> None:
        self.documents = documents
        self.encoder = encoder
        self.bm25 = bm25
        self.approximate = approximate
        self.kind = kind

    @classmethod
    def of(
        cls,
        documents: DocumentIndex,
        encoder: str,
        words: Words | None = None,
        kind: str = EXACT,
        folder: Path | None = None,
    ) -> Self:
        """Index documents."""
        if folder is not None:
            check_same("kind of index", content_key({"of": [encoder, kind, words is None]}))
            check_one_folder(folder.parent)
        if folder is None or is_first():
            bm25 = None if words is None else BM25(documents.doc_ids, words.weighed())
            approximate = None
            if kind != EXACT:
                approximate = ApproximateIndex.of(documents, kind.removeprefix("faiss:"))
            index = cls(documents, encoder, bm25, approximate, kind)
        if folder is None:
            return index
        if is_first():
            index.save(folder)
            del index
        wait()
        device = documents.device
        del documents
        return cls.load(folder, encoder, device)

    def rank(
        self, embeddings: Tensor, k: int, texts: Sequence[str] = (), weight: float | None = None
    ) -> Ranking:
        """The k best documents of every query."""
        if weight is None:
            return self._nearest(embeddings, k)
        if self.bm25 is None:
            raise InputError("this index has no BM25; index the documents with hybrid=True")
        return hybrid_ranking(
            self.documents, self.bm25, self._nearest, embeddings, texts, k, weight
        )

    def _nearest(self, embeddings: Tensor, k: int) -> Ranking:
        if self.approximate is not None:
            return self.approximate.rank(embeddings, k)
        return rank_together(self.documents, embeddings, k)

    def save(self, folder: Path) -> None:
        """Write everything to a folder, in the place of an index that is there."""
        with written_folder(folder, MANIFEST) as temporary:
            self.write(temporary)

    def write(self, folder: Path) -> None:
        """Write everything to a folder that is new."""
        encode = json.JSONEncoder().encode  # json.dumps looks at its options every time
        with (folder / IDS).open("w", newline="") as file:
            file.writelines(f"{encode(doc_id)}\n" for doc_id in self.documents.doc_ids)
        np.save(folder / VECTORS, self.documents.vectors.cpu().numpy(), allow_pickle=False)
        if self.bm25 is not None:
            self.bm25.write(folder / WORDS)
        if self.approximate is not None:
            self.approximate.write(folder / FAISS)
        write_manifest(folder, KIND, {"encoder": self.encoder, "index": self.kind})

    @classmethod
    def load(cls, folder: Path, encoder: str, device: torch.device | str = "cpu") -> Self:
        """The index that was written to `folder`; its vectors are mapped, not read."""
        settings, files = read_manifest(folder, KIND)
        made_by, kind = (str(settings.get(name)) for name in ("encoder", "index"))
        if made_by != encoder:
            raise InputError(
                f"{folder} was made by encoder {made_by[:12]}, not {encoder[:12]};"
                " index the documents again"
            )
        try:
            with (folder / IDS).open(newline="") as file:
                doc_ids = [json.loads(line) for line in file]
            if not all(isinstance(doc_id, str) for doc_id in doc_ids):
                raise ValueError("ids that are no strings")
            documents = DocumentIndex(doc_ids, _mapped(folder / VECTORS), device)
        except (OSError, EOFError, SyntaxError, ValueError, RecursionError) as problem:
            raise DamagedFileError(f"{folder} holds no index: {first_line(problem)}") from None
        bm25 = approximate = None
        if any(name.startswith(f"{WORDS}/") for name in files):
            bm25 = BM25.read(folder / WORDS, documents.doc_ids)
        if kind != EXACT:
            approximate = ApproximateIndex.read(folder / FAISS, documents)
        return cls(documents, encoder, bm25, approximate, kind)


def _mapped(path: Path) -> Tensor:
    """The vectors of a file, copied where they are written to."""
    vectors = np.lib.format.open_memmap(path, mode="c")
    if vectors.ndim != 2:
        raise ValueError(f"{path.name} holds no vectors")
    if vectors.dtype not in (np.float32, np.float16) or not vectors.flags.c_contiguous:
        raise ValueError(f"{path.name} holds {vectors.dtype}, not rows of float32 or float16")
    return torch.from_numpy(vectors)


class ApproximateIndex:
    """FAISS finds documents, exact cosines put them in order."""

    def __init__(self, documents: DocumentIndex, index: Any) -> None:
        self.documents = documents
        self.index = index

    @classmethod
    def of(cls, documents: DocumentIndex, factory: str) -> "ApproximateIndex":
        """Build an index by a string of `faiss.index_factory`; see `RoutedEncoder.index`."""
        faiss, vectors = _faiss(), documents.vectors
        kind, _, parameters = factory.partition(";")
        for number in re.findall(r"\d+", kind):
            if len(number) > 7 or int(number) < 2:  # some of these end the process in FAISS
                raise InputError(f"numbers of a FAISS index are 2 to 9999999, got {factory!r}")
        try:
            index = faiss.index_factory(vectors.shape[1], kind, faiss.METRIC_INNER_PRODUCT)
            if not index.is_trained:
                some = np.linspace(0, len(vectors) - 1, min(len(vectors), TRAINING_VECTORS))
                index.train(_floats(vectors[torch.from_numpy(some.astype(np.int64))]))
            for rows in steps(len(vectors), ADDED):
                index.add(_floats(vectors[rows]))
            if parameters:
                faiss.ParameterSpace().set_index_parameters(index, parameters)
        except (RuntimeError, MemoryError) as problem:
            raise InputError(
                f"FAISS cannot build {factory!r} of {len(vectors)} documents: {_reason(problem)}"
            ) from None
        return cls(documents, index)

    def rank(self, queries: Tensor, k: int) -> Ranking:
        """About the k best documents of every query (B, h), in the order of `search.rank`."""
        _, found = self.index.search(_floats(queries), min(k + MARGIN, len(self.documents)))
        return rank(self.documents, queries, k, [listed[listed >= 0] for listed in found])

    def write(self, path: Path) -> None:
        """Write FAISS's own file."""
        _faiss().write_index(self.index, str(path))

    @classmethod
    def read(cls, path: Path, documents: DocumentIndex) -> "ApproximateIndex":
        """The index of these documents that `write` has written."""
        faiss = _faiss()
        try:
            content: Any = np.memmap(path, np.uint8, "r")
            if LISTS_ELSEWHERE.search(content):
                raise ValueError("its inverted lists are in another file")
            index = faiss.read_index(str(path))
        except (RuntimeError, MemoryError, OSError, ValueError) as problem:
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


def _floats(vectors: Tensor) -> NDArray[np.float32]:
    return np.ascontiguousarray(vectors.to("cpu", torch.float32).numpy())


def _reason(problem: Exception) -> str:  # without the place in FAISS's source
    return re.sub(r"^.*\.cpp:\d+: (Error: )?", "", first_line(problem))


def check_ids(doc_ids: Sequence[str]) -> None:
    """Refuse no ids at all, and one that is given twice."""
    if not doc_ids:
        raise InputError("0 document ids; give one document at least")
    if len(set(doc_ids)) < len(doc_ids):
        name, count = Counter(doc_ids).most_common(1)[0]
        raise InputError(f"document ids must differ; {name!r} is given {count} times")
