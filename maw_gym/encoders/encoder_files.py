"""Encoders on disk, and the untrained ones that need no file."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

import torch

from maw_gym import files
from maw_gym.encoders.attention_encoders import MAWEncoder, NonMAWEncoder
from maw_gym.encoders.embedder import DOCUMENT_TOKENS, QUERY_TOKENS, Embedder
from maw_gym.encoders.encoder_settings import EncoderSettings
from maw_gym.encoders.text import TextEncoder, Transformer, WordLlama, load_text_encoder
from maw_gym.encoders.text.loading import MINILM
from maw_gym.encoders.text.stored import StoredTransformer, transformer_settings
from maw_gym.encoders.token_statistics import idf_token_weights
from maw_gym.errors import InputError
from maw_gym.files import check_tensors, expanded

# What the untrained attention over a transformer's states adds, as a share of V.
CONTEXTUAL_OUTPUT = 0.1
TEXT = "text."  # of the names of a text encoder's weights in a file
# Attention takes memory with the square of it: 512 MB for each text of that length.
MOST_TOKENS: Final = 4096


def encoder_shape(text: TextEncoder, depths: int = 32) -> EncoderSettings:
    """The shape of an encoder over a text encoder, whose width and heads it takes.

    Args:
        text: gives the hidden states.
        depths: D; 0 makes a NON-MAW encoder.
    """
    return EncoderSettings(text.width, text.heads, depths=depths, vocabulary=text.vocabulary)


def untrained_embedder(
    doc_texts: Sequence[str],
    settings: EncoderSettings | None = None,
    text: TextEncoder | None = None,
) -> Embedder:
    """An embedder without any training on a collection's queries.

    It knows how rare the collection's tokens are: rare ones weigh more in the pooling. Over static
    token embeddings the untrained attention adds all of V; the states of a transformer are in
    context already, and a tenth of V is enough to tell the depths apart.

    Args:
        doc_texts: the collection's documents, for the idf pooling weights.
        settings: shapes; `depths` 0 makes a NON-MAW encoder. None is the default MAW encoder.
        text: the text encoder; None is WordLlama.
    """
    text = text or WordLlama()
    settings = settings or encoder_shape(text)
    encoder = _encoder(settings)
    longest = text.positions or DOCUMENT_TOKENS
    embedder = Embedder(
        text, encoder.eval(), min(QUERY_TOKENS, longest), min(DOCUMENT_TOKENS, longest)
    )
    with torch.no_grad():
        ids = text.tokenize(doc_texts)
        encoder.token_weight.copy_(idf_token_weights(ids, settings.vocabulary))
        if not text.static:
            encoder.out_proj.weight.mul_(CONTEXTUAL_OUTPUT)
    return embedder


def save_embedder(path: Path, embedder: Embedder, provenance: Mapping[str, Any]) -> None:
    """Write an embedder: weights, shapes, and where it came from.

    Args:
        path: the file, by custom ``encoder.safetensors``.
        embedder: what to save. The weights of its text encoder travel along, except those that an
            installed package has.
        provenance: JSON values: collection, training settings, scores.
    """
    settings = {
        "encoder": embedder.encoder.settings.to_json(),
        "text": embedder.text.name,
        "query_tokens": embedder.query_tokens,
        "document_tokens": embedder.document_tokens,
        "trained_embedding": "embedding" in embedder.text.own_weights(),
        "provenance": dict(provenance),
    }
    if isinstance(embedder.text, Transformer) and embedder.text.own_weights():
        settings["transformer"] = transformer_settings(embedder.text)
    files.write(path, embedder.tensors(), "encoder", settings)


def load_embedder(path: Path) -> tuple[Embedder, dict[str, Any]]:
    """Read an embedder and its provenance; no code in the file is run, nothing is downloaded.

    Raises:
        InputError: the file is missing, damaged, foreign, or of other shapes than it says; or it
            needs a package that is not installed.
    """
    path = expanded(path)
    settings, tensors = files.read(path, "encoder")
    try:
        known = {field.name for field in fields(EncoderSettings)}
        shape = {name: value for name, value in settings["encoder"].items() if name in known}
        encoder_settings = EncoderSettings(**shape)
        limits = settings["query_tokens"], settings["document_tokens"]
        provenance = dict(settings["provenance"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: wrong encoder settings ({error})") from None
    text = _stored_text(path, settings)
    if any(type(limit) is not int or not 1 <= limit <= MOST_TOKENS for limit in limits):
        raise InputError(f"{path}: texts cannot be cut at {limits[0]!r} and {limits[1]!r} tokens")
    if encoder_settings.hidden != text.width or encoder_settings.vocabulary != text.vocabulary:
        raise InputError(
            f"{path}: hidden width {encoder_settings.hidden} and vocabulary"
            f" {encoder_settings.vocabulary} do not fit {text.name}'s {text.width} and"
            f" {text.vocabulary}"
        )
    # Shapes come from a skeleton without memory: a header may claim any size.
    try:
        with torch.device("meta"):
            skeleton = _encoder(encoder_settings)
    except (RuntimeError, OverflowError, TypeError) as error:
        problem = str(error).splitlines()[0]
        raise InputError(f"{path}: impossible encoder settings ({problem})") from None
    expected: dict[str, tuple[int | None, ...]] = {
        name: tuple(tensor.shape) for name, tensor in skeleton.state_dict().items()
    }
    if isinstance(text, StoredTransformer):
        expected |= {f"{TEXT}{name}": size for name, size in text.shapes().items()}
    elif settings.get("trained_embedding"):
        expected[f"{TEXT}embedding"] = (text.vocabulary, text.width)
    check_tensors(path, tensors, expected)
    weights = {
        name.removeprefix(TEXT): tensors.pop(name) for name in expected if name.startswith(TEXT)
    }
    skeleton.load_state_dict(tensors, assign=True)
    try:
        if isinstance(text, StoredTransformer):
            text = text.load(weights)
        elif weights:
            text = WordLlama(weights["embedding"])
        return Embedder(text, skeleton.eval(), *limits), provenance
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


def _stored_text(path: Path, settings: Mapping[str, Any]) -> TextEncoder | StoredTransformer:
    """The text encoder of an encoder file; a transformer in the file is yet without weights."""
    try:
        name = settings["text"]
        if "transformer" in settings:
            return StoredTransformer(name, settings["transformer"])
        packaged = MINILM if name.startswith(f"{MINILM}-") else name
        if packaged not in (WordLlama.name, MINILM):
            raise ValueError(f"unknown text encoder {name!r}")
        text = load_text_encoder(packaged)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: wrong encoder settings ({error})") from None
    if text.name != name:
        raise InputError(
            f"{path} stands on text encoder {name!r}, and {text.name!r} is installed; install the"
            " version that it was trained with"
        )
    return text


def _encoder(settings: EncoderSettings) -> NonMAWEncoder:
    return MAWEncoder(settings) if settings.depths else NonMAWEncoder(settings)
