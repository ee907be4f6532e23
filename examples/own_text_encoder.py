"""A text encoder of one's own: texts to token ids, token ids to vectors.

Run `python examples/own_text_encoder.py [DATASET]`; it prints something like

    words as they are spelled: nDCG@10 0.272
    wordllama: nDCG@10 0.362
"""

import re
import sys
import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

import maw_gym
from maw_gym.encoders.embedder import untrained_embedder


class Spelling:
    """A random vector for each word; see `maw_gym.encoders.text.TextEncoder`.

    Words that differ are orthogonal, nearly: the encoder counts common words, weighted by rarity.
    """

    name = "words as they are spelled"  # part of every cache key: change it with the vectors
    width, heads, vocabulary = 256, 8, 50_000
    positions = None  # texts may have any length
    static = True  # a token's vector depends on the token alone

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.vectors = torch.randn(self.vocabulary, self.width, generator=generator)

    def tokenize(self, texts: Sequence[str]) -> list[list[int]]:
        words = [re.findall(r"\w+", text.lower()) for text in texts]
        return [[zlib.crc32(word.encode()) % self.vocabulary for word in text] for text in words]

    def cut(self, ids: Sequence[int], limit: int) -> list[int]:
        return list(ids[:limit])

    def hidden(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        return self.vectors.to(ids.device)[ids]

    def tokens(self, ids: Sequence[int]) -> list[str]:
        return [f"<{token}>" for token in ids]

    def own_weights(self) -> dict[str, Tensor]:
        return {}  # nothing that could not be made anew


collection = maw_gym.load_collection(sys.argv[1] if len(sys.argv) > 1 else "pydocs")
for text in (Spelling(), None):  # None is WordLlama
    embedder = untrained_embedder(collection.doc_texts, text=text)
    evaluation, _ = maw_gym.RetrievalTask(collection, embedder).evaluate("test")
    print(f"{embedder.text.name}: nDCG@10 {evaluation.mean['nDCG@10']:.3f}")
