"""The statistics of all depths on a CPU, in blocks that stay in its cache.

Texts are sorted by length and packed, so nothing is computed for padding and no mask is needed. The
tokens of the whole batch are projected for a few depths at a time, equal tokens once; the scores of
those depths are made, normalised and reduced in two buffers of 4 MB, which every block uses again.
Memory does not grow with D. A block is one call of each operation, however many texts it has: every
call on two threads ends at a barrier, which takes milliseconds where another process has the core.

Notation as in reference.py; n is the length of a text, g a number of texts of that length.
"""

import math
from itertools import groupby

import torch
from torch import Tensor
from torch.nn.functional import embedding, normalize

from maw_gym.attention.products import linear
from maw_gym.attention.reference import POOLED, DepthStatistics, Inputs, pooling_matrix

SCORES = 1 << 20  # numbers in a block of scores: two blocks fit a shared cache
PROJECTED = 1 << 21  # numbers in a block of queries (and of keys)
REPEATED = 0.6  # where at most so many of the tokens differ, each different one is projected once


@torch.no_grad()
def packed_statistics(inputs: Inputs) -> DepthStatistics:
    """The statistics of `maw_gym.attention.reference.depth_statistics`, forward only."""
    x, mask, _, _, value, pooling = inputs
    (batch, heads, size, head_width), depths = value.shape, inputs.depths
    lengths, order = mask.sum(-1).sort(stable=True)
    tokens, place = distinct_rows(x[order][mask[order]])  # (U, h); (T,), or None and U = T
    value = value[order]
    state = value.new_zeros(batch, heads, POOLED, POOLED)
    entropy, focus = value.new_zeros(2, batch, depths, heads)
    pooled = value.new_zeros(batch, depths, heads, head_width)
    packed = torch.arange(size) < lengths[:, None]
    # (B, 9, S): the 8 cells of the state, and the text's pooling weights
    reduce = torch.cat([pooling_matrix(packed, value.dtype), pooling[order][:, None]], 1)
    blocks = _texts_of_equal_length(lengths.tolist(), heads)
    largest = max((count * n * n for _, count, _, n in blocks), default=0)
    # One head of one text is the least that a block can be.
    room = value.new_empty(2, max(largest, min(largest * heads * depths, SCORES)))
    at_once = max(1, min(depths, PROJECTED // max(1, tokens.numel())))
    for start in range(0, depths, at_once):
        weights = inputs.of_depths(start, at_once)[2:4]
        query, key = (_Projected(tokens, weight, heads, place) for weight in weights)
        for text, count, token, n in blocks:
            matrices = max(1, room.shape[1] // (count * n * n))  # attention matrices per text
            some_depths, some_heads = max(1, matrices // heads), min(heads, matrices)
            texts = slice(text, text + count)
            for d in range(0, query.depths, some_depths):
                for h in range(0, heads, some_heads):
                    part = slice(d, d + some_depths), slice(h, h + some_heads)
                    where = texts, slice(start + d, start + min(d + some_depths, query.depths))
                    q, k = (one.of(*part, token, count, n) for one in (query, key))
                    many, left = len(q) // count, reduce[texts, :, :n]
                    shape = (count, where[1].stop - where[1].start, -1)
                    p, entropies, focuses = _attention(q, k, room, count, many)
                    entropy[(*where, part[1])] = entropies.view(shape)
                    focus[(*where, part[1])] = focuses.view(shape)
                    # (g, 1, 9, n) @ (g, d H, n, n) -> (g, d, H, 9, n)
                    reduced = (left[:, None] @ p).view(*shape, POOLED + 1, n)
                    cells = reduced[..., :POOLED, :].sum(1)  # (g, H, 8, n)
                    state[texts, part[1]] += cells @ left[:, None, :POOLED].transpose(-1, -2)
                    row = reduced[..., POOLED, :].transpose(1, 2)  # (g, H, d, n)
                    pooled[(*where, part[1])] = (row @ value[texts, part[1], :n]).transpose(1, 2)
    back = order.argsort()
    scale = lengths.clamp(min=2).log().reciprocal()[:, None]  # a single token has entropy 0
    return DepthStatistics(
        normalize(state.flatten(1), dim=-1)[back],
        (entropy.mean(-1) * scale).clamp(0, 1)[back],
        focus.mean(-1).clamp(0, 1)[back],
        pooled.flatten(2)[back],
    )


def _texts_of_equal_length(lengths: list[int], heads: int) -> list[tuple[int, int, int, int]]:
    """Blocks of texts sorted by length: (first text, texts, first token, length)."""
    blocks = []
    text = token = 0
    for n, group in groupby(lengths):
        left, most = len(list(group)), max(1, SCORES // max(1, heads * n * n))
        while left:
            count = min(most, left)
            if n:
                blocks.append((text, count, token, n))
            text, token, left = text + count, token + count * n, left - count
    return blocks


def _attention(
    query: Tensor, key: Tensor, room: Tensor, count: int, many: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Of queries and keys (g d H, e, n) weights (g, d H, n, n), entropy and focus (g, d H)."""
    matrices, head_width, n = query.shape
    flat, weights = (buffer[: matrices * n * n].view(matrices, n, n) for buffer in room)
    torch.baddbmm(flat, query.mT, key, beta=0, alpha=1 / math.sqrt(head_width), out=flat)
    scores, weights = flat.view(count, many, n, n), weights.view(count, many, n, n)
    torch.softmax(scores, -1, out=weights)
    largest, top = weights.amax(-1), scores.amax(-1)  # (g, d H, n)
    # Row entropy is the log of the normaliser less the mean score, sum(p s). The normaliser
    # follows from the largest score and its weight: no logarithm per element.
    mean_score = scores.mul_(weights).sum(-1)
    return weights, (top - largest.log() - mean_score).mean(-1), largest.mean(-1)


def distinct_rows(rows: Tensor) -> tuple[Tensor, Tensor | None]:
    """The different ones of `rows` (T, w), and where each row is among them."""
    bits = rows.contiguous().view(torch.int64 if rows.dtype == torch.float64 else torch.int32)
    generator = torch.Generator().manual_seed(0)
    odd = torch.randint(-(1 << 62), 1 << 62, (rows.shape[1],), generator=generator) | 1
    _, place = (bits * odd).sum(-1).unique(return_inverse=True)
    count = int(place.max()) + 1 if len(place) else 0
    if count > REPEATED * len(rows):
        return rows, None
    first = place.new_empty(count)
    first[place] = torch.arange(len(rows))
    different = rows[first]
    # Equal sums need not be equal rows.
    return (different, place) if torch.equal(different[place], rows) else (rows, None)


class _Projected:
    """Queries or keys of d depths for all tokens of a batch, head by head."""

    def __init__(self, tokens: Tensor, weight: Tensor, heads: int, place: Tensor | None) -> None:
        self.place = place
        self.heads = heads
        self.depths = len(weight) // tokens.shape[1]
        width = tokens.shape[1] // heads
        if place is None:
            # (d h, T): each head's tokens lie side by side, and a text's are a view.
            shape = (self.depths, heads, width, len(tokens))
            self.numbers = linear(weight, tokens).view(shape)
        else:
            self.numbers = linear(tokens, weight).view(-1, width)  # (U d H, e)

    def of(self, depths: slice, heads: slice, token: int, count: int, n: int) -> Tensor:
        """Those of `count` texts of n tokens from `token` on: (count d H, e, n)."""
        tokens = slice(token, token + count * n)
        if self.place is None:
            part = self.numbers[depths, heads, :, tokens]
            # (d, H, e, g n) -> (d H, e, g, n) -> (g d H, e, n); a copy for several texts
            part = part.reshape(-1, part.shape[2], count, n).permute(2, 0, 1, 3)
            return part.reshape(-1, part.shape[2], n)
        every = torch.arange(self.depths * self.heads).view(self.depths, self.heads)
        which = every[depths, heads].reshape(1, -1, 1)  # (1, d H, 1)
        rows = self.place[tokens].view(count, 1, n) * every.numel() + which
        return embedding(rows.flatten(0, 1), self.numbers).transpose(1, 2)
