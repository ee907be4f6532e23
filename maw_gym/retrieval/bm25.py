"""BM25 as Lucene computes it, over documents that are read as a stream; candidates by it.

Notation: N documents.
"""

import logging
from array import array
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from maw_gym.corpora.collection import SMALL, Collection
from maw_gym.corpora.text import words
from maw_gym.errors import DamagedFileError, first_line
from maw_gym.files import MANIFEST, read_manifest, write_manifest, written_folder
from maw_gym.retrieval.documents import Integers, own_documents, trec_order
from maw_gym.retrieval.search import Ranking

log = logging.getLogger(__name__)

KIND: Final = "BM25 index"
CANDIDATES: Final = 100


class Words:
    """The words of documents that come one after the other."""

    def __init__(self) -> None:
        self.vocabulary: dict[str, int] = {}
        self.documents: list[array[int]] = []

    def add(self, texts: Iterable[str]) -> None:
        """Count the words of the next documents."""
        number = self.vocabulary.setdefault
        for text in texts:
            numbers = [number(word, len(self.vocabulary)) for word in _words(text)]
            self.documents.append(array("i", numbers))

    def weighed(self) -> Any:
        """The index that bm25s makes of them."""
        index = _bm25s().BM25(method="lucene", k1=1.2, b=0.75)
        if self.vocabulary:
            corpus = (self.documents, self.vocabulary)
            index.index(corpus, create_empty_token=False, show_progress=False)
        else:  # bm25s cannot index no word at all
            empty = {"data": np.zeros(0, np.float32), "indices": np.zeros(0, np.int32)}
            index.scores = empty | {
                "indptr": np.zeros(1, np.int64),
                "num_docs": len(self.documents),
            }
            index.vocab_dict, index.nonoccurrence_array = {}, None
        return index


class BM25:
    """Scores of documents by the words they share with a query."""

    def __init__(self, doc_ids: Sequence[str], index: Any) -> None:
        if index.scores["num_docs"] != len(doc_ids):
            raise ValueError(f"{len(doc_ids)} document ids for {index.scores['num_docs']} texts")
        self.tie_of = np.argsort(trec_order(doc_ids))
        self.index = index

    def __len__(self) -> int:
        return len(self.tie_of)

    @classmethod
    def of(cls, doc_ids: Sequence[str], texts: Iterable[str], *, progress: bool = False) -> Self:
        """Index documents: k1 1.2 and b 0.75."""
        found = Words()
        shown = None if progress else True
        bar = {"desc": "BM25", "unit": "doc", "delay": 2, "leave": False, "disable": shown}
        found.add(tqdm(texts, total=len(doc_ids), **bar))
        return cls(doc_ids, found.weighed())

    def scores(self, text: str) -> NDArray[np.float32]:
        """Scores (N,) of all documents for a query, 0 where no word of it occurs."""
        scores = np.zeros(len(self), np.float32)
        weights, documents, starts = self._parts()
        for word in _words(text):
            if word in self.index.vocab_dict:
                start, end = starts[self.index.vocab_dict[word] :][:2]
                scores[documents[start:end]] += weights[start:end]
        return scores

    def rank(self, texts: Sequence[str], k: int, own: Integers | None = None) -> Ranking:
        """The k best documents of every query; one without a word of the query is none of them."""
        width = min(k, len(self))
        scores = np.full((len(texts), width), -np.inf, np.float32)
        documents = np.full((len(texts), width), -1)
        bar = tqdm(texts, "BM25", unit="query", delay=2, leave=False, disable=None)
        for row, text in enumerate(bar):
            of_all = self.scores(text)
            if own is not None and own[row] >= 0:
                of_all[own[row]] = 0
            best = best_matches(of_all, self.tie_of, width)
            documents[row, : len(best)] = best
            scores[row, : len(best)] = of_all[best]
        return Ranking(torch.from_numpy(scores), torch.from_numpy(documents))

    def write(self, folder: Path) -> None:
        """Write bm25s' own files to a folder."""
        self.index.save(folder, show_progress=False)

    @classmethod
    def read(cls, folder: Path, doc_ids: Sequence[str]) -> Self:
        """The index of these documents that `write` has written; mapped, not read."""
        try:
            index = _bm25s().BM25.load(folder, mmap=True, method="lucene", backend="numpy")
            bm25 = cls(doc_ids, index)
            bm25._check()
        except (OSError, AttributeError, LookupError, TypeError, ValueError, RecursionError) as why:
            raise DamagedFileError(f"{folder} is no BM25 index: {first_line(why)}") from None
        return bm25

    def save(self, folder: Path) -> None:
        """Write the index, without the documents' ids, whole or not at all."""
        with written_folder(folder, MANIFEST) as temporary:
            self.write(temporary)
            write_manifest(temporary, KIND, {})

    @classmethod
    def load(cls, folder: Path, doc_ids: Sequence[str]) -> Self:
        """The index of these documents that `save` has written."""
        read_manifest(folder, KIND)
        return cls.read(folder, doc_ids)

    def _parts(self) -> tuple[NDArray[np.float32], NDArray[np.int32], Integers]:
        """What each word adds to documents, to which, and where each word's documents begin."""
        weights, documents, starts = (self.index.scores[n] for n in ("data", "indices", "indptr"))
        return weights, documents, starts

    def _check(self) -> None:
        """Refuse numbers that lead outside."""
        weights, documents, starts = self._parts()
        numbers = self.index.vocab_dict.values()
        if not (
            [weights.dtype, documents.dtype, starts.dtype.kind] == [np.float32, np.int32, "i"]
            and [weights.ndim, documents.ndim, starts.ndim] == [1, 1, 1]
            and np.isfinite(weights).all()
            and ((documents >= 0) & (documents < len(self))).all()
            and (np.diff(starts) >= 0).all()
            and [0, len(weights)] == [starts[0], len(documents)]
            and all(type(number) is int and 0 <= number < len(starts) - 1 for number in numbers)
        ):
            raise ValueError("it holds numbers that lead outside")


def best_matches(scores: NDArray[np.float32], tie_of: Integers, k: int) -> Integers:
    """The k documents of the highest scores (N,), of equal ones the smaller in `tie_of` (N,)
    first.
    """
    matched = np.flatnonzero(scores > 0)
    if len(matched) > k:
        threshold = np.partition(scores[matched], -k)[-k]
        matched = matched[scores[matched] >= threshold]
    return matched[np.lexsort((tie_of[matched], -scores[matched]))][:k]


def _words(text: str) -> list[str]:
    """Stemmed words without English stop words."""
    stop_words, stem = _english()
    return stem([word for word in words(text) if word not in stop_words])


@cache
def _english() -> tuple[frozenset[str], Callable[[list[str]], list[str]]]:
    """Imported on first use: `import maw_gym` should not wait for it."""
    import Stemmer

    return frozenset(_bm25s().stopwords.STOPWORDS_EN), Stemmer.Stemmer("english").stemWords


def _bm25s() -> Any:
    import bm25s

    # On import bm25s asks for its debugging messages.
    logging.getLogger("bm25s").setLevel(logging.WARNING)
    return bm25s


def candidate_documents(collection: Collection, split: str, bm25: BM25) -> list[Integers]:
    """Positions in `collection.doc_ids` of BM25's first 100 for each query of `split`, in order."""
    queries = collection.splits[split]
    own = own_documents(queries, {doc_id: row for row, doc_id in enumerate(collection.doc_ids)})
    ranked = bm25.rank(queries.texts, CANDIDATES, own).documents.numpy()
    lists = [documents[documents >= 0] for documents in ranked]
    missed = sum(not len(documents) for documents in lists)
    log.info(
        "%s: from %d documents on BM25's first %d are ranked", collection.name, SMALL, CANDIDATES
    )
    if missed:
        log.warning(
            "%s: %d of %d %s queries share no word with any document and find nothing",
            *(collection.name, missed, len(lists), split),
        )
    return lists


def with_relevant(
    candidates: Sequence[Integers], collection: Collection, split: str
) -> list[Integers]:
    """Candidates of the queries of `split`, followed by their relevant documents not among them."""
    row = {doc_id: index for index, doc_id in enumerate(collection.doc_ids)}
    lists = []
    for documents, relevance in zip(candidates, collection.splits[split].relevance, strict=True):
        relevant = [row[doc_id] for doc_id, grade in relevance.items() if grade > 0]
        missing = np.setdiff1d(np.array(relevant, np.int64), documents)
        lists.append(np.concatenate([documents, missing]))
    return lists
