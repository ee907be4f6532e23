"""What a router sees of queries that no table knows."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from maw_gym.encoders.clusters import contents
from maw_gym.encoders.embedder import Embedder
from maw_gym.tables.columns import (
    column_widths,
    content_columns,
    observed_columns,
    table_column,
)
from maw_gym.tables.depth_table import DepthTable


@torch.no_grad()
def observations(
    embedder: Embedder, ids: list[list[int]], blocks: Sequence[str]
) -> NDArray[np.float32]:
    """Observations (N, O) of queries given as token ids, as a depth table has them.

    Args:
        embedder: with a MAW encoder.
        ids: N queries, see `Embedder.query_ids`.
        blocks: see `DepthTable.observation`.
    """
    encoder = embedder.maw
    # Rows without judgments: their alignment is 0.
    columns = {
        name: np.zeros((len(ids), width), np.float32)
        for name, width in column_widths(embedder).items()
    }
    if {"attention", "profile"} & set(blocks):
        for rows, statistics, content in embedder.query_statistics(ids):
            places = rows.cpu().numpy()
            found = observed_columns(statistics, content, encoder.centroids)
            for name, values in found.items():
                columns[name][places] = table_column(name, values)
    else:  # no depth has to be looked at, so a query costs one attention and not D more
        content = contents(embedder, ids)
        for name, values in content_columns(content, encoder.centroids).items():
            columns[name][:] = table_column(name, values)
    return DepthTable(tuple(map(str, range(len(ids)))), **columns).observation(blocks)
