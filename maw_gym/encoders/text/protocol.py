"""What the rest of the package asks of a text model, and texts as padded batches."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class TextEncoder(Protocol):
    """A model that turns a text into one vector per token.

    Attributes:
        name: identifies the packaged weights; part of every cache key.
        width: h, the width of a hidden state.
        heads: H, the attention heads that suit the width.
        vocabulary: number of token ids.
        positions: tokens of the longest text, special ones included; None is any length.
        static: whether a token's hidden state depends on nothing but its id.
    """

    name: str
    width: int
    heads: int
    vocabulary: int
    positions: int | None
    static: bool

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, with the model's special tokens and not truncated.

        A text without any other token has none at all.
        """
        ...

    def cut(self, ids: Sequence[int], limit: int) -> list[int]:
        """Token ids of a text cut to at most `limit`; special tokens at its end stay."""
        ...

    def hidden(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Hidden states (..., h) float32 of token ids (...) int64, on the ids' device.

        Args:
            ids: (B, S); any shape where the states are static.
            mask: (B, S) bool, True on real tokens, which come first; None is all of them. What
                stands elsewhere in the result is finite and means nothing.
        """
        ...

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """Readable form of each token id."""
        ...

    def own_weights(self) -> dict[str, Tensor]:
        """Weights that no package ships, to be saved with an encoder."""
        ...


def padded(ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Ids (B, S) int64, padded with 0, and mask (B, S) bool, True on real tokens; S >= 1."""
    longest = max((len(row) for row in ids), default=0)
    batch = torch.zeros(len(ids), max(longest, 1), dtype=torch.long)
    lengths = torch.tensor([len(row) for row in ids], dtype=torch.long)
    mask = torch.arange(batch.shape[1]) < lengths[:, None]
    batch[mask] = torch.tensor([token for row in ids for token in row], dtype=torch.long)
    return batch, mask


def length_batches(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Rows in batches of similar length, each of at most `batch_tokens` tokens once padded.

    Args:
        lengths: tokens of each row.
        batch_tokens: a batch holds at least one row, however long.
    """
    order = sorted(range(len(lengths)), key=lambda row: (lengths[row], row))
    batches: list[list[int]] = []
    for row in order:
        length = max(lengths[row], 1)
        if batches and (len(batches[-1]) + 1) * length <= batch_tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
    return batches
