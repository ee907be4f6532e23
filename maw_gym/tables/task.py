"""RetrievalTask: a collection, an encoder and a device, and everything derived from the three."""

import logging
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maw_gym import files
from maw_gym.corpora import Collection, QuerySet, load_collection
from maw_gym.corpora.splits import SPLITS
from maw_gym.distributed import from_all, own_range
from maw_gym.encoders.embedder import Embedder, progress_bar, untrained_embedder
from maw_gym.encoders.files import document_embeddings, load_embedder, with_query_states
from maw_gym.encoders.text import AUTO, TextEncoder, WordLlama, padded, text_encoders
from maw_gym.errors import InputError, checked_int, expanded, one_of
from maw_gym.files import MANIFEST, cache_home, cached, content_key
from maw_gym.retrieval import bm25 as hybrid
from maw_gym.retrieval.bm25 import BM25
from maw_gym.retrieval.documents import DocumentIndex
from maw_gym.retrieval.evaluation import (
    DEPTH_OF_RANKING,
    Evaluation,
    evaluate_embeddings,
    evaluate_rankings,
)
from maw_gym.retrieval.ranking import rankings_of_depths
from maw_gym.retrieval.search import Ranking, rank_without
from maw_gym.tables.depth_table import (
    BLOCKS,
    TERMS,
    DepthTable,
    Seen,
    in_range,
    observed,
    read_table,
    write_table,
)

if TYPE_CHECKING:
    from maw_gym.encoders.training.settings import TrainingSettings

log = logging.getLogger(__name__)

Floats = NDArray[np.float32]
Places = NDArray[np.int64]

FORMAT: Final = 3  # raise when the meaning of a cached number changes
PORTION: Final = 1024  # rows of a table computed at once, and the least that a process gets
CANDIDATES: Final = 100  # documents of a query that are ranked in a large collection, by BM25
NAMED: Final = ("untrained", "trained")  # encoders that are no files
FUSIONS: Final = ("sum", "ranks")


class RetrievalTask:
    """Depth tables, document index and evaluation of one encoder on one collection.

    Args:
        collection: documents, and queries in splits.
        embedder: a MAW encoder for tables; a NON-MAW one can only be evaluated.
        device: where texts are encoded and ranked.
        encoder_provenance: JSON values: which encoder this is and how it came about.
        pretrained: the text encoder before any training, for baselines; None is the embedder's.
    """

    def __init__(
        self,
        collection: Collection,
        embedder: Embedder,
        device: torch.device | str = "cpu",
        encoder_provenance: Mapping[str, Any] | None = None,
        pretrained: TextEncoder | None = None,
    ) -> None:
        self.collection = collection
        self.embedder = with_query_states(embedder.to(device), collection)
        self.device = torch.device(device)
        self.encoder_provenance = dict(encoder_provenance or {})
        self.pretrained = pretrained or embedder.text
        self._tables: dict[str, DepthTable] = {}
        self._candidates: dict[str, list[Places]] = {}

    @cached_property
    def key(self) -> str:
        """Key of everything that a cached number depends on."""
        return content_key(
            {
                "format": FORMAT,
                "collection": self.collection.provenance["content"],
                "encoder": self.embedder.fingerprint(),
                "device": self.device.type,  # devices round differently
                "blocks": list(BLOCKS),
            }
        )

    @cached_property
    def index(self) -> DocumentIndex:
        """The documents, encoded through the standard attention; cached on disk."""
        embeddings = document_embeddings(self.collection, self.embedder)
        return DocumentIndex(self.collection.doc_ids, embeddings)

    @cached_property
    def bm25(self) -> BM25:
        """BM25 over the documents; cached on disk."""
        ids, texts = self.collection.doc_ids, self.collection.doc_texts

        def save(path: Path, bm25: BM25) -> None:
            with files.written_folder(path, MANIFEST) as temporary:
                bm25.save(temporary)
                files.write_manifest(temporary, "BM25 index", {})

        def load(path: Path) -> BM25:
            files.read_manifest(path, "BM25 index")
            return BM25.load(path, ids)

        content = {"format": FORMAT, "collection": self.collection.provenance["content"]}
        path = cache_home() / "bm25" / content_key(content)
        return cached(path, lambda: BM25.of(ids, texts), save, load)

    def table_path(self, split: str) -> Path:
        """Where the depth table of a split is cached."""
        return cache_home() / "tables" / f"{self.key}-{split}.safetensors"

    def table(self, split: str) -> DepthTable:
        """The depth table of a split's queries; built once, then read from disk."""
        one_of("split", split, SPLITS)
        if split not in self._tables:
            ids = self.collection.splits[split].ids
            table = cached(
                self.table_path(split),
                build=lambda: self._built(split),
                save=write_table,
                load=lambda path: read_table(path, ids),
                together=True,
            )
            groups = self.collection.query_groups(split)
            self._tables[split] = replace(table, groups=groups if any(groups) else ())
        return self._tables[split]

    def _built(self, split: str) -> DepthTable:
        """The table of a split; each of several processes computes a share of its portions."""
        self.index  # noqa: B018  (all together, before each goes to its own rows)
        ids, names = self.collection.splits[split].ids, (*TERMS, *BLOCKS)
        starts = range(0, max(len(ids), 1), PORTION)
        own = [self._columns(split, start) for start in starts[own_range(len(starts))]]
        parts = [part for of_process in from_all(own) for part in of_process]
        whole = {name: np.concatenate([part[name] for part in parts]) for name in names}
        return DepthTable.of(ids, {name: values[: len(ids)] for name, values in whole.items()})

    def _columns(self, split: str, start: int) -> dict[str, Floats]:
        """The table's columns for the rows of a split from `start` on, at most `PORTION`."""
        queries = self.collection.splits[split]
        queries = queries.select(range(start, min(start + PORTION, len(queries.ids))))
        candidates, found = self.candidates(split), self.candidates(split, judged=False)
        if found is candidates:
            found = None
        if not queries.ids:  # one without a word tells the widths
            queries, candidates = QuerySet(("",), ("",), ({},)), None
        relevant = self.index.relevant(queries)

        @torch.no_grad()
        def columns_of(batch: tuple[Tensor, Tensor, Tensor]) -> tuple[Places, dict[str, Floats]]:
            places = batch[0].cpu().numpy()
            seen = Seen(self.embedder, *batch[1:], search=lambda _: rankings.statistics)
            rankings = rankings_of_depths(
                self.index,
                seen.statistics.embeddings,
                [relevant[place] for place in places],
                candidates and [candidates[start + place] for place in places],
                found and [found[start + place] for place in places],
            )
            terms = {"entropy": seen.statistics.entropy, "focus": seen.statistics.focus}
            terms |= {"ndcg": rankings.ndcg, "listwise": rankings.listwise}
            columns = {name: in_range(name, terms[name].cpu().numpy(), 0, 1) for name in TERMS}
            return places, columns | {name: observed(name, seen) for name in BLOCKS}

        label = f"depths of {split} queries {start + 1} to {start + len(queries.ids)}"
        ids = self.embedder.query_ids(queries.texts)
        batches = self.embedder.batches(ids, self.embedder.statistics_tokens)
        built: dict[str, Floats] = {}
        with progress_bar(len(ids), label) as bar, _mapping(self.device) as mapped:
            for places, columns in mapped(columns_of, batches):
                for name, values in columns.items():
                    built.setdefault(name, np.empty((len(ids), values.shape[1]), np.float32))
                    built[name][places] = values
                bar.update(len(places))
        return built

    def candidates(self, split: str, judged: bool = True) -> list[Places] | None:
        """Positions of the documents each query is ranked over; None is the whole collection.

        Where they are `judged`, queries to learn from are given their relevant documents besides.
        """
        if self.collection.small:
            return None
        queries = self.collection.splits[split]
        if split not in self._candidates:
            own = self.index.own_documents(queries)
            found = self.bm25.rank(queries.texts, CANDIDATES, own).documents.numpy()
            self._candidates[split] = [documents[documents >= 0] for documents in found]
            if missed := (found[:, :1] < 0).sum():
                log.warning(
                    "%s: %d of %d %s queries share no word with any document and find nothing",
                    *(self.collection.name, missed, len(found), split),
                )
        lists = self._candidates[split]
        if not judged or split not in ("encoder", "train"):
            return lists
        relevant = [one.documents for one in self.index.relevant(queries)]
        pairs = zip(lists, relevant, strict=True)
        return [np.concatenate([listed, np.setdiff1d(one, listed)]) for listed, one in pairs]

    def evaluate(
        self, split: str, depths: Tensor | None = None, k: int = 100
    ) -> tuple[Evaluation, Ranking]:
        """Retrieval of `k` documents with the really encoded queries, through ir_measures.

        Args:
            split: whose queries are ranked.
            depths: (N,) int64, the depth of each query; None is the standard attention.
            k: at least 1.
        """
        one_of("split", split, SPLITS)
        k = checked_int(k, "k", 1)
        queries = self.collection.splits[split]
        embeddings = self.embedder.encode_queries(queries.texts, depths)
        return evaluate_embeddings(self.index, queries, embeddings, self.candidates(split), k)

    @cached_property
    def hybrid_weight(self) -> float:
        """The weight of the standard attention's cosines beside BM25, from validation queries."""
        candidates = self._hybrid_candidates("validation")
        return hybrid.best_weight(self.index, self.collection.splits["validation"], candidates)

    def evaluate_hybrid(
        self, split: str, depths: Tensor | None = None, fusion: str = "sum"
    ) -> tuple[Evaluation, Ranking]:
        """Retrieval by the encoder's cosines and BM25 together, through ir_measures.

        Args:
            split: whose queries are ranked.
            depths: (N,) int64, the depth of each query; None is the standard attention.
            fusion: "sum" of standardised scores with `hybrid_weight`, or reciprocal "ranks".
        """
        one_of("split", split, SPLITS)
        one_of("fusion", fusion, FUSIONS)
        candidates = self._hybrid_candidates(split, depths)
        if fusion == "sum":
            scores = [hybrid.weighted_sum(one, self.hybrid_weight) for one in candidates]
        else:
            scores = [hybrid.reciprocal_ranks(one) for one in candidates]
        ranking = hybrid.fused_ranking(candidates, scores, DEPTH_OF_RANKING)
        queries, documents = self.collection.splits[split], ranking.documents.numpy()
        return evaluate_rankings(queries, self.collection.doc_ids, documents), ranking

    def _hybrid_candidates(
        self, split: str, depths: Tensor | None = None
    ) -> list[hybrid.Candidates]:
        queries = self.collection.splits[split]
        embeddings = self.embedder.encode_queries(queries.texts, depths)
        lists, k = self.candidates(split), 0
        own = self.index.own_documents(queries)
        if lists is None:
            k = DEPTH_OF_RANKING
            lists = list(rank_without(self.index, embeddings, k, own).documents.cpu().numpy())
        both = self.index, self.bm25
        return hybrid.scored_candidates(*both, embeddings, queries.texts, lists, k, own)

    def query_text(self, query_id: str) -> str:
        """Text of the query called `query_id`, from whichever split."""
        for queries in self.collection.splits.values():
            if query_id in queries.ids:
                return queries.texts[queries.ids.index(query_id)]
        raise InputError(f"no query {query_id!r} in {self.collection.name!r}")

    @torch.no_grad()
    def attention(self, query_id: str, depth: int) -> tuple[Floats, list[str]]:
        """Attention weights (H, n, n) of one query at one depth, and its n tokens."""
        encoder = self.embedder.maw
        depth = checked_int(depth, "depth", 0, encoder.depths - 1)
        (ids,) = self.embedder.query_ids([self.query_text(query_id)])
        if not ids:
            return np.zeros((encoder.heads, 0, 0), np.float32), []
        tokens, mask = padded([ids], self.device)
        weights = encoder.depth_attention(self.embedder.text.hidden(tokens, mask), mask)
        return weights[0, ..., depth].cpu().numpy(), self.embedder.text.tokens(ids)


@contextmanager
def _mapping(device: torch.device) -> Iterator[Any]:
    """A `map` that gives each core a thread, instead of all cores to every operation.

    Operations on several threads end at a barrier, where all wait for the slowest. A GPU has one
    queue.
    """
    threads = torch.get_num_threads()
    if device.type == "cuda" or threads == 1:
        yield map
        return
    torch.set_num_threads(1)  # threads that start from here on have this setting
    try:
        with ThreadPoolExecutor(threads) as pool:
            yield pool.map
    finally:
        torch.set_num_threads(threads)


def resolve_device(name: str) -> torch.device:
    """The device called `name`; "auto" is the GPU where there is one."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # "meta" can be created, and not be read
    except (RuntimeError, AssertionError, ImportError, TypeError):
        raise InputError(f"device {name!r} is not available here; use 'cpu' or 'auto'") from None
    return device


_tasks: dict[str, RetrievalTask] = {}


def load_task(
    dataset: str,
    encoder: str,
    device: str = "auto",
    fold: int = 0,
    folds: int | None = None,
    training: "TrainingSettings | None" = None,
    text_encoder: str = WordLlama.name,
) -> RetrievalTask:
    """The task of these settings; equal settings share one task in a process.

    Args:
        dataset: see `maw_gym.corpora.load_collection`.
        encoder: "untrained", "trained" (trained on the collection at hand at first use, then read
            from the cache), or the path of an encoder file.
        device: "auto", "cpu" or a torch device.
        fold: see `maw_gym.corpora.load_collection`.
        folds: see there.
        training: how a "trained" encoder is trained; None are the defaults.
        text_encoder: what the encoder stands on, see `maw_gym.encoders.text.text_encoders`; an
            encoder's file has its own, and "auto" is for a "trained" one.

    Raises:
        InputError: a setting that does not exist.
    """
    where = resolve_device(device)
    version = None if encoder in NAMED else _file_version(encoder, text_encoder)
    if text_encoder == AUTO and encoder != "trained":
        raise InputError(
            f"text encoder 'auto' is chosen for a trained encoder, not for {encoder!r}; name one"
        )
    # A model that is not there is refused before anything is read.
    texts = text_encoders(text_encoder)
    names = [text.name for text in texts]
    key = repr((dataset, encoder, version, where, fold, folds, training, text_encoder, names))
    if key in _tasks:
        return _tasks[key]
    collection = load_collection(dataset, fold, folds)
    provenance: Mapping[str, Any] = {"chosen": encoder}
    if encoder == "untrained":
        embedder = untrained_embedder(collection.doc_texts, None, texts[0])
    elif encoder == "trained":
        # Imported late: an environment with an untrained encoder needs no training code.
        from maw_gym.encoders.training.selection import trained_embedder

        embedder, provenance = trained_embedder(collection, where, training, texts[0], texts[1:])
    else:
        embedder, told = load_embedder(expanded(encoder))
        provenance = {"chosen": encoder, "training": told}
    same = (text for text in texts if text.name == embedder.text.name)
    pretrained = next(same, None) if encoder in NAMED else None
    task = RetrievalTask(collection, embedder, where, provenance, pretrained)
    return _tasks.setdefault(key, task)


def _file_version(encoder: str, text_encoder: str) -> tuple[int, ...]:
    """What tells an encoder's file from one that was written anew under its name."""
    path = expanded(encoder)
    if not os.path.isfile(path):
        raise InputError(
            f"unknown encoder {encoder!r}; give 'untrained', 'trained' or the path of an"
            " encoder.safetensors"
        )
    if text_encoder != WordLlama.name:
        raise InputError(
            f"encoder {encoder!r} has a text encoder of its own; leave out {text_encoder!r}"
        )
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns
