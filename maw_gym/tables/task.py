"""RetrievalTask: a collection, an encoder and a device, and everything derived from the three."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maw_gym.attention.reference import attention_weights, split_heads
from maw_gym.checks import checked_int, one_of
from maw_gym.corpora import Collection
from maw_gym.corpora.splits import SPLITS
from maw_gym.distributed import processes
from maw_gym.encoders.collection_states import with_query_states
from maw_gym.encoders.documents import document_embeddings
from maw_gym.encoders.embedder import Embedder
from maw_gym.encoders.text import TextEncoder
from maw_gym.errors import InputError
from maw_gym.files import cache_home, cached, content_key
from maw_gym.retrieval.bm25 import candidate_documents, with_relevant
from maw_gym.retrieval.documents import DocumentIndex
from maw_gym.retrieval.evaluation import Evaluation, evaluate_embeddings
from maw_gym.retrieval.ranking import rankings_of_depths
from maw_gym.retrieval.search import Ranking
from maw_gym.tables.columns import column_widths, observed_columns, table_column
from maw_gym.tables.depth_table import DepthTable
from maw_gym.tables.table_files import load_or_build
from maw_gym.threads import map_in_threads

if TYPE_CHECKING:
    from maw_gym.retrieval.bm25 import BM25

log = logging.getLogger(__name__)

FORMAT = 3  # raise when the meaning of a cached number changes


class RetrievalTask:
    """Depth tables, document index and evaluation of one encoder on one collection.

    Args:
        collection: documents, and queries in splits.
        embedder: a MAW encoder for tables; a NON-MAW one can only be evaluated.
        device: where texts are encoded and ranked.
        encoder_provenance: JSON values: which encoder this is and how it came about.
        pretrained: the text encoder as it was before any training, which encoders to compare with
            stand on; None is the embedder's.
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
        self._candidates: dict[str, list[NDArray[np.int64]]] = {}

    @cached_property
    def key(self) -> str:
        """Key of everything that a cached number depends on."""
        return content_key(
            {
                "format": FORMAT,
                "collection": self.collection.provenance["content"],
                "encoder": self.embedder.fingerprint(),
                "device": self.device.type,  # devices round differently
            }
        )

    @cached_property
    def index(self) -> DocumentIndex:
        """The documents, encoded through the standard attention; cached on disk."""
        embeddings = document_embeddings(self.collection, self.embedder)
        return DocumentIndex(self.collection.doc_ids, embeddings)

    @cached_property
    def bm25(self) -> "BM25":
        """BM25 over the documents; cached on disk."""
        # Imported late: most tables need no words.
        from maw_gym.retrieval.bm25 import BM25

        content = {"format": FORMAT, "collection": self.collection.provenance["content"]}
        path = cache_home() / "bm25" / content_key(content)
        ids, texts = self.collection.doc_ids, self.collection.doc_texts

        return cached(
            path,
            build=lambda: BM25.of(ids, texts, progress=True),
            save=lambda path, bm25: bm25.save(path),
            load=lambda path: BM25.load(path, ids),
        )

    def table_path(self, split: str) -> Path:
        """Where the depth table of a split is kept."""
        return cache_home() / "tables" / f"{self.key}-{split}.safetensors"

    def table(self, split: str) -> DepthTable:
        """The depth table of a split's queries; built once, then read from disk.

        Raises:
            InputError: the encoder has no depths.
        """
        one_of("split", split, SPLITS)
        if split not in self._tables:
            queries = self.collection.splits[split]
            widths = column_widths(self.embedder)
            path = self.table_path(split)
            if processes() > 1:
                # Together, before each goes to its own rows, of which one may have none.
                self.index  # noqa: B018
            table = load_or_build(
                path, queries.ids, widths, lambda rows: self._columns(split, rows)
            )
            groups = self.collection.query_groups(split)
            self._tables[split] = replace(table, groups=groups if any(groups) else ())
        return self._tables[split]

    def _columns(self, split: str, rows: slice) -> Mapping[str, NDArray[np.float32]]:
        """The table's columns for some rows of a split."""
        queries = self.collection.splits[split].select(range(rows.start, rows.stop))
        relevant = self.index.relevant(queries)
        candidates, found = self.candidates(split), self.candidates(split, judged=False)
        if found is candidates:
            found = None

        @torch.no_grad()
        def columns_of(
            batch: tuple[Tensor, Tensor, Tensor],
        ) -> tuple[NDArray[np.int64], dict[str, NDArray[np.float32]]]:
            places = batch[0].cpu().numpy()
            statistics, content = self.embedder.statistics(*batch[1:])
            alignment, rankings = rankings_of_depths(
                self.index,
                statistics.embeddings,
                [relevant[place] for place in places],
                candidates and [candidates[rows.start + place] for place in places],
                found and [found[rows.start + place] for place in places],
            )
            columns = observed_columns(statistics, content)
            columns |= {**alignment._asdict(), "retrieval": rankings}
            return places, {name: table_column(name, values) for name, values in columns.items()}

        label = f"depths of {split} queries {rows.start + 1} to {rows.stop}"
        ids = self.embedder.query_ids(queries.texts)
        batches = self.embedder.batches(ids, self.embedder.statistics_tokens, label)
        # A GPU has one queue: more threads would only take turns.
        threads = 1 if self.device.type == "cuda" else None
        built: dict[str, NDArray[np.float32]] = {}
        for places, columns in map_in_threads(columns_of, batches, threads):
            for name, values in columns.items():
                built.setdefault(name, np.empty((len(ids), values.shape[1]), np.float32))
                built[name][places] = values
        return built

    def candidates(self, split: str, judged: bool = True) -> list[NDArray[np.int64]] | None:
        """Positions of the documents each query is ranked over; None is the whole collection.

        Args:
            split: whose queries.
            judged: with the relevant documents that queries to learn from are given besides.
        """
        one_of("split", split, SPLITS)
        if self.collection.small:
            return None
        if split not in self._candidates:
            self._candidates[split] = candidate_documents(self.collection, split, self.bm25)
        if not judged or split not in ("encoder", "train"):
            return self._candidates[split]
        return with_relevant(self._candidates[split], self.collection, split)

    def evaluate(
        self, split: str, depths: Tensor | None = None, k: int = 100
    ) -> tuple[Evaluation, Ranking]:
        """Retrieval with the really encoded queries, through ir_measures.

        Args:
            split: whose queries are ranked.
            depths: (N,) int64, the depth of each query; None is the standard attention.
            k: documents retrieved per query.

        Raises:
            InputError: no such split, depths that are none of one for each query, or a k below 1.
        """
        one_of("split", split, SPLITS)
        k = checked_int(k, "k", 1)
        queries = self.collection.splits[split]
        embeddings = self.embedder.encode_queries(queries.texts, depths)
        return evaluate_embeddings(self.index, queries, embeddings, self.candidates(split), k)

    def query_text(self, query_id: str) -> str:
        """Text of the query called `query_id`, from whichever split.

        Raises:
            InputError: there is none.
        """
        for queries in self.collection.splits.values():
            if query_id in queries.ids:
                return queries.texts[queries.ids.index(query_id)]
        raise InputError(f"no query {query_id!r} in {self.collection.name!r}")

    @torch.no_grad()
    def attention(self, query_id: str, depth: int) -> tuple[NDArray[np.float32], list[str]]:
        """Attention weights (H, n, n) of one query at one depth, and its n tokens.

        Raises:
            InputError: there is no such query or depth.
        """
        encoder = self.embedder.maw
        depth = checked_int(depth, "depth", 0, encoder.depths - 1)
        ids = self.embedder.query_ids([self.query_text(query_id)])[0]
        tokens = torch.tensor([ids], dtype=torch.long, device=self.device)
        x = encoder.norm(self.embedder.text.hidden(tokens))
        rows = slice(depth * x.shape[-1], (depth + 1) * x.shape[-1])
        query, key = (
            split_heads(x @ projection.weight[rows].T, encoder.heads)
            for projection in (encoder.depth_query_proj, encoder.depth_key_proj)
        )
        weights = attention_weights(query, key, torch.ones_like(tokens, dtype=torch.bool))
        return weights[0].cpu().numpy(), self.embedder.text.tokens(ids)
