"""WordLlama: static token embeddings that ship inside a package.

Source: Miller 2024, https://github.com/dleemiller/WordLlama.
"""

import importlib.resources
from collections.abc import Sequence
from functools import cache

from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from maw_gym.corpora.collection import encodable


class WordLlama:
    """32,000 x 256 static token embeddings, scaled to unit variance; see `TextEncoder`.

    Args:
        embedding: replaces the packaged table, for instance by a trained one (32000, 256).
    """

    name = "wordllama"
    static = True
    heads = 8
    positions: int | None = None

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

    def cut(self, ids: Sequence[int], limit: int) -> list[int]:
        """The first `limit` token ids."""
        return list(ids[:limit])

    def hidden(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Hidden states (..., 256) of the token ids (...)."""
        del mask
        if self.embedding.device != ids.device:
            self.embedding = self.embedding.to(ids.device)
        return self.embedding[ids]

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """Readable form of each token id; a word's first piece carries SentencePiece's ▁."""
        return [self.tokenizer.id_to_token(token) or f"<{token}>" for token in ids]

    def own_weights(self) -> dict[str, Tensor]:
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
