"""What the ranking through each depth looks like, without any judgement of relevance.

A router that reads only the query knows nothing that the encoder does not know as well. What the
rankings look like, and whether the depths agree, is what it can know beside.

Notation: b queries, D depths, k documents at the top of each ranking.
"""

from typing import Final

import torch
from torch import Tensor

SHORT: Final = 10  # documents at the top that are looked at closely
LONG: Final = 50  # and from farther away
TEMPERATURE: Final = 0.05  # of the softmax of scores, as of the listwise alignment

STATISTICS: Final[dict[str, tuple[float, float]]] = {
    "first": (-1, 1),
    "gap to the second": (0, 2),
    "gap to the tenth": (0, 2),
    "mean of ten": (-1, 1),
    "spread of ten": (0, 1),
    "entropy of ten": (0, 1),
    "mean of fifty": (-1, 1),
    "spread of fifty": (0, 1),
    "entropy of fifty": (0, 1),
    "overlap with the mean": (0, 1),
    "same first": (0, 1),
}
"""Names and ranges, in order; see `ranking_statistics`."""


def ranking_statistics(scores: Tensor, documents: Tensor, mean_documents: Tensor) -> Tensor:
    """The numbers of `STATISTICS` for every depth, all depths of one kind side by side.

    - first: the highest cosine.
    - gap to the second, to the tenth: how far the highest is above these.
    - mean, spread: of the ten and the fifty highest cosines; the spread is their standard
      deviation.
    - entropy: of softmax(cosine / 0.05) over the ten and the fifty, divided by the logarithm of
      their number; 1 where all are equal, and 0 for one document.
    - overlap with the mean: share of the first ten that are among the first ten of the depths' mean
      embedding.
    - same first: share of the depths, this one included, whose first document is the same.

    Where fewer documents are ranked, the last of them stands for the tenth, and means are over
    those there are. Without any document everything is 0.

    Args:
        scores: (b, D, k) cosines, best first, of the first k <= 50 documents; a score below -1
            is none, and comes last.
        documents: (b, D, k) int64, what is ranked; equal numbers are the same document.
        mean_documents: (b, at least min(k, 10)) int64, those of the mean embedding, best first.

    Returns:
        (b, 11 D) float32.
    """
    there = scores >= -1 - 1e-3  # (b, D, k)
    scores = torch.where(there, scores, 0.0)
    first = scores[..., :1]
    columns = [first[..., 0]]
    for place in (2, SHORT):
        last = there[..., :place].sum(-1, keepdim=True).clamp(min=1) - 1  # (b, D, 1)
        columns.append((first - scores.gather(-1, last))[..., 0])
    for length in (SHORT, LONG):
        columns += _spread(scores[..., :length], there[..., :length])
    columns += [_overlap(documents, mean_documents, there), _agreement(documents, there)]
    bounded = [
        values.clamp(low, high)
        for values, (low, high) in zip(columns, STATISTICS.values(), strict=True)
    ]
    return torch.cat(bounded, dim=1).float()


def _spread(scores: Tensor, there: Tensor) -> list[Tensor]:
    """Mean, standard deviation and softmax entropy (b, D) of scores (b, D, k) that are there."""
    count = there.sum(-1)
    divisor = count.clamp(min=1)
    mean = scores.sum(-1) / divisor
    deviation = torch.where(there, scores - mean[..., None], 0.0)
    # Of softmax p: -sum p log p = log(sum exp z) - sum p z, with the highest z at 0.
    z = torch.where(there, (scores - scores[..., :1]) / TEMPERATURE, -torch.inf)
    weights = torch.where(there, z.exp(), 0.0)
    total = weights.sum(-1).clamp(min=1)
    entropy = total.log() - torch.where(there, weights * z, 0.0).sum(-1) / total
    largest = divisor.clamp(min=2).log()
    return [mean, (deviation.square().sum(-1) / divisor).sqrt(), entropy / largest]


def _overlap(documents: Tensor, mean_documents: Tensor, there: Tensor) -> Tensor:
    """Share (b, D) of the first ten that are among the first ten of the mean embedding."""
    ours, theirs = documents[..., :SHORT], mean_documents[:, None, :SHORT]
    common = torch.zeros_like(ours, dtype=torch.bool)
    for place in range(theirs.shape[-1]):  # ten passes, and no (b, D, 10, 10)
        common |= ours == theirs[..., place, None]
    valid = there[..., :SHORT]
    return (common & valid).sum(-1) / valid.sum(-1).clamp(min=1)


def _agreement(documents: Tensor, there: Tensor) -> Tensor:
    """Share (b, D) of the depths with the same first document."""
    first = documents[..., 0]  # (b, D)
    same = (first[:, :, None] == first[:, None]).double().mean(-1)
    return torch.where(there[..., 0], same, 0.0).float()
