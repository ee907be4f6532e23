"""Safetensors files with JSON settings: read without running code, checked before allocation."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from maw_gym.errors import InputError
from maw_gym.files.cache import written_whole


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], kind: str, settings: Mapping[str, Any]
) -> None:
    """Write tensors and settings to `path`, whole or not at all.

    Args:
        path: the file.
        tensors: by name.
        kind: what the file is, for instance "encoder"; checked on reading.
        settings: JSON values.
    """
    content = {"kind": kind, "settings": settings, "sha256": fingerprint(tensors)}
    # One entry: safetensors writes several in an order that changes from process to process.
    metadata = {"maw_gym": json.dumps(content, sort_keys=True)}
    data = save({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, metadata)
    with written_whole(path) as temporary:
        temporary.write_bytes(data)


def read_settings(path: Path, kind: str) -> dict[str, Any]:
    """The settings of a file written by `write_tensors`.

    Raises:
        InputError: there is no such file, it is damaged, or it is not of this kind.
    """
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
    except FileNotFoundError:
        raise InputError(f"no {kind} file {str(path)!r}; give the path of one") from None
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} is not a readable safetensors file: {error}") from None
    try:
        content = json.loads(metadata["maw_gym"])
        found, settings = content["kind"], content["settings"]
    except (KeyError, TypeError, ValueError, RecursionError):
        raise InputError(f"{path} was not written by maw_gym; give another {kind} file") from None
    if found != kind or not isinstance(settings, dict):
        raise InputError(f"{path} holds a {found!r}, not a {kind!r}")
    return settings


def read_tensors(path: Path, shapes: Mapping[str, tuple[int | None, ...]]) -> dict[str, Tensor]:
    """Tensors of a file, after its header has been checked against the shapes expected.

    Args:
        path: a file that `read_settings` has accepted.
        shapes: every tensor's shape; None stands for any size.

    Raises:
        InputError: a tensor is missing, unknown, of another shape, not float32, not finite, or not
            what was written.
    """
    with safe_open(path, "pt") as file:
        names = set(file.keys())
        for name in sorted(names ^ set(shapes)):
            raise InputError(f"{path}: tensor {name!r} is {'unknown' if name in names else 'gone'}")
        for name, shape in shapes.items():
            header = file.get_slice(name)
            found = tuple(header.get_shape())
            fits = len(found) == len(shape) and all(
                size in (None, got) for size, got in zip(shape, found, strict=True)
            )
            if not fits:
                raise InputError(f"{path}: tensor {name!r} has shape {found}, expected {shape}")
            if header.get_dtype() != "F32":
                raise InputError(f"{path}: tensor {name!r} is {header.get_dtype()}, expected F32")
        tensors = {name: file.get_tensor(name) for name in shapes}
        written = json.loads((file.metadata() or {}).get("maw_gym", "{}")).get("sha256")
    for name, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise InputError(f"{path}: tensor {name!r} holds values that are not finite")
    # Files from elsewhere may come without a checksum.
    if written not in (None, fingerprint(tensors)):
        raise InputError(f"{path} is damaged: its checksum is not that of its tensors")
    return tensors


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """The sha256 (hex) of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        if tensor.numel():
            # A number alone, of no dimension, cannot be seen as bytes.
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
