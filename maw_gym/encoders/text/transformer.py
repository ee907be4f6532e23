"""Transformer: the last hidden states of a pretrained model, frozen or trained along.

transformers itself is imported by `maw_gym.encoders.text.library` alone, on first use.
"""

import copy
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from maw_gym.corpora.collection import encodable

# Numbers kept for the backward pass, per token, layer and unit of width, by kind of attention:
# measured on MiniLM, and on DeBERTa, whose attention keeps most.
KEPT_NUMBERS = {"sdpa": 24, "eager": 48}
BROADCAST_TOKENS = 256  # of the longest texts whose masks are given as (B, 1, 1, S)


class TokenStates(Protocol):
    """Hidden states of some texts that were computed before."""

    def find(self, ids: NDArray[np.int64]) -> NDArray[np.float16] | None:
        """States (n, h) of a text's n token ids, or None where the text is not known."""
        ...


class Transformer:
    """A pretrained transformer behind the `TextEncoder` protocol.

    Args:
        name: what cache keys and messages call it.
        model: of `transformers.AutoModel`; is put into eval mode, so that training has no dropout
            and can be resumed exactly.
        tokenizer: the model's own.
        positions: tokens of the longest text; None is any length.
        pad: the tokenizer's padding id.
        packaged: whether an installed package has these very weights, so that they need not be
            saved.
        tuned: whether they were trained here, on the pairs of a collection.
    """

    static = False

    def __init__(
        self,
        name: str,
        model: Any,
        tokenizer: Tokenizer,
        positions: int | None,
        pad: int = 0,
        packaged: bool = False,
        tuned: bool = False,
    ) -> None:
        self.name = name
        self.model: nn.Module = model.eval().requires_grad_(False)
        self.config = model.config
        self.tokenizer = tokenizer
        self.positions = positions
        self.pad = pad
        self.packaged = packaged
        self.tuned = tuned
        self.recompute = False
        self._broadcast: bool | None = None
        self.states: tuple[TokenStates, ...] = ()
        self.width = int(self.config.hidden_size)
        self.heads = int(self.config.num_attention_heads)
        self.vocabulary = int(model.get_input_embeddings().num_embeddings)
        tokenizer.no_truncation()
        tokenizer.no_padding()
        special = tokenizer.encode("a").special_tokens_mask
        self._opening = special.index(0) if 0 in special else 0
        self._closing = special[::-1].index(0) if 0 in special else 0

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text between the tokenizer's special tokens; empty texts have none."""
        few = self._opening + self._closing
        encodings = self.tokenizer.encode_batch_fast([encodable(text) for text in texts])
        return [encoding.ids if len(encoding) > few else [] for encoding in encodings]

    def cut(self, ids: Sequence[int], limit: int) -> list[int]:
        """The first `limit` token ids, of which the last ones are the closing special tokens."""
        if len(ids) <= limit:
            return list(ids)
        closing = list(ids[len(ids) - self._closing :])[:limit]
        return [*ids[: limit - len(closing)], *closing]

    def hidden(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Last hidden states (B, S, h) float32 of the token ids (B, S); see `TextEncoder`."""
        mask = torch.ones_like(ids, dtype=torch.bool) if mask is None else mask
        known = self._known(ids, mask) if self.states else None
        if known is not None:
            return known
        # Attention over no token at all is not a number.
        attended = mask.clone()
        attended[:, 0] = True
        given = ids.masked_fill(~attended, self.pad)
        training = self.trained and torch.is_grad_enabled()
        self.model.to(ids.device)
        states: Tensor
        with torch.autocast("cuda", torch.bfloat16, enabled=training and ids.is_cuda):
            if training and self.recompute:
                states = checkpoint(self._run, given, attended, use_reentrant=False)
            else:
                states = self._run(given, attended)
        return states.float()

    def _known(self, ids: Tensor, mask: Tensor) -> Tensor | None:
        """States (B, S, h) from `states`, or None where one of the texts is in none of them."""
        result = np.zeros((*ids.shape, self.width), np.float16)
        lengths = mask.sum(1).tolist()
        for row, (text, length) in enumerate(zip(ids.cpu().numpy(), lengths, strict=True)):
            found = (states.find(text[:length]) for states in self.states)
            if length:
                known = next((one for one in found if one is not None), None)
                if known is None:
                    return None
                result[row, :length] = known
        return torch.from_numpy(result).to(ids.device).float()

    def _run(self, ids: Tensor, mask: Tensor) -> Tensor:
        wide = prefers_broadcast_masks(ids) and self.takes_broadcast_masks(ids.device)
        return self._states_under(ids, mask[:, None, None] if wide else mask.long())

    def _states_under(self, ids: Tensor, mask: Tensor) -> Tensor:
        found: Tensor = self.model(input_ids=ids, attention_mask=mask).last_hidden_state
        return found

    @torch.no_grad()
    def takes_broadcast_masks(self, device: torch.device) -> bool:
        """Whether a mask (B, 1, 1, S) means to the model what (B, S) does, up to 256 tokens.

        It does not where a layer looks at some neighbours alone, or adds masks to its scores.
        """
        if self._broadcast is None:
            length = min(BROADCAST_TOKENS, self.positions or BROADCAST_TOKENS)
            ids = torch.arange(2 * length, device=device).view(2, length) % self.vocabulary
            mask = torch.ones_like(ids, dtype=torch.bool)
            mask[1, length // 2 :] = False
            masks = mask.long(), mask[:, None, None]
            try:
                with torch.autocast(device.type, enabled=False):
                    one, other = (self._states_under(ids, given)[mask] for given in masks)
                self._broadcast = torch.allclose(one, other, atol=1e-5)
            except torch.OutOfMemoryError:
                raise
            except Exception:  # whatever a model says of a mask that it does not know
                self._broadcast = False
        return self._broadcast

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """The tokenizer's own form of each token id."""
        return [self.tokenizer.id_to_token(token) or f"<{token}>" for token in ids]

    @property
    def trained(self) -> bool:
        """Whether the weights take gradients."""
        return next(self.model.parameters()).requires_grad

    def weights(self) -> dict[str, Tensor]:
        """All weights, tied ones once."""
        return model_weights(self.model)

    def own_weights(self) -> dict[str, Tensor]:
        """All weights, or none where an installed package has them."""
        return {} if self.packaged else self.weights()

    def trainable(self, tokens: int, device: torch.device) -> "Transformer":
        """A copy whose weights take gradients.

        Args:
            tokens: of one training step. Where what they leave for the backward pass would take
                more than half of the free memory, it is computed again instead.
            device: where it is trained.
        """
        text = copy.copy(self)
        text.states, text.packaged, text.tuned = (), False, True
        text.model = copy.deepcopy(self.model).to(device).requires_grad_(True)
        layers = int(self.config.num_hidden_layers)
        kind = "sdpa" if self.config._attn_implementation == "sdpa" else "eager"
        size = 4 if device.type == "cpu" else 2  # bytes; on a GPU most numbers are bfloat16
        needed = size * KEPT_NUMBERS[kind] * self.width * layers * tokens
        text.recompute = needed > free_memory(device) / 2
        return text

    def knowing(self, *states: TokenStates) -> "Transformer":
        """The same text encoder, which looks states up before it computes them."""
        text = copy.copy(self)
        text.states = states
        return text


def prefers_broadcast_masks(ids: Tensor) -> bool:
    """Whether masks (B, S) of this batch would be slow, and it is short enough for the others.

    Of a mask (B, S) transformers asks whether it is all True, for which a GPU is waited for.
    """
    return ids.is_cuda and ids.shape[1] <= BROADCAST_TOKENS


def model_weights(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and floating-point buffers that a model saves, tied ones once."""
    saved = set(model.state_dict())
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: t for name, t in named if name in saved and t.is_floating_point()}


def free_memory(device: torch.device) -> int:
    """Bytes that can be had on a device now."""
    if device.type == "cuda":
        # What torch holds and does not use is free too.
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0]) + unused
    try:
        # What the file cache gives back counts: SC_AVPHYS_PAGES leaves it out.
        entries = Path("/proc/meminfo").read_text().splitlines()
        (kilobytes,) = (line.split()[1] for line in entries if line.startswith("MemAvailable:"))
        return int(kilobytes) * 1024
    except (OSError, ValueError):
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
