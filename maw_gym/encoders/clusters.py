"""k-means clusters of queries: what depths are specialised on, and the cheapest router."""

import math

import torch
from torch import Tensor, nn

from maw_gym.encoders.embedder import Embedder
from maw_gym.encoders.token_statistics import mean_content
from maw_gym.errors import InputError


@torch.no_grad()
def contents(embedder: Embedder, ids: list[list[int]]) -> Tensor:
    """The `content` block (N, h) of texts given as token ids."""
    result = torch.zeros(len(ids), embedder.text.width, device=embedder.device)
    for rows, batch, mask in embedder.batches(ids, 8192):
        result[rows] = mean_content(embedder.text.hidden(batch, mask), mask)
    return result


def nearest(embedder: Embedder, ids: list[list[int]]) -> Tensor:
    """The cluster (N,) int64 of each text: the centroid of largest cosine to its content."""
    return (contents(embedder, ids) @ embedder.maw.centroids.T).argmax(1)


def cluster(content: Tensor, clusters: int, seed: int, iterations: int = 30) -> Tensor:
    """Centroids (K, h) of unit length by k-means on cosines (spherical k-means).

    Args:
        content: (N, h), of unit length.
        clusters: K; of fewer texts than that, some centroids are equal.
        seed: of the choice of the texts that centroids start from.
        iterations: of Lloyd's algorithm; a cluster that loses its last text keeps its centroid.

    Raises:
        InputError: there is no text.
    """
    if not len(content):
        raise InputError(f"no text to make {clusters} clusters of")
    generator = torch.Generator().manual_seed(seed)
    start = torch.randperm(len(content), generator=generator)[:clusters]
    centroids = content[
        start.repeat(math.ceil(clusters / len(start)))[:clusters].to(content.device)
    ]
    for _ in range(iterations):
        nearest_one = (content @ centroids.T).argmax(1)
        total = torch.zeros_like(centroids).index_add_(0, nearest_one, content)
        found = nn.functional.normalize(total, dim=-1)
        centroids = torch.where(total.norm(dim=-1, keepdim=True) > 0, found, centroids)
    return centroids
