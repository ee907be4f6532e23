"""Text to token ids to hidden states.

The encoders read hidden states and never text, so any model that turns texts into one vector per
token fits behind the `TextEncoder` protocol; here it is WordLlama's static token embeddings, which
ship inside the `wordllama` package (Miller 2024, https://github.com/dleemiller/WordLlama).
"""

import importlib.resources
from collections.abc import Sequence
from functools import cache
from typing import Protocol

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from maw_gym.corpora.records import encodable
from maw_gym.errors import InputError


class TextEncoder(Protocol):
    """What the rest of the package asks of a text model.

    Attributes:
        name: identifies the weights; part of every cache key.
        width: h, the width of a hidden state.
        vocabulary: number of token ids.
        static: whether a token's hidden state depends on nothing but its id.
    """

    name: str
    width: int
    vocabulary: int
    static: bool

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text, without special tokens and not truncated."""
        ...

    def hidden(self, ids: Tensor) -> Tensor:
        """Hidden states (..., h) float32 of token ids (...) int64, on the ids' device."""
        ...

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """Readable form of each token id."""
        ...

    def trained_weights(self) -> dict[str, Tensor]:
        """Weights that differ from the packaged ones, to be saved with an encoder."""
        ...


class WordLlama:
    """32,000 x 256 static token embeddings, scaled to unit variance.

    Args:
        embedding: replaces the packaged table, for instance by a trained one (32000, 256).
    """

    name = "wordllama"
    static = True

    def __init__(self, embedding: Tensor | None = None) -> None:
        self.tokenizer, packaged = _packaged_wordllama()
        self.trained = embedding is not None
        self.embedding = packaged if embedding is None else embedding
        self.vocabulary, self.width = self.embedding.shape

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of each text; a text all in upper case is folded (the tokenizer tells case)."""
        # White space is folded too: line breaks would be tokens of their own.
        clean = [
            encodable(" ".join((text.lower() if text.isupper() else text).split()))
            for text in texts
        ]
        return [
            encoding.ids
            for encoding in self.tokenizer.encode_batch_fast(clean, add_special_tokens=False)
        ]

    def hidden(self, ids: Tensor) -> Tensor:
        """Hidden states (..., 256) of the token ids (...)."""
        if self.embedding.device != ids.device:
            self.embedding = self.embedding.to(ids.device)
        return self.embedding[ids]

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """Readable form of each token id; a word's first piece carries SentencePiece's ▁."""
        return [self.tokenizer.id_to_token(token) or f"<{token}>" for token in ids]

    def trained_weights(self) -> dict[str, Tensor]:
        """The table where it replaces the packaged one, else nothing."""
        return {"embedding": self.embedding} if self.trained else {}


@cache
def _packaged_wordllama() -> tuple[Tokenizer, Tensor]:
    # WordLlama.load() of 0.4.0.post1 misses its own bundled tokenizer and asks a hub for it.
    package = importlib.resources.files("wordllama")
    weights = package / "weights" / "l2_supercat_256.safetensors"
    vocabulary = package / "tokenizers" / "l2_supercat_tokenizer_config.json"
    with importlib.resources.as_file(weights) as path:
        table = load_file(path)["embedding.weight"].float()
    tokenizer = Tokenizer.from_str(vocabulary.read_text(encoding="utf-8"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer, table / table.std()


def load_text_encoder(name: str) -> WordLlama:
    """The text encoder called `name`.

    Raises:
        InputError: there is none of that name.
    """
    if name != WordLlama.name:
        raise InputError(f"unknown text encoder {name!r}; this version has {WordLlama.name!r}")
    return WordLlama()


def padded(ids: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Ids (B, S) int64, padded with 0, and mask (B, S) bool, True on real tokens; S >= 1."""
    longest = max((len(row) for row in ids), default=0)
    batch = torch.zeros(len(ids), max(longest, 1), dtype=torch.long)
    lengths = torch.tensor([len(row) for row in ids], dtype=torch.long)
    mask = torch.arange(batch.shape[1]) < lengths[:, None]
    batch[mask] = torch.tensor([token for row in ids for token in row], dtype=torch.long)
    return batch, mask
