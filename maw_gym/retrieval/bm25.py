"""BM25 as Lucene computes it, and its fusion with dense retrieval.

Notation: N documents, B queries, C candidates of a query, the k best of each of two rankings.
"""

import logging
import sys
from array import array
from collections.abc import Callable, Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from maw_gym.corpora.collection import QuerySet
from maw_gym.corpora.text import words
from maw_gym.errors import DamagedFileError, first_line
from maw_gym.retrieval.documents import DocumentIndex, Integers, padded, trec_order
from maw_gym.retrieval.ranking import CUTOFF, gains, ndcg_of_columns
from maw_gym.retrieval.search import Ranking

Floats = NDArray[np.float64]

WEIGHTS: Final = tuple(round(0.1 * step, 1) for step in range(11))
WEIGHT: Final = 0.5  # where no query can choose one
RANK_CONSTANT: Final = 60  # of reciprocal rank fusion, as in its source
FUSED: Final = 100  # documents of each ranking that a search fuses


class Words:
    """The words of documents that come one after the other."""

    def __init__(self, texts: Iterable[str] = ()) -> None:
        self.vocabulary: dict[str, int] = {}
        self.documents: list[array[int]] = []
        self.add(texts)

    def add(self, texts: Iterable[str]) -> None:
        """Count the words of the next documents."""
        number = self.vocabulary.setdefault
        for text in texts:
            numbers = [number(word, len(self.vocabulary)) for word in _words(text)]
            self.documents.append(array("i", numbers))


class BM25:
    """Scores of documents by the words they share with a query; `index` is bm25s' own."""

    def __init__(self, doc_ids: Sequence[str], index: Any) -> None:
        if index.scores["num_docs"] != len(doc_ids):
            raise ValueError(f"{len(doc_ids)} document ids for {index.scores['num_docs']} texts")
        self.tie_of = np.argsort(trec_order(doc_ids))
        self.index = index

    def __len__(self) -> int:
        return len(self.tie_of)

    @classmethod
    def of(cls, doc_ids: Sequence[str], texts: Iterable[str] | Words) -> Self:
        """Index documents, whose texts may come as a stream."""
        if not isinstance(texts, Words):
            total = len(doc_ids)
            bar = tqdm(texts, "BM25", total, leave=False, unit="doc", delay=2, disable=None)
            texts = Words(bar)
        index = _bm25s().BM25(method="lucene", k1=1.2, b=0.75)
        corpus: Any = (texts.documents, texts.vocabulary)
        if not texts.vocabulary:  # bm25s cannot index no word at all: one that no query has
            corpus = ([[0]] * len(texts.documents), {"": 0})
        index.index(corpus, create_empty_token=False, show_progress=False)
        return cls(doc_ids, index)

    def scores(self, text: str) -> NDArray[np.float32]:
        """Scores (N,) of all documents for a query, 0 where no word of it occurs."""
        numbers = self.index.vocab_dict
        known = [numbers[word] for word in _words(text) if word in numbers]
        return np.asarray(self.index.get_scores_from_ids(known))

    def rank(self, texts: Sequence[str], k: int, own: Integers | None = None) -> Ranking:
        """The k best documents of every query, with a word of it, and not its `own` (B,) one."""
        found = []
        bar = tqdm(texts, "BM25", unit="query", delay=2, leave=False, disable=None)
        for row, text in enumerate(bar):
            scores = self.scores(text)
            if own is not None and own[row] >= 0:
                scores[own[row]] = 0
            best = best_matches(scores, self.tie_of, k)
            found.append((scores[best], best))
        return _ranking(found, min(k, len(self)))

    def save(self, folder: Path) -> None:
        """Write bm25s' own files, without the documents' ids."""
        self.index.save(folder, show_progress=False)

    @classmethod
    def load(cls, folder: Path, doc_ids: Sequence[str]) -> Self:
        """The index of these documents that `save` has written; its numbers are mapped."""
        try:
            how = {"method": "lucene", "backend": "numpy", "dtype": "float32", "int_dtype": "int32"}
            bm25 = cls(doc_ids, _bm25s().BM25.load(folder, mmap=True, **how))
            _check_numbers(bm25.index)
            return bm25
        except (OSError, AttributeError, LookupError, TypeError, ValueError, RecursionError) as why:
            raise DamagedFileError(f"{folder} is no BM25 index: {first_line(why)}") from None


def _check_numbers(index: Any) -> None:
    """Refuse numbers that lead outside: a stranger may have written the files."""
    weights, documents, starts, count = (
        index.scores[name] for name in ("data", "indices", "indptr", "num_docs")
    )
    if not (
        (weights.dtype, documents.dtype, starts.dtype.kind) == (np.float32, np.int32, "i")
        and type(count) is int
        and weights.ndim == documents.ndim == starts.ndim == 1
        and (starts[0], starts[-1], len(weights)) == (0, len(documents), len(documents))
        and (starts[1:] >= starts[:-1]).all()
        and 0 <= documents.min(initial=0) <= documents.max(initial=0) < count
        and 0 <= weights.min(initial=0) <= weights.max(initial=0) < np.inf
        and index.unique_token_ids_set <= set(range(len(starts) - 1))
    ):
        raise ValueError("it holds numbers that lead outside")


def best_matches(scores: NDArray[np.float32], tie_of: Integers, k: int) -> Integers:
    """The k documents of the highest scores (N,) above 0, of equal ones by `tie_of` (N,)."""
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
    import Stemmer  # late: `import maw_gym` should not wait for it

    return frozenset(_bm25s().stopwords.STOPWORDS_EN), Stemmer.Stemmer("english").stemWords


@cache
def _bm25s() -> Any:
    # On import it starts JAX where there is one: seconds, and three quarters of a GPU's memory.
    hidden = "jax" not in sys.modules
    if hidden:
        sys.modules["jax"] = None  # type: ignore[assignment]
    try:
        import bm25s
    finally:
        if hidden:
            del sys.modules["jax"]
    logging.getLogger("bm25s").setLevel(logging.WARNING)  # its import asks for debugging messages
    return bm25s


class Candidates(NamedTuple):
    """The documents (C,) of a query that both rankers score, in trec_eval's order of ties."""

    documents: Integers
    dense: Floats
    lexical: Floats  # BM25's, 0 for a document without a word of the query


def scored_candidates(
    index: DocumentIndex,
    bm25: BM25,
    embeddings: Tensor,
    texts: Sequence[str],
    lists: Sequence[Integers],
    k: int,
    own: Integers | None = None,
) -> list[Candidates]:
    """Both scores of the documents listed for each query and of BM25's k best.

    Documents without text, and those `own` (B,) that queries are themselves, are none of them.
    """
    found = []
    queries = embeddings.to(index.device, torch.float32)
    empty = index.empty.cpu().numpy()
    hidden: Any = [] if index.hidden is None else index.hidden.cpu().numpy()
    for row, (text, listed) in enumerate(zip(texts, lists, strict=True)):
        itself = -1 if own is None else own[row]
        scores = bm25.scores(text)
        scores[itself : itself + 1] = 0  # of -1 it is nothing
        scores[hidden] = 0
        listed = np.concatenate([listed, best_matches(scores, index.tie_of, k)])
        listed = listed[(listed >= 0) & ~np.isin(listed, [*empty, itself])]
        documents = index.in_tie_order(listed)
        dense = index.exact_scores(queries[row, None], documents[None])[0].double()
        found.append(Candidates(documents, dense.cpu().numpy(), scores[documents].astype(float)))
    return found


def standardised(scores: Floats) -> Floats:
    """Scores (C,) of mean 0 and deviation 1, all 0 where they are equal."""
    if not len(scores):
        return scores
    centred = scores - scores.mean()
    deviation = centred.std()
    # Rounding leaves a little where all scores are equal.
    flat = deviation <= 1e-9 * np.abs(scores).max()
    return np.zeros_like(scores) if flat else centred / deviation


def weighted_sum(candidates: Candidates, weight: float) -> Floats:
    """Fused scores (C,): `weight` of the standardised cosines, the rest of BM25's."""
    dense, lexical = standardised(candidates.dense), standardised(candidates.lexical)
    return weight * dense + (1 - weight) * lexical


def reciprocal_ranks(candidates: Candidates) -> Floats:
    """Fused scores (C,): the sum of 1 / (60 + rank) over the two rankings of candidates.

    Source: Cormack, Clarke and Büttcher, SIGIR 2009.
    """
    # Candidates are in tie order, and ranks of equal ones keep it.
    dense, lexical = (
        1 / (RANK_CONSTANT + 1 + np.argsort(np.argsort(-scores, kind="stable")))
        for scores in (candidates.dense, candidates.lexical)
    )
    return dense + np.where(candidates.lexical > 0, lexical, 0)


def fused_ranking(candidates: Sequence[Candidates], fused: Sequence[Floats], k: int) -> Ranking:
    """The k best candidates of every query by fused scores, on the CPU."""
    found = []
    for one, scores in zip(candidates, fused, strict=True):
        order = np.argsort(-scores, kind="stable")[:k]
        found.append((scores[order], one.documents[order]))
    return _ranking(found)


def _ranking(found: Sequence[tuple[NDArray[Any], Integers]], k: int | None = None) -> Ranking:
    """Scores and documents of every query, best first, as one ranking of k, or of the longest."""
    scores, documents = zip(*found, strict=True) if found else ((), ())
    return Ranking(
        torch.from_numpy(padded(scores, -np.inf, k)).float(),
        torch.from_numpy(padded(documents, -1, k)),
    )


def hybrid_ranking(
    index: DocumentIndex,
    bm25: BM25,
    nearest: Callable[[Tensor, int], Ranking],
    embeddings: Tensor,
    texts: Sequence[str],
    k: int,
    weight: float,
) -> Ranking:
    """The k best documents of every query by `weighted_sum`, on the CPU, in one order for any k.

    The 100 best of both rankings are fused; the rest follows them by cosine.
    """
    k = min(k, len(index))
    best = nearest(embeddings, max(k, FUSED))
    documents, cosines = best.documents.cpu().numpy(), best.scores.cpu().numpy()
    listed = list(documents[:, :FUSED])
    found = []
    for row, one in enumerate(scored_candidates(index, bm25, embeddings, texts, listed, FUSED)):
        fused = weighted_sum(one, weight)
        order = np.argsort(-fused, kind="stable")
        below = (documents[row] >= 0) & ~np.isin(documents[row], one.documents)
        lowest = fused[order[-1]] if len(order) else 0.0
        scores = np.concatenate([fused[order], lowest - 1 + cosines[row, below]])[:k]
        found.append((scores, np.concatenate([one.documents[order], documents[row, below]])[:k]))
    return _ranking(found, k)


def best_weight(index: DocumentIndex, queries: QuerySet, candidates: Sequence[Candidates]) -> float:
    """The weight of `WEIGHTS` with the highest mean nDCG@10, of equal ones the nearest to 0.5."""
    if not queries.ids:
        return WEIGHT
    relevant = index.relevant(queries)

    def quality(weight: float) -> float:
        fused = [weighted_sum(one, weight) for one in candidates]
        documents = fused_ranking(candidates, fused, CUTOFF).documents.numpy()
        columns = torch.arange(documents.shape[1]).expand(len(documents), 1, -1)
        graded = torch.from_numpy(gains(documents, relevant))
        return float(ndcg_of_columns(columns, graded, relevant).double().mean())

    return max(sorted(WEIGHTS, key=lambda weight: abs(weight - WEIGHT)), key=quality)
