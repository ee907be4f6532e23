"""A task by the names of its parts: dataset, encoder, device."""

import os
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import torch

from maw_gym.checks import checked_int, shown
from maw_gym.corpora import Collection, load_collection
from maw_gym.corpora.splits import FOLDS
from maw_gym.encoders.embedder import Embedder
from maw_gym.encoders.encoder_files import load_embedder, untrained_embedder
from maw_gym.encoders.text import TextEncoder, WordLlama, text_encoders
from maw_gym.encoders.text.loading import AUTO
from maw_gym.errors import InputError
from maw_gym.files import expanded
from maw_gym.tables.task import RetrievalTask

if TYPE_CHECKING:
    from maw_gym.encoders.training.settings import TrainingSettings

NAMED = ("untrained", "trained")  # encoders that are no files


def resolve_device(name: str) -> torch.device:
    """The device called `name`; "auto" is the GPU where there is one.

    Raises:
        InputError: there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # "meta" can be created, and not be read
    except (RuntimeError, AssertionError, ImportError, TypeError):
        raise InputError(f"device {name!r} is not available here; use 'cpu' or 'auto'") from None
    return device


def load_task(
    dataset: str,
    encoder: str,
    device: str = "auto",
    fold: int = 0,
    folds: int | None = None,
    training: "TrainingSettings | None" = None,
    text_encoder: str = WordLlama.name,
) -> RetrievalTask:
    """The task of these settings; equal settings share one task in a process.

    Args:
        dataset: see `maw_gym.corpora.load_collection`.
        encoder: "untrained", "trained" (trained on the collection at hand at first use, then read
            from the cache), or the path of an encoder file.
        device: "auto", "cpu" or a torch device.
        fold: see `maw_gym.corpora.load_collection`.
        folds: see there.
        training: how a "trained" encoder is trained, its seed and what tells its depths apart
            included; None are the defaults.
        text_encoder: what the encoder stands on, see
            `maw_gym.encoders.text.loading.load_text_encoder`; the file of an encoder has its own.
            With "auto" the untrained encoder over MiniLM, where it is installed, is a candidate for
            the "trained" one.

    Raises:
        InputError: a setting that does not exist.
    """
    fold = checked_int(fold, "fold", 0, FOLDS - 1)
    if not isinstance(dataset, str):
        raise InputError(f"a dataset is named by a text, not by {shown(dataset)}")
    where = resolve_device(device)
    version = None
    if encoder not in NAMED:
        path = expanded(encoder)
        if not os.path.isfile(path):
            raise InputError(
                f"unknown encoder {encoder!r}; give 'untrained', 'trained' or the path of an"
                " encoder.safetensors"
            )
        # A file that was written anew is another encoder.
        status = path.stat()
        version = (status.st_ino, status.st_size, status.st_mtime_ns)
        if text_encoder != WordLlama.name:
            raise InputError(
                f"encoder {encoder!r} has a text encoder of its own; leave out {text_encoder!r}"
            )
    if text_encoder == AUTO and encoder != "trained":
        raise InputError(
            f"text encoder 'auto' is chosen for a trained encoder, not for {encoder!r}; name one"
        )
    # A model that is not there is refused before anything is read.
    names = tuple(text.name for text in text_encoders(text_encoder))
    return _task(dataset, encoder, version, where, fold, folds, training, text_encoder, names)


# Apart from `load_task`, so that arguments by position, by name and by default are the same key.
@cache
def _task(
    dataset: str,
    encoder: str,
    version: tuple[int, int, int] | None,
    device: torch.device,
    fold: int,
    folds: int | None,
    training: "TrainingSettings | None",
    text_encoder: str,
    text_names: tuple[str, ...],
) -> RetrievalTask:
    del version, text_names  # tell one file of that name from the next
    collection = load_collection(dataset, fold, folds)
    texts = text_encoders(text_encoder)
    embedder, provenance = _embedder(collection, encoder, device, training, texts)
    same = (text for text in texts if text.name == embedder.text.name)
    pretrained = next(same, None) if encoder in NAMED else None
    return RetrievalTask(collection, embedder, device, provenance, pretrained)


def _embedder(
    collection: Collection,
    encoder: str,
    device: torch.device,
    training: "TrainingSettings | None",
    texts: Sequence[TextEncoder],
) -> tuple[Embedder, dict[str, Any]]:
    if encoder == "untrained":
        return untrained_embedder(collection.doc_texts, None, texts[0]), {"chosen": "untrained"}
    if encoder == "trained":
        # Imported late: an environment with an untrained encoder needs no training code.
        from maw_gym.encoders.training.selection import trained_embedder

        return trained_embedder(collection, device, training, texts[0], texts[1:])
    embedder, provenance = load_embedder(expanded(encoder))
    return embedder, {"chosen": encoder, "training": provenance}
