"""BM25, as Lucene computes it, over documents that are read as a stream.

Notation: N documents, V words, Z pairs of a word and a document it occurs in.
"""

import logging
from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from maw_gym import files
from maw_gym.corpora.records import Collection
from maw_gym.corpora.text import words
from maw_gym.errors import DamagedFileError
from maw_gym.retrieval.documents import Integers, trec_order
from maw_gym.retrieval.search import Ranking

CANDIDATES: Final = 100


class Words:
    """The words of documents that come one after the other."""

    def __init__(self) -> None:
        self.vocabulary: dict[str, int] = {}
        self.documents: list[array[int]] = []

    def add(self, texts: Sequence[str]) -> None:
        """Count the words of the next documents."""
        number = self.vocabulary.setdefault
        for text in texts:
            self.documents.append(
                array("i", [number(word, len(self.vocabulary)) for word in _words(text)])
            )

    def weighed(self, documents: int) -> tuple[dict[str, int], dict[str, Tensor]]:
        """Vocabulary and weights of a `BM25`; how many documents there should be is checked."""
        if len(self.documents) != documents:
            raise ValueError(f"{documents} document ids for {len(self.documents)} texts")
        parts = (np.zeros(0, np.float32), np.zeros(0, np.int32), np.zeros(1, np.int64))
        if self.vocabulary:  # bm25s cannot index no word at all
            index = _bm25s().BM25(method="lucene", k1=1.2, b=0.75)
            index.index((self.documents, dict(self.vocabulary)), show_progress=False)
            starts = index.scores["indptr"][: len(self.vocabulary) + 1]
            parts = (index.scores["data"], index.scores["indices"], starts.astype(np.int64))
        names = ("weights", "documents", "starts")
        return self.vocabulary, dict(zip(names, map(torch.from_numpy, parts), strict=True))


class BM25:
    """Scores of documents by the words they share with a query.

    Args:
        doc_ids: N different ids, for trec_eval's order of equal scores.
        vocabulary: V words, each with its number.
        weights: "weights" (Z,) float32, what a word adds to a document's score; "documents" (Z,)
            int32, which document; "starts" (V + 1,) int64, where each word's documents begin.
    """

    def __init__(
        self, doc_ids: Sequence[str], vocabulary: dict[str, int], weights: dict[str, Tensor]
    ) -> None:
        self.tie_of = np.argsort(trec_order(doc_ids))
        self.vocabulary = vocabulary
        self.weights = weights
        self._arrays = {name: tensor.numpy() for name, tensor in weights.items()}

    def __len__(self) -> int:
        return len(self.tie_of)

    @classmethod
    def of(cls, doc_ids: Sequence[str], texts: Iterable[str], *, progress: bool = False) -> Self:
        """Index documents: k1 1.2 and b 0.75.

        Words are folded to lower case and stemmed (Snowball), English stop words are left out.

        Args:
            doc_ids: N different ids.
            texts: N texts, read once.
            progress: show a bar where it lasts over two seconds.

        Raises:
            ValueError: more or fewer texts than ids.
        """
        words = Words()
        stream = iter(texts)
        bar = tqdm(
            total=len(doc_ids),
            desc="BM25",
            unit="doc",
            disable=None if progress else True,
            delay=2,
            leave=False,
        )
        with bar:
            while chunk := list(islice(stream, CHUNK)):
                words.add(chunk)
                bar.update(len(chunk))
        return cls(doc_ids, *words.weighed(len(doc_ids)))

    def scores(self, text: str) -> NDArray[np.float32]:
        """Scores (N,) of all documents for a query, 0 where no word of it occurs."""
        scores = np.zeros(len(self), np.float32)
        for word in _words(text):
            if word in self.vocabulary:
                start, end = self._arrays["starts"][self.vocabulary[word] :][:2]
                scores[self._arrays["documents"][start:end]] += self._arrays["weights"][start:end]
        return scores

    def rank(self, texts: Sequence[str], k: int) -> Ranking:
        """The k best documents of every query; one without a word of the query is none of them.

        Args:
            texts: B queries.
            k: at least 1; cut to the number of documents.

        Returns:
            `Ranking` on the CPU, equal scores in trec_eval's order.
        """
        width = min(k, len(self))
        scores = np.full((len(texts), width), -np.inf, np.float32)
        documents = np.full((len(texts), width), -1)
        for row, text in enumerate(
            tqdm(texts, "BM25", unit="query", delay=2, leave=False, disable=None)
        ):
            of_all = self.scores(text)
            best = best_matches(of_all, self.tie_of, width)
            documents[row, : len(best)] = best
            scores[row, : len(best)] = of_all[best]
        return Ranking(torch.from_numpy(scores), torch.from_numpy(documents))

    def save(self, path: Path) -> None:
        """Write the index, without the documents' ids, whole or not at all."""
        settings = {"documents": len(self), "words": list(self.vocabulary)}
        files.write(path, self.weights, KIND, settings)

    @classmethod
    def load(cls, path: Path, doc_ids: Sequence[str]) -> Self:
        """The index of these documents that `save` has written.

        Raises:
            DamagedFileError: the file is damaged, or of other documents.
            InputError: it is not there, or cannot be read.
        """
        settings, weights = files.read(path, KIND)
        if settings.get("documents") != len(doc_ids):
            raise DamagedFileError(f"{path} is of other documents than these {len(doc_ids)}")
        words = settings.get("words")
        words = words if isinstance(words, list) else []
        if not _is_whole(weights, len(doc_ids), len(words)):
            raise DamagedFileError(f"{path} is damaged: it is not a whole BM25 index")
        return cls(doc_ids, {str(word): number for number, word in enumerate(words)}, weights)


def _is_whole(weights: Mapping[str, Tensor], documents: int, words: int) -> bool:
    """Whether the tensors of a file are such that no index in them leads outside."""
    types = {name: (tensor.dtype, tensor.ndim) for name, tensor in weights.items()}
    expected = {"weights": torch.float32, "documents": torch.int32, "starts": torch.int64}
    if types != {name: (kind, 1) for name, kind in expected.items()}:
        return False
    values, rows, starts = (weights[name] for name in ("weights", "documents", "starts"))
    return (
        bool(values.isfinite().all())
        and bool(((rows >= 0) & (rows < documents)).all())
        and bool((starts.diff() >= 0).all())
        and len(starts) == words + 1
        and [int(starts[0]), int(starts[-1])] == [0, len(values)]
        and len(values) == len(rows)
    )


def best_matches(scores: NDArray[np.float32], tie_of: Integers, k: int) -> Integers:
    """The k documents of the highest scores (N,), of equal ones the smaller in `tie_of` (N,) first.

    There are fewer than k where fewer have a score above 0.
    """
    matched = np.flatnonzero(scores > 0)
    if len(matched) > k:
        threshold = np.partition(scores[matched], -k)[-k]
        matched = matched[scores[matched] >= threshold]
    return matched[np.lexsort((tie_of[matched], -scores[matched]))][:k]


def _words(text: str) -> list[str]:
    """Stemmed words (Snowball) without English stop words."""
    stop_words, stem = _english()
    return stem([word for word in words(text) if word not in stop_words])


@cache
def _english() -> tuple[frozenset[str], Callable[[list[str]], list[str]]]:
    """Imported on first use: `import maw_gym` should not wait for it."""
    import Stemmer

    return frozenset(_bm25s().stopwords.STOPWORDS_EN), Stemmer.Stemmer("english").stemWords


def _bm25s() -> Any:
    """Imported on first use: `import maw_gym` should not wait for it."""
    import bm25s

    # On import bm25s asks for its debugging messages.
    logging.getLogger("bm25s").setLevel(logging.WARNING)
    return bm25s


def candidate_documents(collection: Collection, split: str, bm25: BM25) -> list[Integers]:
    """Positions in `collection.doc_ids` of BM25's first 100 for each query of `split`, in order."""
    ranked = bm25.rank(collection.splits[split].texts, CANDIDATES).documents.numpy()
    return [documents[documents >= 0] for documents in ranked]


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


CHUNK: Final = 8192  # documents whose words are held at once
KIND: Final = "BM25 index"
