"""Safetensors files with JSON settings under one checksum: read without running code.

The entry ``maw_gym`` of a file's metadata is JSON: ``format``, ``kind``, ``settings`` and
``checksum``, the sha256 of the other three and of the names, types, shapes and values of all
tensors. So one flipped bit anywhere is noticed, or was in white space.
"""

import hashlib
import json
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from maw_gym.errors import DamagedFileError, InputError
from maw_gym.files.cache import canonical, written_whole

FORMAT: Final = 1  # raise when the checksum is made in another way
OURS: Final = "maw_gym"


class TensorFile(NamedTuple):
    """What a file holds.

    Attributes:
        settings: JSON values.
        tensors: by name, memory-mapped: they take memory where they are looked at.
    """

    settings: dict[str, Any]
    tensors: dict[str, Tensor]


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], kind: str, settings: Mapping[str, Any]
) -> None:
    """Write tensors and settings to `path`, whole or not at all.

    Args:
        path: the file.
        tensors: by name.
        kind: what the file is, for instance "encoder"; checked on reading.
        settings: JSON values.

    Raises:
        InputError: the file cannot be written.
    """
    # As they will be read: tuples are lists in JSON, and all names are texts.
    plain = json.loads(json.dumps(settings))
    content = {"format": FORMAT, "kind": kind, "settings": plain}
    content["checksum"] = _checksum(content, tensors)
    # One entry: safetensors writes several in an order that changes from process to process.
    metadata = {OURS: canonical(content)}
    data = save({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, metadata)
    with written_whole(path) as temporary:
        temporary.write_bytes(data)


def read_tensors(path: Path, kind: str) -> TensorFile:
    """What a file written by `write_tensors` holds, after its checksum was checked.

    Files of earlier versions, whose checksum was that of the tensors alone, and files without any
    are read too.

    Raises:
        DamagedFileError: the content is not what was written, or was not written by maw_gym.
        InputError: there is no such file, it cannot be read, or it is of another kind or a newer
            version.
    """
    check_readable(path, f"{kind} file")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise DamagedFileError(f"{path} is not a readable safetensors file: {error}") from None
    except (OSError, RuntimeError, MemoryError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} cannot be read: {reason}") from None
    try:
        content = json.loads(metadata[OURS])
        of_kind, settings = content["kind"], content["settings"]
    except (KeyError, TypeError, ValueError, RecursionError):
        raise DamagedFileError(
            f"{path} was not written by maw_gym; give another {kind} file"
        ) from None
    if not isinstance(settings, dict):
        raise DamagedFileError(f"{path} has no settings; give another {kind} file")
    _check(path, content, tensors)
    if of_kind != kind:
        raise InputError(f"{path} holds a {of_kind!r}, not a {kind!r}")
    return TensorFile(settings, tensors)


def check_tensors(
    path: Path, tensors: Mapping[str, Tensor], shapes: Mapping[str, tuple[int | None, ...]]
) -> None:
    """Compare the tensors of a file with those that its settings promise.

    Args:
        path: the file, for messages.
        tensors: what it holds.
        shapes: every tensor's shape; None stands for any size.

    Raises:
        DamagedFileError: a tensor is missing, unknown, of another shape or type, or not finite.
    """
    for name in sorted(set(tensors) ^ set(shapes)):
        raise DamagedFileError(
            f"{path}: tensor {name!r} is {'unknown' if name in tensors else 'gone'}"
        )
    for name, shape in shapes.items():
        tensor = tensors[name]
        size = tuple(tensor.shape)
        fits = len(size) == len(shape) and all(
            wanted in (None, given) for wanted, given in zip(shape, size, strict=True)
        )
        if not fits:
            raise DamagedFileError(f"{path}: tensor {name!r} has shape {size}, expected {shape}")
        if tensor.dtype != torch.float32:
            raise DamagedFileError(
                f"{path}: tensor {name!r} is {tensor.dtype}, expected torch.float32"
            )
    for name in shapes:
        if not tensors[name].isfinite().all():
            raise DamagedFileError(f"{path}: tensor {name!r} holds values that are not finite")


def fingerprint(tensors: Mapping[str, Tensor]) -> str:
    """The sha256 (hex) of names, types, shapes and values."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        if tensor.numel():
            # A number alone, of no dimension, cannot be seen as bytes.
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def check_readable(path: Path, what: str, largest: int | None = None) -> None:
    """Refuse, before it is read, what is no file, cannot be opened or is too large.

    Reading a pipe waits for ever, and a device may have no end.

    Args:
        path: where it is.
        what: it should be, for messages.
        largest: bytes that it may have; None is any number.

    Raises:
        InputError: see above.
    """
    try:
        status = path.stat()
        if stat.S_ISREG(status.st_mode):
            path.open("rb").close()
    except (FileNotFoundError, NotADirectoryError):
        raise InputError(f"no {what} {str(path)!r}; give the path of one") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path} cannot be read: {reason}") from None
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path} is not a regular file; give the path of a {what}")
    if largest is not None and status.st_size > largest:
        raise InputError(
            f"{path} has {status.st_size} bytes, and a {what} at most {largest}; give another"
        )


def _check(path: Path, content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Compare the checksum of a file with what it holds.

    Raises:
        DamagedFileError: they differ.
        InputError: a newer version wrote the file.
    """
    entries = set(content) - {"kind", "settings"}
    if entries == {"format", "checksum"}:
        known = content["checksum"] == _checksum(content, tensors)
        if not known and type(content["format"]) is int and content["format"] > FORMAT:
            raise InputError(f"{path} was written by a newer version of maw_gym; update maw_gym")
    elif entries == {"sha256"}:  # of earlier versions
        known = content["sha256"] == fingerprint(tensors)
    else:
        known = not entries
    if not known:
        raise DamagedFileError(f"{path} is damaged: its checksum is not that of its content")


def _checksum(content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """The sha256 (hex) of format, kind, settings and all tensors."""
    covered = {name: content[name] for name in ("format", "kind", "settings")}
    covered["tensors"] = fingerprint(tensors)
    return hashlib.sha256(canonical(covered).encode()).hexdigest()
