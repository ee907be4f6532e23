"""RoutedEncoder: a trained encoder and a trained router together, texts in, rankings out."""

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray

from maw_gym.checks import checked_int, checked_texts
from maw_gym.encoders.clusters import contents
from maw_gym.encoders.embedder import Embedder
from maw_gym.encoders.encoder_files import load_embedder
from maw_gym.errors import InputError
from maw_gym.files.cache import expanded
from maw_gym.files.tensor_files import check_readable, fingerprint
from maw_gym.retrieval.document_index import DocumentIndex
from maw_gym.retrieval.search import rank
from maw_gym.routers.depth_router import DepthRouter, load_router
from maw_gym.tables.columns import (
    column_widths,
    content_columns,
    observed_columns,
    table_column,
)
from maw_gym.tables.depth_table import DepthTable
from maw_gym.tables.task import resolve_device

ENCODER_FILE = "encoder.safetensors"
ROUTER_FILE = "router.safetensors"
LARGEST_CONFIG = 50_000_000  # bytes; runs write some 10,000


class RoutedEncoder:
    """Queries through the depth that a router chooses, documents through the standard attention.

    Args:
        embedder: with a MAW encoder.
        router: trained for this very encoder.
        dataset: name of the collection that the router was trained on, where it is known.
        device: where everything is computed.

    Raises:
        InputError: the router was trained for another encoder, or does not fit this one.
    """

    def __init__(
        self,
        embedder: Embedder,
        router: DepthRouter,
        dataset: str | None = None,
        device: torch.device | str = "cpu",
    ) -> None:
        told = router.settings.get("encoder")
        found = embedder.fingerprint()
        # Routers of versions before 0.2 know their encoder by its weights alone.
        if told not in (found, fingerprint(embedder.tensors())):
            raise InputError(
                f"this router was trained for encoder {str(told)[:12]}, not {found[:12]}; depths of"
                " one encoder mean nothing in another"
            )
        self.embedder = embedder.to(device)
        self.router = router.to(device)
        self.dataset = dataset
        self.index: DocumentIndex | None = None
        observed = self._table(self.embedder.query_ids([""])).observation(router.observation)
        shape = (observed.shape[1], self.embedder.maw.depths)
        if shape != (len(router.mean), router.depths):
            raise InputError(
                f"this router has {len(router.mean)} inputs and {router.depths}"
                f" depths; the encoder gives {shape[0]} and has {shape[1]}"
            )

    @classmethod
    def from_run(cls, path: str | Path, device: str = "auto") -> Self:
        """The encoder and the router that a training run has left behind.

        No code in the files is run.

        Args:
            path: folder with encoder.safetensors and router.safetensors; config.json, where there
                is one, names the collection.
            device: "auto", "cpu" or a torch device.

        Raises:
            InputError: a file is missing, damaged or foreign, or the two do not belong together.
        """
        folder = expanded(path)
        if not folder.is_dir():
            raise InputError(f"no run folder {str(folder)!r}; give the folder of a training run")
        embedder, _ = load_embedder(folder / ENCODER_FILE)
        router = load_router(folder / ROUTER_FILE)
        dataset = _dataset(folder / "config.json") or router.settings.get("dataset")
        return cls(embedder, router, dataset, resolve_device(device))

    def encode_queries(self, texts: Sequence[str]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Embeddings (N, h) of unit length, and the depths (N,) that they were routed through."""
        ids = self.embedder.query_ids(checked_texts(texts))
        table = self._table(ids)
        depths, _ = self.router.predict(table.observation(self.router.observation))
        embeddings = self.embedder.encode_ids(ids, torch.from_numpy(depths))
        return embeddings.cpu().numpy(), depths

    def encode_documents(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Embeddings (N, h) of unit length; a text without tokens has the zero vector."""
        return self.embedder.encode_documents(checked_texts(texts)).cpu().numpy()

    def observe(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Observations (N, O) of the router, as a depth table has them."""
        ids = self.embedder.query_ids(checked_texts(texts))
        return self._table(ids).observation(self.router.observation)

    def fit(self, doc_ids: Sequence[str], doc_texts: Sequence[str]) -> Self:
        """Encode the documents to search; those of an earlier call are forgotten.

        Args:
            doc_ids: N different ids.
            doc_texts: N texts.

        Raises:
            InputError: no document, an id given twice, or lengths that differ.
        """
        names = checked_texts(doc_ids, "document ids")
        texts = checked_texts(doc_texts)
        if not names or len(names) != len(texts):
            raise InputError(f"{len(names)} document ids for {len(texts)} texts; give one each")
        name, count = Counter(names).most_common(1)[0]
        if count > 1:
            raise InputError(f"document ids must differ; {name!r} is given {count} times")
        vectors = self.embedder.encode_documents(texts, progress=True)
        self.index = DocumentIndex(names, vectors)
        return self

    def search(self, queries: Sequence[str], k: int = 10) -> list[list[tuple[str, float]]]:
        """The best documents of each query.

        Args:
            queries: N texts.
            k: documents per query; all of them where there are fewer.

        Returns:
            Per query pairs of document id and cosine, best first; equal scores in trec_eval's
            order. Documents without tokens come last with a score of -2.

        Raises:
            InputError: no documents to search, or k below 1.
        """
        if self.index is None:
            raise InputError("there is nothing to search yet; call fit(doc_ids, doc_texts) first")
        k = checked_int(k, "k", 1)
        embeddings, _ = self.encode_queries(queries)
        found = rank(self.index, torch.from_numpy(embeddings).to(self.index.device), k)
        names = self.index.doc_ids
        return [
            [(names[document], score) for document, score in zip(documents, scores, strict=True)]
            for documents, scores in zip(
                found.documents.tolist(), found.scores.tolist(), strict=True
            )
        ]

    @torch.no_grad()
    def _table(self, ids: list[list[int]]) -> DepthTable:
        """Rows of a depth table for queries without judgments: their alignment is 0."""
        encoder = self.embedder.maw
        columns = {
            name: np.zeros((len(ids), width), np.float32)
            for name, width in column_widths(self.embedder).items()
        }
        if {"attention", "profile"} & set(self.router.observation):
            for rows, statistics, content in self.embedder.query_statistics(ids):
                places = rows.cpu().numpy()
                found = observed_columns(statistics, content, encoder.centroids)
                for name, values in found.items():
                    columns[name][places] = table_column(name, values)
        else:  # no depth has to be looked at, so a query costs one attention and not D more
            content = contents(self.embedder, ids)
            for name, values in content_columns(content, encoder.centroids).items():
                columns[name][:] = table_column(name, values)
        return DepthTable(tuple(str(row) for row in range(len(ids))), **columns)


def _dataset(path: Path) -> str | None:
    """The dataset named in a run's config.json; None without the file or the name."""
    if not path.exists():
        return None
    check_readable(path, "config.json of a run", LARGEST_CONFIG)
    try:
        config: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is not readable as JSON: {error}") from None
    settings = config.get("settings") if isinstance(config, dict) else None
    name = settings.get("dataset") if isinstance(settings, dict) else None
    return name if isinstance(name, str) else None
