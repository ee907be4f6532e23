"""NonMAWEncoder and MAWEncoder: hidden states in, text embeddings out.

Both add one attention to the residual stream and pool the tokens. LayerNorm acts on the attention's
input only: the norms of static token embeddings carry meaning, which a normalised residual loses.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from maw_gym.attention.reference import (
    DepthStatistics,
    Inputs,
    depth_attention,
    depth_statistics,
    merge_heads,
    split_heads,
)
from maw_gym.errors import InputError, checked_int, shown

UNTRAINED_SCALE = -0.6  # untrained tokens attend to what they are not; positive is worse
UNTRAINED_NOISE = 0.01
TEMPERATURE_RANGE = 8.0  # depths run from temperature 1/8 to 8
LARGEST = 2**24  # of any number of a shape: a file may claim what it likes


@dataclass(frozen=True)
class EncoderSettings:
    """The shape of an encoder; stored in its file.

    Attributes:
        hidden: h, width of the hidden states.
        heads: H, number of attention heads, a divisor of h.
        depths: D, number of alternative attention matrices per head; 0 is a NON-MAW encoder.
        vocabulary: number of token ids, each with a pooling weight.
    """

    hidden: int = 256
    heads: int = 8
    depths: int = 32
    vocabulary: int = 32_000

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            checked_int(value, name, 0 if name == "depths" else 1, LARGEST)
        if self.hidden % self.heads:
            raise InputError(f"hidden width {self.hidden} is not divisible by {self.heads} heads")

    def to_json(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return asdict(self)


class NonMAWEncoder(nn.Module):
    """Standard attention over hidden states: ``x + softmax(Q K^T / sqrt(e)) V W_o``, then pooling.

    A text's embedding is the average of its tokens with weights softmax(`token_weight`) over the
    real tokens, scaled to unit length; a text without tokens has the zero vector.

    Args:
        settings: shapes; `settings.depths` is not used here.
    """

    def __init__(self, settings: EncoderSettings) -> None:
        super().__init__()
        if not isinstance(settings, EncoderSettings):
            raise InputError(f"an encoder is made of EncoderSettings, not of {shown(settings)}")
        self.settings = settings
        hidden = settings.hidden
        self.heads = settings.heads
        self.norm = nn.LayerNorm(hidden)
        self.query_proj = nn.Linear(hidden, hidden, bias=False)
        self.key_proj = nn.Linear(hidden, hidden, bias=False)
        self.value_proj = nn.Linear(hidden, hidden, bias=False)
        self.out_proj = nn.Linear(hidden, hidden, bias=False)
        self.token_weight = nn.Parameter(torch.zeros(settings.vocabulary))
        with torch.no_grad():
            for projection in (self.query_proj, self.key_proj, self.value_proj, self.out_proj):
                # The identity; torch.nn.init's takes a second of imports where nothing is drawn.
                projection.weight.zero_().fill_diagonal_(1)
            self.query_proj.weight.mul_(UNTRAINED_SCALE)

    def forward(self, hidden: Tensor, mask: Tensor, depth: Tensor | None = None) -> Tensor:
        """Contextual states (B, S, h) of hidden states (B, S, h).

        Args:
            hidden: (B, S, h).
            mask: (B, S) bool.
            depth: (B,) int64 in [0, D), one per text, of a `MAWEncoder`; None is the standard path.
                One attention is computed either way.
        """
        heads = self._heads_output(hidden, mask, None, depth)
        added: Tensor = self.out_proj(merge_heads(heads))
        return hidden + added * mask.any(-1)[:, None, None]

    def embed(
        self,
        ids: Tensor,  # (B, S) int64
        hidden: Tensor,
        mask: Tensor,
        place: Tensor | None = None,
        depth: Tensor | None = None,
    ) -> Tensor:
        """Embeddings (B, h) of unit length; for `mask` and `depth` see `forward`.

        `hidden` is (B, S, h), or (U, h), the states of the U different tokens of the batch, and
        `place` (B, S) the row of each token there. Then a token is projected once, not at each
        occurrence.
        """
        heads = self._heads_output(hidden, mask, place, depth)
        pooling = self.pooling(ids, mask)[:, None]  # (B, 1, S)
        # Pooling and projection are linear, so one row per text is projected, not every token's.
        attended = self.out_proj((pooling[:, None] @ heads).flatten(1))  # (B, H, 1, e) -> (B, h)
        residual = (pooling @ placed(hidden, place)).squeeze(1)
        return nn.functional.normalize(residual + attended, dim=-1)

    def _heads_output(
        self, hidden: Tensor, mask: Tensor, place: Tensor | None, depth: Tensor | None
    ) -> Tensor:
        """Softmax(Q K^T / sqrt(e)) V (B, H, S, e); arguments as in `embed`."""
        x = self.norm(hidden)
        query, key = self._query_and_key(x, mask, place, depth)
        value = placed(self.value_proj(x), place)
        # A row without any key is 0 / 0 in some of torch's kernels: such texts attend to padding.
        keys = (mask | ~mask.any(-1, keepdim=True))[:, None, None]
        query, key, value = (split_heads(y, self.heads) for y in (query, key, value))
        return scaled_dot_product_attention(query, key, value, attn_mask=keys)

    def _query_and_key(
        self, x: Tensor, mask: Tensor, place: Tensor | None, depth: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Q and K (B, S, h) of x, which is (B, S, h) or (U, h)."""
        assert depth is None
        return placed(self.query_proj(x), place), placed(self.key_proj(x), place)

    def pooling(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Weights (B, S) of the tokens in the embedding: they sum to 1, or are 0 without tokens."""
        logits = self.token_weight[ids].masked_fill(~mask, torch.finfo(torch.float32).min)
        return logits.softmax(-1) * mask


def placed(rows: Tensor, place: Tensor | None) -> Tensor:
    """Rows (U, w) of tokens at their places (B, S) in the texts: (B, S, w)."""
    return rows if place is None else nn.functional.embedding(place, rows)


def temperatures(depths: int, device: torch.device | None = None) -> Tensor:
    """What each depth divides its scores by (D,): ``T_d = 8^(2 d / (D - 1) - 1)``, from 1/8 to 8.

    A single depth has temperature 1, as the standard attention.
    """
    ends = (-1, 1) if depths > 1 else (0, 0)
    return TEMPERATURE_RANGE ** torch.linspace(*ends, depths, device=device)


class MAWEncoder(NonMAWEncoder):
    """D alternative attentions beside the standard one; V and the output projection are shared.

    Documents take the standard path, queries one of the D depths: one document index serves every
    depth. Depths are ordered from focused (0) to broad (D - 1): depth d divides its scores by
    `temperatures`' T_d, before and after training. Untrained it is the standard attention there,
    plus noise.
    """

    def __init__(self, settings: EncoderSettings) -> None:
        super().__init__(settings)
        if settings.depths < 1:
            raise InputError(f"a MAWEncoder needs at least 1 depth, got {settings.depths}")
        hidden, depths = settings.hidden, settings.depths
        self.depth_query_proj = nn.Linear(hidden, hidden * depths, bias=False)
        self.depth_key_proj = nn.Linear(hidden, hidden * depths, bias=False)
        if self.norm.weight.is_meta:  # numbers come from a file; arithmetic would import a compiler
            return
        self.depths_from_standard()
        generator = torch.Generator().manual_seed(0)
        for projection in (self.depth_query_proj, self.depth_key_proj):
            noise = torch.randn(depths, hidden, hidden, generator=generator) * UNTRAINED_NOISE
            with torch.no_grad():
                projection.weight.add_(noise.flatten(0, 1))

    @torch.no_grad()
    def depths_from_standard(self) -> None:
        """Make every depth the standard attention at its own temperature, as training begins."""
        # transformers takes linspace out of what `with torch.device(...)` governs.
        temperature = temperatures(self.depths, self.norm.weight.device)
        scale = temperature.rsqrt()[:, None, None]
        self.depth_query_proj.weight.copy_((self.query_proj.weight * scale).flatten(0, 1))
        self.depth_key_proj.weight.copy_((self.key_proj.weight * scale).flatten(0, 1))

    @property
    def depths(self) -> int:
        """D, the number of depths."""
        return self.settings.depths

    def _query_and_key(
        self, x: Tensor, mask: Tensor, place: Tensor | None, depth: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        if depth is None:
            return super()._query_and_key(x, mask, place, None)
        if place is None:
            place = torch.arange(mask.numel(), device=mask.device).view(mask.shape)
        # Real tokens alone, those of one depth side by side: one product per depth.
        depths = depth[:, None].expand_as(mask)[mask]  # (T,)
        order = depths.argsort(stable=True)
        used, counts = depths.unique(return_counts=True)
        tokens = x.flatten(0, -2)[place[mask][order]].split(counts.tolist())
        back = torch.zeros_like(place)
        back[mask] = order.argsort()
        found = []
        for projection in (self.depth_query_proj, self.depth_key_proj):
            # unbind, not slices: the gradient of a slice is a zeroed copy of all D blocks.
            blocks = projection.weight.view(self.depths, -1, x.shape[-1]).unbind(0)
            parts = [some @ blocks[d].T for some, d in zip(tokens, used.tolist(), strict=True)]
            rows = torch.cat(parts) if parts else x.new_zeros(1, x.shape[-1])
            found.append(placed(rows, back))
        query, key = found
        return query, key

    def depth_attention(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """The 5D tensor (B, H, S, S, D)."""
        query, key = self.depth_query_proj.weight, self.depth_key_proj.weight
        return depth_attention(self.norm(hidden), mask, query, key, self.heads)

    def depth_inputs(self, ids: Tensor, hidden: Tensor, mask: Tensor) -> Inputs:
        """What `depth_statistics` are computed of; arguments as there."""
        x = self.norm(hidden)
        weights = self.depth_query_proj.weight, self.depth_key_proj.weight
        value = split_heads(self.value_proj(x), self.heads)
        return Inputs(x, mask, *weights, value, self.pooling(ids, mask))

    def depth_statistics(
        self, ids: Tensor, hidden: Tensor, mask: Tensor, exact: bool = False
    ) -> DepthStatistics:
        """State, entropy, focus and embedding of every depth, without the 5D tensor.

        `exact`: see `maw_gym.attention.reference.depth_statistics`.
        """
        inputs = self.depth_inputs(ids, hidden, mask)
        found = depth_statistics(inputs, exact=exact)
        residual = inputs.pooling[:, None] @ hidden  # (B, 1, h)
        attended = self.out_proj(found.embeddings)
        return found._replace(embeddings=nn.functional.normalize(residual + attended, dim=-1))


def mean_content(hidden: Tensor, mask: Tensor) -> Tensor:
    """The observation block `content`: mean hidden states (B, h), of unit length or zero."""
    total = torch.einsum("bs,bsh->bh", mask.to(hidden.dtype), hidden)
    return nn.functional.normalize(total, dim=-1)


def attention_encoder(settings: EncoderSettings) -> NonMAWEncoder:
    """The untrained encoder of a shape."""
    return MAWEncoder(settings) if settings.depths else NonMAWEncoder(settings)
