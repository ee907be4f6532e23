"""What the ways to the statistics of depth attention are given, and what they give back."""

from typing import NamedTuple

from torch import Tensor


class Inputs(NamedTuple):
    """Texts and the projections that their attentions come from; see `depth_statistics`.

    Attributes:
        x: (B, S, h), the attention's input; padding is never read.
        mask: (B, S) bool, real tokens first.
        query_weight: (D h, h), a Linear's weight; rows d h .. (d + 1) h belong to depth d.
        key_weight: (D h, h), likewise.
        value: (B, H, S, e).
        pooling: (B, S), weights of the tokens in the embedding; 0 on padding.
    """

    x: Tensor
    mask: Tensor
    query_weight: Tensor
    key_weight: Tensor
    value: Tensor
    pooling: Tensor

    @property
    def depths(self) -> int:
        """D."""
        return self.query_weight.shape[0] // self.x.shape[-1]

    def of_depths(self, first: int, count: int) -> "Inputs":
        """The same with `count` depths from `first` on, or with those of them that there are."""
        width = self.x.shape[-1]
        rows = slice(first * width, min(first + count, self.depths) * width)
        return self._replace(query_weight=self.query_weight[rows], key_weight=self.key_weight[rows])


class Statistics(NamedTuple):
    """Of the attention of every depth.

    Attributes:
        state: (B, 64 H), mean attention over depth, pooled to 8 x 8 per head, of unit length.
        entropy: (B, D) in [0, 1], see `row_entropy`.
        focus: (B, D) in [0, 1], see `row_focus`.
        pooled: (B, D, H e), the pooled attention output before the output projection.
    """

    state: Tensor
    entropy: Tensor
    focus: Tensor
    pooled: Tensor
