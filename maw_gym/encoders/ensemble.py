"""All depths at once: the control for choosing one of them."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from maw_gym.encoders.embedder import Embedder


@torch.no_grad()
def ensemble_queries(embedder: Embedder, texts: Sequence[str]) -> Tensor:
    """Embeddings (N, h) of queries: the mean of all depths' embeddings, of unit length.

    It costs what D queries cost.

    Args:
        embedder: with a MAW encoder.
        texts: N queries; one without tokens has the zero vector.
    """
    ids = embedder.query_ids(texts)
    result = torch.zeros(len(ids), embedder.text.width, device=embedder.device)
    for rows, statistics, _ in embedder.query_statistics(ids):
        result[rows] = nn.functional.normalize(statistics.embeddings.mean(1), dim=-1)
    return result
