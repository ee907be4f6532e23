"""SearchIndex: documents in memory or in a folder; exact, approximate and hybrid search."""

import json
import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maw_gym.distributed import check_one_folder, check_same, is_first, wait
from maw_gym.errors import DamagedFileError, InputError, first_line
from maw_gym.files import (
    MANIFEST,
    content_key,
    read_manifest,
    write_manifest,
    written_folder,
)
from maw_gym.retrieval.bm25 import BM25, Words, hybrid_ranking
from maw_gym.retrieval.documents import DocumentIndex, Integers, steps
from maw_gym.retrieval.ranking import LONG, SHORT, ranking_statistics
from maw_gym.retrieval.search import MARGIN, Ranking, rank, rank_together

KIND: Final = "search index"
IDS: Final = "documents.jsonl"  # one id a line
TEXTS: Final = "texts.jsonl"  # one text a line, where they are stored
VECTORS: Final = "vectors.npy"
WORDS: Final = "words"  # folder of BM25
FAISS: Final = "approximate.faiss"
EXACT: Final = "exact"
TRAINING_VECTORS: Final = 100_000  # that FAISS learns its clusters or codes from, at most
ADDED: Final = 65_536  # vectors added to FAISS's index at once
# FAISS's mark of lists in another file, which it would open for writing, with how many lists there
# are and the bytes of an entry: below 2^40, in 8 bytes each.
LISTS_ELSEWHERE: Final = re.compile(rb"ilod.{5}\0{3}.{5}\0{3}", re.DOTALL)


@dataclass(eq=False)
class SearchIndex:
    """Documents and what finds them, made by the encoder of this fingerprint.

    `kind` is "exact", or "faiss:" and a factory, of which `approximate` is FAISS's index.
    """

    documents: DocumentIndex
    encoder: str
    bm25: BM25 | None = None
    kind: str = EXACT
    approximate: Any = None
    texts: Sequence[str] | None = None

    @classmethod
    def of(
        cls,
        documents: DocumentIndex,
        encoder: str,
        words: Words | None = None,
        kind: str = EXACT,
        folder: Path | None = None,
        texts: Sequence[str] | None = None,
    ) -> Self:
        """Index documents; in a folder, by all processes together."""
        if folder is not None:
            check_same("kind of index", content_key({"of": [encoder, kind, words is None]}))
            check_one_folder(folder.parent)
        if folder is None or is_first():
            bm25 = None if words is None else BM25.of(documents.doc_ids, words)
            approximate = None if kind == EXACT else _faiss_index(documents.vectors, kind)
            index = cls(documents, encoder, bm25, kind, approximate, texts)
            if folder is None:
                return index
            with written_folder(folder, MANIFEST) as temporary:
                index.write(temporary)
            del index
        wait()
        device = documents.device
        del documents
        return cls.load(folder, encoder, device)

    def rank(
        self,
        embeddings: Tensor,
        k: int,
        texts: Sequence[str] = (),
        weight: float | None = None,
        only: Iterable[str] | None = None,
    ) -> Ranking:
        """The k best documents of queries (B, h); with a weight, of these texts' words besides.

        Where there are ids, `only` those are found, and the search is exact.
        """
        documents = self.documents
        if only is not None:
            documents = documents.only(documents.places(only))

        def nearest(embeddings: Tensor, k: int) -> Ranking:
            if only is not None or self.approximate is None:
                return rank_together(documents, embeddings, k)
            # FAISS finds documents, exact cosines put them in order.
            wanted = min(k + MARGIN, len(documents))
            _, found = self.approximate.search(_floats(embeddings), wanted)
            return rank(documents, embeddings, k, [listed[listed >= 0] for listed in found])

        if weight is None:
            return nearest(embeddings, k)
        if self.bm25 is None and self.texts is not None:
            self.bm25 = BM25.of(self.documents.doc_ids, self.texts)
        if self.bm25 is None:
            raise InputError("this index has no BM25; index the documents with hybrid=True")
        return hybrid_ranking(documents, self.bm25, nearest, embeddings, texts, k, weight)

    def statistics(self, embeddings: Tensor) -> Tensor:
        """What searches by the embeddings (B, D, h) of every depth find; `ranking_statistics`."""
        mean = torch.nn.functional.normalize(embeddings.mean(1), dim=-1)
        found = self.rank(embeddings.flatten(0, 1), LONG)
        scores, documents = (part.view(*embeddings.shape[:2], -1) for part in found)
        return ranking_statistics(scores, documents, self.rank(mean, SHORT).documents)

    def changed(
        self, kept: Integers, ids: Sequence[str], vectors: Tensor, texts: Sequence[str]
    ) -> "SearchIndex":
        """An index of some of these documents and of more, with their vectors and texts."""
        if self.bm25 is not None and self.texts is None:
            raise InputError(
                "the words of documents that are not stored cannot be counted anew; index them"
                " with store=True or hybrid=False"
            )
        names = [*(self.documents.doc_ids[row] for row in kept), *ids]
        stored = self.texts and [*(self.texts[row] for row in kept), *texts]
        old = self.documents.vectors
        vectors = torch.cat([old[torch.from_numpy(kept)], vectors.to(old)])
        documents = DocumentIndex(names, vectors, self.documents.device)
        words = None if self.bm25 is None or stored is None else Words(stored)
        return self.of(documents, self.encoder, words, self.kind, texts=stored)

    def write(self, folder: Path) -> None:
        """Write everything to a folder that is new."""
        encode = json.JSONEncoder().encode  # json.dumps looks at its options every time
        for name, lines in ((IDS, self.documents.doc_ids), (TEXTS, self.texts)):
            if lines is not None:
                with (folder / name).open("w", newline="") as file:
                    file.writelines(f"{encode(line)}\n" for line in lines)
        np.save(folder / VECTORS, self.documents.vectors.cpu().numpy(), allow_pickle=False)
        if self.bm25 is not None:
            self.bm25.save(folder / WORDS)
        if self.approximate is not None:
            _faiss().write_index(self.approximate, str(folder / FAISS))
        write_manifest(folder, KIND, {"encoder": self.encoder, "index": self.kind})

    @classmethod
    def load(cls, folder: Path, encoder: str, device: torch.device | str = "cpu") -> Self:
        """The index that was written to `folder`; its vectors are mapped."""
        settings, files = read_manifest(folder, KIND)
        made_by, kind = (str(settings.get(name)) for name in ("encoder", "index"))
        if made_by != encoder:
            raise InputError(
                f"{folder} was made by encoder {made_by[:12]}, not {encoder[:12]};"
                " index the documents again"
            )
        try:
            doc_ids = _read_lines(folder / IDS)
            texts = _read_lines(folder / TEXTS) if TEXTS in files else None
            if texts is not None and len(texts) != len(doc_ids):
                raise ValueError(f"{len(doc_ids)} ids for {len(texts)} texts")
            vectors = np.lib.format.open_memmap(folder / VECTORS, mode="c")
            if vectors.dtype not in (np.float32, np.float16) or not vectors.flags.c_contiguous:
                raise ValueError(f"{VECTORS} has no rows of float32 or float16")
            documents = DocumentIndex(doc_ids, torch.from_numpy(vectors), device)
        except (OSError, EOFError, SyntaxError, ValueError, RecursionError) as problem:
            raise DamagedFileError(f"{folder} holds no index: {first_line(problem)}") from None
        bm25 = approximate = None
        if any(name.startswith(f"{WORDS}/") for name in files):
            bm25 = BM25.load(folder / WORDS, doc_ids)
        if kind != EXACT:
            approximate = _read_faiss(folder / FAISS, documents.vectors)
        return cls(documents, encoder, bm25, kind, approximate, texts)


def _read_lines(path: Path) -> list[str]:
    with path.open(newline="") as file:
        lines = [json.loads(line) for line in file]
    if not all(isinstance(line, str) for line in lines):
        raise ValueError(f"{path.name} has lines that are no strings")
    return lines


def _faiss_index(vectors: Tensor, kind: str) -> Any:
    """FAISS's index of vectors (N, h) by "faiss:", its factory and perhaps parameters."""
    faiss, given = _faiss(), kind.removeprefix("faiss:")
    factory, _, parameters = given.partition(";")
    for number in re.findall(r"\d+", factory):
        if len(number) > 7 or int(number) < 2:  # some of these end the process in FAISS
            raise InputError(f"numbers of a FAISS index are 2 to 9999999, got {given!r}")
    try:
        index = faiss.index_factory(vectors.shape[1], factory, faiss.METRIC_INNER_PRODUCT)
        if not index.is_trained:
            some = np.linspace(0, len(vectors) - 1, min(len(vectors), TRAINING_VECTORS))
            index.train(_floats(vectors[torch.from_numpy(some.astype(np.int64))]))
        for rows in steps(len(vectors), ADDED):
            index.add(_floats(vectors[rows]))
        if parameters:
            faiss.ParameterSpace().set_index_parameters(index, parameters)
    except (RuntimeError, MemoryError) as problem:
        raise InputError(
            f"FAISS cannot build {given!r} of {len(vectors)} documents: {_reason(problem)}"
        ) from None
    return index


def _read_faiss(path: Path, vectors: Tensor) -> Any:
    """The index of vectors (N, h) that FAISS has written."""
    faiss, shape = _faiss(), tuple(vectors.shape)
    try:
        content: Any = np.memmap(path, np.uint8, "r")
        if LISTS_ELSEWHERE.search(content):
            raise ValueError("its inverted lists are in another file")
        index = faiss.read_index(str(path))
        if (index.ntotal, index.d) != shape:
            raise ValueError(f"it has {index.ntotal} vectors of width {index.d}, not these {shape}")
    except (RuntimeError, MemoryError, OSError, ValueError) as problem:
        raise DamagedFileError(f"{path} is no FAISS index: {_reason(problem)}") from None
    return index


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
