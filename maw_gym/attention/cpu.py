"""The statistics of all depths on a CPU, in blocks that stay in its cache.

Texts are sorted by length and packed, so nothing is computed for padding and no mask is needed. The
tokens of the whole batch are projected for a few depths at a time, equal tokens once; the scores of
those depths are made, normalised and reduced in two buffers of 4 MB, which every block uses again.
Memory does not grow with D. A block is one call of each operation, however many texts it has: every
call on two threads ends at a barrier, which takes milliseconds where another process has the core.

Notation as in reference.py; n is the length of a text, g a number of texts of that length.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import embedding, normalize

from maw_gym.attention.products import linear
from maw_gym.attention.reference import POOLED, Inputs, Statistics, pooling_matrix

SCORES = 1 << 20  # numbers in a block of scores: two blocks fit a shared cache
PROJECTED = 1 << 21  # numbers in a block of queries (and of keys)
REPEATED = 0.6  # where at most so many of the tokens differ, each different one is projected once


@torch.no_grad()
def packed_statistics(inputs: Inputs) -> Statistics:
    """The statistics of `maw_gym.attention.reference.depth_statistics`, forward only."""
    x, mask, _, _, value, pooling = inputs
    heads, depths = value.shape[1], inputs.depths
    lengths, order = mask.sum(-1).sort(stable=True)
    tokens, place = distinct_rows(x[order][mask[order]])  # (U, h); (T,), or None and U = T
    groups = _Groups(lengths.tolist(), value[order], pooling[order], depths)
    block = max(1, min(depths, PROJECTED // max(1, tokens.numel())))
    for start in range(0, depths, block):
        some = inputs.of_depths(start, block)
        query, key = (
            Projected(tokens, weight, heads, place)
            for weight in (some.query_weight, some.key_weight)
        )
        groups.add(start, query, key)
    back = order.argsort()
    state = normalize(groups.state.flatten(1), dim=-1)
    scale = lengths.clamp(min=2).log().reciprocal()[:, None]  # a single token has entropy 0
    entropy = (groups.entropy.mean(-1) * scale).clamp(0, 1)
    focus = groups.focus.mean(-1).clamp(0, 1)
    return Statistics(state[back], entropy[back], focus[back], groups.pooled.flatten(2)[back])


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
    if not torch.equal(different[place], rows):
        return rows, None
    return different, place


class Projected:
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


class _Groups:
    """Running statistics of texts sorted by length, B of them."""

    def __init__(self, lengths: list[int], value: Tensor, pooling: Tensor, depths: int) -> None:
        batch, heads, size, head_width = value.shape
        self.value = value
        self.state = value.new_zeros(batch, heads, POOLED, POOLED)
        self.entropy = value.new_zeros(batch, depths, heads)
        self.focus = value.new_zeros(batch, depths, heads)
        self.pooled = value.new_zeros(batch, depths, heads, head_width)
        mask = torch.arange(size) < torch.tensor(lengths)[:, None]
        # (B, 9, S): the 8 cells of the state, and the text's pooling weights
        self.reduce = torch.cat([pooling_matrix(mask, value.dtype), pooling[:, None]], 1)
        # (first text, texts, first token, length) of the texts of equal length, in blocks
        self.blocks: list[tuple[int, int, int, int]] = []
        text = token = 0
        while text < batch:
            n = lengths[text]
            most = max(1, SCORES // max(1, heads * n * n))
            count = min(most, sum(length == n for length in lengths[text : text + most]))
            if n:
                self.blocks.append((text, count, token, n))
            text, token = text + count, token + count * n
        largest = max((count * n * n for _, count, _, n in self.blocks), default=0)
        # One head of one text is the least that a block can be.
        room = max(largest, min(largest * heads * depths, SCORES))
        self.scores, self.weights = value.new_empty(2, room)

    def add(self, start: int, query: Projected, key: Projected) -> None:
        """Take in the depths from `start` on."""
        depths, heads = query.depths, query.heads
        for text, count, token, n in self.blocks:
            at_once = max(1, len(self.scores) // (count * n * n))  # attention matrices per text
            some_depths = max(1, at_once // heads)
            some_heads = min(heads, at_once)
            for d in range(0, depths, some_depths):
                for head in range(0, heads, some_heads):
                    part = (slice(d, d + some_depths), slice(head, head + some_heads))
                    q, k = (made.of(*part, token, count, n) for made in (query, key))
                    self._add_block(
                        start + d, head, min(some_depths, depths - d), q, k, text, count
                    )

    def _add_block(
        self, depth: int, head: int, depths: int, query: Tensor, key: Tensor, text: int, count: int
    ) -> None:
        """`depths` from `depth` on, some heads from `head` on, of `count` texts from `text` on."""
        matrices, head_width, n = query.shape
        many = matrices // count
        heads = many // depths
        flat = self.scores[: matrices * n * n].view(matrices, n, n)
        scores = flat.view(count, many, n, n)
        weights = self.weights[: matrices * n * n].view(count, many, n, n)
        scale = 1 / math.sqrt(head_width)
        torch.baddbmm(flat, query.transpose(1, 2), key, beta=0, alpha=scale, out=flat)
        torch.softmax(scores, -1, out=weights)
        largest, top = weights.amax(-1), scores.amax(-1)  # (g, d H, n)
        # Row entropy is the log of the normaliser less the mean score, sum(p s). The normaliser
        # follows from the largest score and its weight: no logarithm per element.
        mean_score = scores.mul_(weights).sum(-1)
        entropy = (top - largest.log() - mean_score).mean(-1)  # (g, d H)
        texts, where = slice(text, text + count), slice(depth, depth + depths)
        some = slice(head, head + heads)
        self.entropy[texts, where, some] = entropy.view(count, depths, heads)
        self.focus[texts, where, some] = largest.mean(-1).view(count, depths, heads)
        reduce = self.reduce[texts, :, :n]
        # (g, 1, 9, n) @ (g, d H, n, n) -> (g, d, H, 9, n)
        reduced = (reduce[:, None] @ weights).view(count, depths, heads, POOLED + 1, n)
        cells = reduced[..., :POOLED, :].sum(1)  # (g, H, 8, n)
        self.state[texts, some] += cells @ reduce[:, None, :POOLED].transpose(-1, -2)
        row = reduced[..., POOLED, :].transpose(1, 2)  # (g, H, d, n)
        self.pooled[texts, where, some] = (row @ self.value[texts, some, :n]).transpose(1, 2)
