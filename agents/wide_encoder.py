"""A NON-MAW encoder with as many parameters as a MAW encoder, in the memory of an ordinary one."""

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from maw_gym.attention.depth_attention import softmax_over_keys, split_heads
from maw_gym.encoders.attention_encoders import EncoderSettings, NonMAWEncoder, placed

HEAD_WIDTH = 32
HEADS_AT_ONCE = 8


class WideEncoder(NonMAWEncoder):
    """Standard attention with many heads, computed a few heads at a time.

    What the attention adds is a sum over heads, so groups of heads can be added one after the
    other; in training each group is computed again in the backward pass. Same numbers and same
    weights as a NonMAWEncoder of equal settings. The heads that an ordinary encoder has start as
    there; the further ones with random projections and an output of 0, so that the untrained
    encoder is the ordinary one and every weight has a gradient sooner or later.

    Args:
        settings: `depths` 0, more than `hidden / head_width` heads.
    """

    def __init__(self, settings: EncoderSettings) -> None:
        super().__init__(settings)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for projection in (self.query_proj, self.key_proj, self.value_proj):
                # The diagonal that NonMAWEncoder starts from ends at row `hidden`.
                further = projection.weight[settings.hidden :]
                nn.init.normal_(further, std=settings.hidden**-0.5, generator=generator)

    def embed(
        self, ids: Tensor, hidden: Tensor, mask: Tensor, place: Tensor | None = None
    ) -> Tensor:
        """Embeddings (B, h); see `NonMAWEncoder.embed`."""
        x = self.norm(hidden)
        pooling = self.pooling(ids, mask)
        width = len(self.query_proj.weight) // self.heads
        total = (pooling[:, None] @ placed(hidden, place)).squeeze(1)
        for first in range(0, self.heads, HEADS_AT_ONCE):
            heads = slice(first * width, min(first + HEADS_AT_ONCE, self.heads) * width)
            arguments = (x, mask, pooling, place, heads)
            if torch.is_grad_enabled():
                total = total + checkpoint(self._attended, *arguments, use_reentrant=False)
            else:
                total = total + self._attended(*arguments)
        return nn.functional.normalize(total, dim=-1)

    def _attended(
        self, x: Tensor, mask: Tensor, pooling: Tensor, place: Tensor | None, heads: slice
    ) -> Tensor:
        """What the heads of some rows of the projections add to the embeddings: (B, h)."""
        width = len(self.query_proj.weight) // self.heads
        query, key, value = (
            split_heads(
                placed(x @ projection.weight[heads].T, place), (heads.stop - heads.start) // width
            )
            for projection in (self.query_proj, self.key_proj, self.value_proj)
        )
        row = pooling[:, None, None] @ softmax_over_keys(query, key, mask)  # (B, H, 1, S)
        # (B, H, 1, e) -> (B, H e) -> (B, h)
        return (row @ value).flatten(1) @ self.out_proj.weight[:, heads].T


def wide_settings(maw: EncoderSettings) -> EncoderSettings:
    """Settings of the NON-MAW encoder with as many parameters as the MAW encoder of `maw`.

    A MAW encoder has 4 + 2 D projections of h x h; here 4 of h x (H e), with heads of width 32:
    ``H = (4 + 2 D) h / 128``, for 32 depths of 256 numbers 136 heads.
    """
    heads = round((4 + 2 * maw.depths) * maw.hidden / (4 * HEAD_WIDTH))
    return EncoderSettings(
        hidden=maw.hidden,
        heads=heads,
        head_width=HEAD_WIDTH,
        depths=0,
        vocabulary=maw.vocabulary,
    )
