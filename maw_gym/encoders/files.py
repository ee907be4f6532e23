"""Encoders on disk, and what is computed once of a collection: document vectors, hidden states."""

import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from maw_gym import files
from maw_gym.checkpoints import UNUSABLE
from maw_gym.corpora import Collection
from maw_gym.distributed import check_same, processes
from maw_gym.encoders.embedder import Embedder, encoded_documents, progress_bar
from maw_gym.encoders.maw import EncoderSettings, attention_encoder
from maw_gym.encoders.text import (
    MINILM,
    WORDLLAMA,
    TextEncoder,
    WordLlama,
    length_batches,
    load_text_encoder,
    padded,
)
from maw_gym.encoders.transformer import Transformer, free_memory, load_transformer
from maw_gym.errors import DamagedFileError, InputError, checked_int, expanded, first_line
from maw_gym.files import MANIFEST, cache_home, cached, check_tensors, content_key

log = logging.getLogger(__name__)

TABLE: Final = "text.embedding"  # of WordLlama, where it was trained along
# Attention takes memory with the square of it: 512 MB for each text of that length.
MOST_TOKENS: Final = 4096
LIMITS: Final = ("query_tokens", "document_tokens")
DOCUMENTS_FORMAT: Final = 1  # raise when the meaning of the numbers changes
QUERY_SIDE: Final = ("depth_query_proj.weight", "depth_key_proj.weight")
STATES_FORMAT: Final = 2
STATES_TOKENS: Final = 8192  # padded tokens whose states are computed at once
LARGEST_STATES: Final = 2**34  # bytes; what would take more is computed whenever it is needed

Ids = Sequence[Sequence[int]]


def save_embedder(path: Path, embedder: Embedder, provenance: Mapping[str, Any]) -> None:
    """Write an embedder: weights, shapes, and where it came from.

    A transformer that no installed package has is written beside it, to a folder
    ``transformer-KEY`` as `save_pretrained` makes it, with a manifest.
    """
    text, tensors = embedder.text, embedder.tensors()
    settings = {
        "encoder": embedder.encoder.settings.to_json(),
        "text": text.name,
        "query_tokens": embedder.query_tokens,
        "document_tokens": embedder.document_tokens,
        "provenance": dict(provenance),
    }
    if isinstance(text, Transformer) and text.own_weights():
        # Named by its content: encoders in one folder share it, and none replaces another.
        key = content_key({"text": text.name, "weights": files.fingerprint(text.own_weights())})
        folder = path.with_name(f"transformer-{key}")
        with files.written_folder(folder, MANIFEST) as temporary:
            text.save(temporary)
            files.write_manifest(temporary, "transformer", {"tuned": text.tuned})
        settings["transformer"] = folder.name
        tensors = dict(embedder.encoder.state_dict())
    files.write(path, tensors, "encoder", settings)


def load_embedder(path: Path) -> tuple[Embedder, dict[str, Any]]:
    """Read an embedder and its provenance; no code in the files is run, nothing is downloaded."""
    path = expanded(path)
    settings, tensors = files.read(path, "encoder")
    try:
        known = {field.name for field in fields(EncoderSettings)}
        given = {name: value for name, value in settings["encoder"].items() if name in known}
        limits = [checked_int(settings[name], name, 1, MOST_TOKENS) for name in LIMITS]
        provenance = dict(settings["provenance"])
        shape = EncoderSettings(**given)
        with torch.device("meta"):  # a skeleton without memory: a header may claim any size
            encoder = attention_encoder(shape)
    except UNUSABLE as error:
        raise InputError(f"{path}: wrong encoder settings ({first_line(error)})") from None
    expected = {name: tuple(tensor.shape) for name, tensor in encoder.state_dict().items()}
    if TABLE in tensors:
        expected[TABLE] = (shape.vocabulary, shape.hidden)
    check_tensors(path, tensors, expected)
    trained = tensors.pop(TABLE, None)
    encoder.load_state_dict(tensors, assign=True)
    try:
        text = _stored_text(path, settings, trained)
        if (shape.hidden, shape.vocabulary) != (text.width, text.vocabulary):
            raise InputError(
                f"hidden width {shape.hidden} and vocabulary {shape.vocabulary} do not fit"
                f" {text.name}'s {text.width} and {text.vocabulary}"
            )
        return Embedder(text, encoder.eval(), *limits), provenance
    except InputError as error:
        raise type(error)(f"{path}: {error}") from None


def _stored_text(path: Path, settings: Mapping[str, Any], trained: Tensor | None) -> TextEncoder:
    """The text encoder that an encoder file names: in a package, or in a folder beside it."""
    name, folder = settings.get("text"), settings.get("transformer")
    if folder is not None:
        try:
            place = path.with_name(folder)
            about, names = files.read_manifest(place, "transformer")
            extra = {file.name for file in place.iterdir()} - {MANIFEST, *names}
            tuned = bool(about["tuned"])
        except (InputError, LookupError, TypeError, ValueError, AttributeError) as problem:
            raise DamagedFileError(f"no text encoder {folder!r} beside it ({problem})") from None
        if extra:  # transformers would take it up
            raise DamagedFileError(
                f"text encoder {folder!r} beside it has a file too many, {extra}"
            )
        text = load_transformer(str(name), place)
        text.tuned = tuned
        return text
    if name == WORDLLAMA:
        return WordLlama(trained)
    if not isinstance(name, str) or not name.startswith(f"{MINILM}-") or trained is not None:
        raise InputError(f"unknown text encoder {name!r}")
    packaged = load_text_encoder(MINILM)
    if packaged.name != name:
        raise InputError(
            f"it stands on text encoder {name!r}, and {packaged.name!r} is installed; install the"
            " version that it was trained with"
        )
    return packaged


def document_embeddings(collection: Collection, embedder: Embedder) -> Tensor:
    """Embeddings (N, h) of a collection's documents through the standard attention, cached.

    They do not depend on the depths: encoders that share the standard attention share the file.
    """
    tensors = {
        name: tensor for name, tensor in embedder.tensors().items() if name not in QUERY_SIDE
    }
    key = content_key(
        {
            "format": DOCUMENTS_FORMAT,
            "collection": collection.provenance["content"],
            "text": embedder.text.name,
            "tensors": files.fingerprint(tensors),
            "heads": embedder.encoder.heads,
            "document_tokens": embedder.document_tokens,
            "device": embedder.device.type,  # devices round differently
        }
    )
    shape = {"embeddings": (len(collection.doc_ids), embedder.text.width)}

    def load(path: Path) -> Tensor:
        tensors = files.read(path, "documents").tensors
        check_tensors(path, tensors, shape)
        return tensors["embeddings"]

    # States are cached by one process; several are quicker without, each with its own share.
    knowing = with_document_states(embedder, collection) if processes() == 1 else embedder
    check_same("collection", collection.provenance["content"])
    found = cached(
        cache_home() / "documents" / f"{key}.safetensors",
        lambda: encoded_documents(knowing, collection.doc_ids, collection.doc_texts)[1],
        lambda path, found: files.write(path, {"embeddings": found}, "documents", {}),
        load,
        together=True,
    )
    return found.to(embedder.device)


@dataclass(eq=False)
class StoredStates:
    """Hidden states of some texts in one cached file, computed at the first look at one of them."""

    text: Transformer  # frozen, which looks nothing up itself
    about: Mapping[str, Any]  # which texts these are: part of the file's key
    ids: Callable[[], Ids]  # the texts' token ids, called where there is no file
    device: torch.device
    label: str

    def find(self, ids: NDArray[np.int64]) -> Tensor | None:
        """States (n, h) of a text's n token ids, or None where the text is not known."""
        return self._states.get(_digest(ids))

    @cached_property
    def _states(self) -> Mapping[bytes, Tensor]:
        """States (n, h) float16 of each text, by the digest of its ids."""
        key = content_key(
            {
                "format": STATES_FORMAT,
                "text": self.text.name,
                "weights": files.fingerprint(self.text.own_weights()),
                "device": self.device.type,
                "about": self.about,
            }
        )
        path = cache_home() / "states" / f"{key}.safetensors"
        if not path.exists():
            size = 2 * self.text.width * sum(map(len, self._different()))
            # The file is made in memory.
            if size > min(LARGEST_STATES, free_memory(torch.device("cpu")) / 4):
                log.info("%s would take %d MB and are not cached", self.label, size >> 20)
                return {}
        save = partial(files.write, kind="hidden states", settings={})
        return cached(path, self._build, save, self._load)

    def _different(self) -> list[Sequence[int]]:
        """The texts with tokens, each once, the shortest first."""
        return sorted({_digest(row): row for row in self.ids() if len(row)}.values(), key=len)

    def _load(self, path: Path) -> dict[bytes, Tensor]:
        tensors = files.read(path, "hidden states").tensors
        try:
            states, digests = tensors["states"], tensors["digests"].numpy()
            parts = states.split(tensors["lengths"].tolist())
            if states.dtype != torch.float16 or states.shape[1] != self.text.width:
                raise ValueError(f"{states.dtype} of shape {tuple(states.shape)}")
            return dict(zip((digest.tobytes() for digest in digests), parts, strict=True))
        except (LookupError, RuntimeError, TypeError, ValueError) as error:
            raise DamagedFileError(f"{path} does not hold hidden states ({error})") from None

    @torch.no_grad()
    def _build(self) -> dict[str, Tensor]:
        texts = self._different()
        lengths = torch.tensor([len(text) for text in texts], dtype=torch.long)
        parts = [torch.empty(0, self.text.width, dtype=torch.float16)]
        with progress_bar(int(lengths.sum()), f"{self.label}, in tokens") as bar:
            for batch in length_batches(lengths.tolist(), STATES_TOKENS):
                ids, mask = padded([texts[row] for row in batch], self.device)
                parts.append(self.text.hidden(ids, mask)[mask].half().cpu())
                bar.update(len(parts[-1]))
        digests = np.frombuffer(b"".join(map(_digest, texts)), np.uint8).reshape(-1, 16)
        return {"states": torch.cat(parts), "lengths": lengths, "digests": torch.tensor(digests)}


def _digest(ids: Sequence[int] | NDArray[np.int64]) -> bytes:
    return hashlib.blake2b(np.asarray(ids, np.int64).tobytes(), digest_size=16).digest()


def with_query_states(embedder: Embedder, collection: Collection) -> Embedder:
    """The same embedder, which has the states of all queries of a collection in the cache."""
    texts = [query for split in collection.splits.values() for query in split.texts]
    ids = partial(embedder.query_ids, texts)
    return with_token_states(embedder, collection, "queries", embedder.query_tokens, ids)


def with_document_states(embedder: Embedder, collection: Collection) -> Embedder:
    """The same embedder, which has the states of a collection's documents in the cache.

    A transformer that was trained here reads documents once, for their index, and caches none.
    """
    if isinstance(embedder.text, Transformer) and embedder.text.tuned:
        return embedder
    ids = partial(embedder.document_ids, collection.doc_texts)
    return with_token_states(embedder, collection, "documents", embedder.document_tokens, ids)


def with_token_states(
    embedder: Embedder, collection: Collection, kind: str, limit: int, ids: Callable[[], Ids]
) -> Embedder:
    """The same embedder, which has the states of some texts, of `limit` tokens, in the cache.

    An embedder of static token embeddings, or of weights in training, comes back as it is.
    """
    text = embedder.text
    if not isinstance(text, Transformer) or text.trained:
        return embedder
    about = {"texts": kind, "tokens": limit, "collection": collection.provenance["content"]}
    states = StoredStates(text.knowing(), about, ids, embedder.device, f"hidden states of {kind}")
    return replace(embedder, text=text.knowing(*text.states, states.find))
