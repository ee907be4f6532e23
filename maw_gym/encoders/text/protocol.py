"""What the rest of the package asks of a text model, and texts as padded batches."""

from collections.abc import Sequence
from itertools import chain
from typing import Protocol

import numpy as np
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


def padded(
    ids: Sequence[Sequence[int]], device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Ids (B, S) int64, padded with 0, and mask (B, S) bool, True on real tokens; S >= 1.

    Args:
        ids: B texts.
        device: where both are wanted.
    """
    lengths = np.fromiter(map(len, ids), np.int64, len(ids))
    # By numpy: torch spreads such small steps over all cores, which costs more than it gains.
    mask = torch.empty(len(ids), int(lengths.max(initial=1)), dtype=torch.bool)
    batch = torch.zeros(mask.shape, dtype=torch.long)
    np.less(np.arange(mask.shape[1]), lengths[:, None], out=mask.numpy())
    batch.numpy()[mask.numpy()] = np.fromiter(chain.from_iterable(ids), np.int64, lengths.sum())
    return on_device(batch, device), on_device(mask, device)


def on_device(values: Tensor, device: torch.device | str) -> Tensor:
    """A tensor of the CPU on `device`; a GPU takes it in its turn, and is not waited for."""
    if torch.device(device).type != "cuda":
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


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
