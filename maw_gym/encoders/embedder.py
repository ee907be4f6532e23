"""Embedder: a text encoder and an attention encoder together, texts to embeddings in batches."""

import hashlib
import logging
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, replace
from itertools import chain, islice
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from maw_gym.attention.reference import DepthStatistics
from maw_gym.distributed import check_same, from_all, is_first, process, processes
from maw_gym.encoders.maw import EncoderSettings, MAWEncoder, NonMAWEncoder, attention_encoder
from maw_gym.encoders.text import (
    TextEncoder,
    WordLlama,
    length_batches,
    on_device,
    padded,
    portions_of_documents,
    prompt_of,
    tokenized,
)
from maw_gym.errors import InputError, checked_texts, shown
from maw_gym.files import canonical, content_key, fingerprint

log = logging.getLogger(__name__)
QUERY_TOKENS = 64  # longer queries are cut here
DOCUMENT_TOKENS = 256  # longer documents are cut here
BATCH_TOKENS = 8192  # padded tokens encoded at once
PORTION: Final = 8192  # documents of a stream that are read at once
# What the untrained attention over a transformer's states adds, as a share of V.
CONTEXTUAL_OUTPUT = 0.1


def progress_bar(total: int | None, label: str | None) -> Any:
    """Tqdm's bar: after two seconds on a terminal, else a line every 15 seconds."""
    terminal = sys.stderr is not None and sys.stderr.isatty()
    delay, every = (2, 0.1) if terminal else (15, 15)
    silent = label is None or sys.stderr is None or not is_first()
    how = {"delay": delay, "mininterval": every, "leave": False}
    return tqdm(total=total, desc=label, disable=silent, **how)


@dataclass(frozen=True)
class Embedder:
    """Texts to embeddings."""

    text: TextEncoder
    encoder: NonMAWEncoder
    query_tokens: int = QUERY_TOKENS
    document_tokens: int = DOCUMENT_TOKENS

    def __post_init__(self) -> None:
        longest = self.text.positions
        for kind, limit in (("query", self.query_tokens), ("document", self.document_tokens)):
            if longest is not None and limit > longest:
                raise InputError(
                    f"{kind}_tokens {limit} is more than the {longest} tokens that text"
                    f" encoder {self.text.name!r} can read; lower it"
                )
            prompt = prompt_of(self.text, kind)
            if prompt and len(self.text.tokenize([prompt])[0]) >= limit:
                raise InputError(
                    f"{kind}_tokens {limit} leaves no room behind the prompt {prompt!r} of text"
                    f" encoder {self.text.name!r}: all texts would be equal; raise it"
                )

    @property
    def device(self) -> torch.device:
        """Where the encoder lies."""
        return self.encoder.token_weight.device

    @property
    def statistics_tokens(self) -> int:
        """Padded tokens whose statistics are computed at once."""
        return BATCH_TOKENS if self.device.type == "cuda" else BATCH_TOKENS // 4

    @property
    def maw(self) -> MAWEncoder:
        """The encoder, known to have depths."""
        if not isinstance(self.encoder, MAWEncoder):
            raise InputError("this encoder is NON-MAW and has no depths; load a MAW encoder")
        return self.encoder

    def tensors(self) -> dict[str, Tensor]:
        """Everything learned: the encoder's weights, and the text encoder's as ``text.*``."""
        text = {f"text.{name}": value for name, value in self.text.own_weights().items()}
        return dict(self.encoder.state_dict()) | text

    def fingerprint(self) -> str:
        """The sha256 (hex) of all that decides an embedding."""
        content = {
            "tensors": fingerprint(self.tensors()),
            "shape": self.encoder.settings.to_json(),
            "text": self.text.name,
            "query_tokens": self.query_tokens,
            "document_tokens": self.document_tokens,
        }
        return hashlib.sha256(canonical(content).encode()).hexdigest()

    def to(self, device: torch.device | str) -> "Embedder":
        """The same embedder with its encoder moved to `device`."""
        return replace(self, encoder=self.encoder.to(device))

    def query_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of queries, truncated; how many were is logged."""
        return self._ids(texts, self.query_tokens, "queries", "query")

    def document_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of documents, truncated; how many were is logged."""
        return self._ids(texts, self.document_tokens, "documents", "document")

    def _ids(self, texts: Sequence[str], limit: int, what: str, kind: str) -> list[list[int]]:
        ids = tokenized(self.text, checked_texts(texts), kind)
        longer = sum(len(row) > limit for row in ids)
        if longer:
            log.info("%d of %d %s truncated at %d tokens", longer, len(ids), what, limit)
        return [row if len(row) <= limit else self.text.cut(row, limit) for row in ids]

    def encode_documents(self, texts: Sequence[str]) -> Tensor:
        """Embeddings (N, h) of documents, through the standard attention, on the device."""
        return self.encode_ids(self.document_ids(texts))

    def encode_queries(self, texts: Sequence[str], depths: Tensor | None = None) -> Tensor:
        """Embeddings (N, h) of queries through one chosen depth each; None is the standard path."""
        return self.encode_ids(self.query_ids(texts), depths)

    @torch.no_grad()
    def encode_ids(self, ids: list[list[int]], depths: Tensor | None = None) -> Tensor:
        """Embeddings (N, h) of texts given as token ids; see `encode_queries`."""
        if depths is not None:
            _check_depths(depths, len(ids), self.maw.depths)
        result = torch.zeros(len(ids), self.text.width, device=self.device)
        # Launches rule on a GPU, the cache on a CPU.
        tokens = BATCH_TOKENS if self.device.type == "cpu" else 8 * BATCH_TOKENS
        for rows, batch, mask in self.batches(ids, tokens):
            chosen = None if depths is None else depths.to(self.device)[rows]
            result[rows] = self.embed(batch, mask, chosen)
        return result

    def embed(self, ids: Tensor, mask: Tensor, depth: Tensor | None = None) -> Tensor:
        """Embeddings (B, h) of one batch of token ids (B, S), with gradients."""
        place = None
        if self.text.static:
            tokens, place = ids.unique(return_inverse=True)
            hidden = self.text.hidden(tokens)
        else:
            hidden = self.text.hidden(ids, mask)
        return self.encoder.embed(ids, hidden, mask, place, depth)

    @torch.no_grad()
    def query_statistics(
        self, ids: list[list[int]], progress: str | None = None
    ) -> Iterator[tuple[Tensor, DepthStatistics]]:
        """Rows and every depth's statistics of queries, in batches of similar length."""
        for rows, batch, mask in self.batches(ids, self.statistics_tokens, progress):
            hidden = self.text.hidden(batch, mask)
            # Exact, as in a table.
            yield rows, self.maw.depth_statistics(batch, hidden, mask, exact=True)

    def batches(
        self, ids: list[list[int]], batch_tokens: int, progress: str | None = None
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Batches of similar length on the encoder's device: rows (B,), ids (B, S), mask (B, S)."""
        with progress_bar(len(ids), progress) as bar:
            for rows in length_batches([len(row) for row in ids], batch_tokens):
                where = on_device(torch.tensor(rows), self.device)
                yield where, *padded([ids[row] for row in rows], self.device)
                bar.update(len(rows))


def _check_depths(chosen: Tensor, texts: int, depths: int) -> None:
    if not isinstance(chosen, Tensor) or chosen.dtype.is_floating_point or chosen.is_complex():
        raise InputError(f"depths must be a tensor of whole numbers, not {shown(chosen)}")
    if chosen.shape != (texts,):
        raise InputError(f"depths of shape {tuple(chosen.shape)} for {texts} texts; give one each")
    # A negative index would count from the end and pass for another depth.
    wrong = chosen[(chosen < 0) | (chosen >= depths)]
    if len(wrong):
        raise InputError(f"depth {wrong[0].item()} is not one of 0 to {depths - 1}")


def encoded_documents(
    embedder: Embedder,
    doc_ids: Iterable[str],
    texts: Iterable[str],
    dtype: torch.dtype = torch.float32,
    see: Iterable[Callable[[list[str]], object]] = (),
) -> tuple[list[str], Tensor]:
    """Ids, and vectors (N, h) on the CPU, of documents that are read once, as a stream."""
    found_ids: list[str] = []
    # Grown in place, where a list and its concatenation would be there twice.
    vectors = torch.zeros(0, dtype=dtype).numpy().copy()
    first: dict[bytes, int] = {}  # row of the first text of these tokens
    width, count = embedder.text.width, 0
    total = len(doc_ids) if isinstance(doc_ids, Sized) else None
    portions = _portions(doc_ids, texts)
    with progress_bar(total, "documents") as bar:
        while True:  # a round in which each process encodes one portion, and gets all of them
            some = list(islice(portions, processes()))
            own = some[process()][1] if process() < len(some) else []
            found = _encoded(embedder, own, dtype)
            content = content_key({"documents": some}) if processes() > 1 else ""
            check_same("stream of documents", content)
            if not some:
                break
            for one, digests in from_all(found):
                rows = [first.setdefault(digest, count + at) for at, digest in enumerate(digests)]
                start, count = count, count + len(rows)
                vectors.resize((count, width), refcheck=False)
                vectors[start:] = one.numpy()
                # Equal texts of two portions may be a rounding apart, and have to tie.
                vectors[start:] = vectors[rows]
            for ids, read in some:
                found_ids += ids
                for take in see:
                    take(read)
                bar.update(len(ids))
    return found_ids, torch.from_numpy(vectors.reshape(-1, width))


def _portions(
    doc_ids: Iterable[str], texts: Iterable[str]
) -> Iterator[tuple[list[str], list[str]]]:
    """Ids and texts, `PORTION` at a time."""
    for given, what in ((doc_ids, "document ids"), (texts, "texts")):
        if isinstance(given, str) or not isinstance(given, Iterable):
            checked_texts(given, what)
    ids_left, texts_left = iter(doc_ids), iter(texts)
    before = 0
    while True:
        ids = checked_texts(islice(ids_left, PORTION), "document ids")
        some = checked_texts(islice(texts_left, PORTION))
        if len(ids) != len(some):
            raise InputError(
                f"{before + len(ids)} document ids for {before + len(some)} texts; give one each"
            )
        if not some:
            return
        yield ids, some
        before += len(some)


def _encoded(
    embedder: Embedder, texts: list[str], dtype: torch.dtype
) -> tuple[Tensor, list[bytes]]:
    """Vectors (n, h) of texts on the CPU, equal ones encoded once, and digests of their tokens."""
    ids = embedder.document_ids(texts)
    digests = [hashlib.blake2b(array("i", row), digest_size=16).digest() for row in ids]
    different = dict(zip(digests, ids, strict=True))
    place = {digest: row for row, digest in enumerate(different)}
    rows = torch.tensor([place[digest] for digest in digests], dtype=torch.long)
    return embedder.encode_ids(list(different.values())).to(dtype)[rows].cpu(), digests


def encoder_shape(text: TextEncoder, depths: int = 32) -> EncoderSettings:
    """The shape of an encoder over a text encoder, whose width and heads it takes."""
    return EncoderSettings(text.width, text.heads, depths=depths, vocabulary=text.vocabulary)


def untrained_embedder(
    doc_texts: Sequence[str],
    settings: EncoderSettings | None = None,
    text: TextEncoder | None = None,
) -> Embedder:
    """An embedder without any training on a collection's queries.

    Args:
        doc_texts: the collection's documents; a token's pooling weight is log max(idf, 0.5).
        settings: the shape of the encoder; None is 32 depths of the text encoder's width.
        text: what the encoder stands on; None is WordLlama.
    """
    text = text or WordLlama()
    settings = settings or encoder_shape(text)
    encoder = attention_encoder(settings)
    counts = np.zeros(settings.vocabulary, np.int64)
    for ids in portions_of_documents(text, tuple(doc_texts), PORTION):
        found = np.fromiter(chain.from_iterable(map(set, ids)), np.int64)
        counts += np.bincount(found, minlength=settings.vocabulary)
    idf = torch.log((len(doc_texts) + 1) / (torch.from_numpy(counts).float() + 0.5))
    with torch.no_grad():
        encoder.token_weight.copy_(idf.clamp(min=0.5).log())
        if not text.static:
            encoder.out_proj.weight.mul_(CONTEXTUAL_OUTPUT)
    longest = text.positions or DOCUMENT_TOKENS
    return Embedder(text, encoder.eval(), min(QUERY_TOKENS, longest), min(DOCUMENT_TOKENS, longest))
