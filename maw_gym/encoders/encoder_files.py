"""Encoders on disk, and the untrained ones that need no file."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from maw_gym.encoders.attention_encoders import EncoderSettings, MAWEncoder, NonMAWEncoder
from maw_gym.encoders.embedder import Embedder
from maw_gym.encoders.text import WordLlama, load_text_encoder
from maw_gym.encoders.token_statistics import idf_token_weights
from maw_gym.errors import InputError
from maw_gym.files.tensor_files import check_tensors, read_tensors, write_tensors


def untrained_embedder(
    doc_texts: Sequence[str], settings: EncoderSettings | None = None
) -> Embedder:
    """An embedder whose only knowledge of a collection is how rare its tokens are.

    Args:
        doc_texts: the collection's documents, for the idf pooling weights.
        settings: shapes; `depths` 0 makes a NON-MAW encoder. None is the default MAW encoder.
    """
    settings = settings or EncoderSettings()
    text = WordLlama()
    encoder = MAWEncoder(settings) if settings.depths else NonMAWEncoder(settings)
    embedder = Embedder(text, encoder.eval())
    with torch.no_grad():
        ids = text.tokenize(doc_texts)
        encoder.token_weight.copy_(idf_token_weights(ids, settings.vocabulary))
    return embedder


def save_embedder(path: Path, embedder: Embedder, provenance: Mapping[str, Any]) -> None:
    """Write an embedder: weights, shapes, and where it came from.

    Args:
        path: the file, by custom ``encoder.safetensors``.
        embedder: what to save. Trained token embeddings travel along, the packaged ones do not.
        provenance: JSON values: collection, training settings, scores.
    """
    settings = {
        "encoder": embedder.encoder.settings.to_json(),
        "text": embedder.text.name,
        "query_tokens": embedder.query_tokens,
        "document_tokens": embedder.document_tokens,
        "trained_embedding": bool(embedder.text.trained_weights()),
        "provenance": dict(provenance),
    }
    write_tensors(path, embedder.tensors(), "encoder", settings)


def load_embedder(path: Path) -> tuple[Embedder, dict[str, Any]]:
    """Read an embedder and its provenance; no code in the file is run.

    Raises:
        InputError: the file is missing, damaged, foreign, or of other shapes than it says.
    """
    settings, tensors = read_tensors(path, "encoder")
    try:
        known = {field.name for field in fields(EncoderSettings)}
        shape = {name: value for name, value in settings["encoder"].items() if name in known}
        encoder_settings = EncoderSettings(**shape)
        text = load_text_encoder(settings["text"])
        limits = settings["query_tokens"], settings["document_tokens"]
        provenance = dict(settings["provenance"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: wrong encoder settings ({error})") from None
    if any(type(limit) is not int or limit < 1 for limit in limits):
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
    if "centroids" in expected:
        expected["centroids"] = (None, encoder_settings.hidden)
    if settings.get("trained_embedding"):
        expected["text.embedding"] = (text.vocabulary, text.width)
    check_tensors(path, tensors, expected)
    if "text.embedding" in tensors:
        text = WordLlama(tensors.pop("text.embedding"))
    if "centroids" in tensors:
        skeleton.centroids = tensors["centroids"]
    skeleton.load_state_dict(tensors, assign=True)
    return Embedder(text, skeleton.eval(), *limits), provenance


def _encoder(settings: EncoderSettings) -> NonMAWEncoder:
    return MAWEncoder(settings) if settings.depths else NonMAWEncoder(settings)
