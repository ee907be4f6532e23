"""What a router sees of queries that no table knows."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maw_gym.encoders.clusters import contents
from maw_gym.encoders.embedder import Embedder
from maw_gym.errors import InputError
from maw_gym.retrieval.search_index import SearchIndex
from maw_gym.retrieval.unjudged import LONG, SHORT, ranking_statistics
from maw_gym.tables.columns import (
    column_widths,
    content_columns,
    observed_columns,
    table_column,
)
from maw_gym.tables.depth_table import DepthTable


@torch.no_grad()
def observations(
    embedder: Embedder,
    ids: list[list[int]],
    blocks: Sequence[str],
    documents: SearchIndex | None = None,
) -> NDArray[np.float32]:
    """Observations (N, O) of queries given as token ids, as a depth table has them.

    Args:
        embedder: with a MAW encoder.
        ids: N queries, see `Embedder.query_ids`.
        blocks: see `DepthTable.observation`. `retrieval` costs D + 1 searches for every query.
        documents: are searched for the block `retrieval`.

    Raises:
        InputError: no documents, where they are to be searched.
    """
    if "retrieval" in blocks and ids and documents is None:
        raise InputError(
            "this router looks at what a search finds, and there is nothing to search yet; call"
            " index(doc_ids, texts) first"
        )
    encoder = embedder.maw
    # Rows without judgments: their alignment is 0.
    columns: dict[str, Any] = {
        name: np.zeros((len(ids), width), np.float32)
        for name, width in column_widths(embedder).items()
    }
    if {"attention", "profile", "retrieval"} & set(blocks):
        for rows, statistics, content in embedder.query_statistics(ids):
            places = rows.cpu().numpy()
            found = observed_columns(statistics, content, encoder.centroids)
            if "retrieval" in blocks and documents is not None:
                found["retrieval"] = rankings_looked_at(documents, statistics.embeddings)
            for name, values in found.items():
                columns[name][places] = table_column(name, values)
    else:  # no depth has to be looked at, so a query costs one attention and not D more
        content = contents(embedder, ids)
        for name, values in content_columns(content, encoder.centroids).items():
            columns[name][:] = table_column(name, values)
    return DepthTable(tuple(map(str, range(len(ids)))), **columns).observation(blocks)


def rankings_looked_at(documents: SearchIndex, embeddings: Tensor) -> Tensor:
    """`ranking_statistics` (B, 11 D) of searches with every depth's embedding (B, D, h)."""
    queries, depths, _ = embeddings.shape
    found = documents.rank(embeddings.flatten(0, 1), LONG)
    of_mean = documents.rank(torch.nn.functional.normalize(embeddings.mean(1), dim=-1), SHORT)
    scores, names = (part.view(queries, depths, -1) for part in found)
    return ranking_statistics(scores, names, of_mean.documents)
