"""Files that are written whole, under keys made of content, and read with suspicion.

The entry ``maw_gym`` of a safetensors file's metadata is JSON: ``format``, ``kind``, ``settings``
and ``checksum``, the sha256 of the other three and of the names, types, shapes and values of all
tensors. So one flipped bit anywhere is noticed, or was in white space.
"""

import hashlib
import json
import logging
import os
import secrets
import stat
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from maw_gym.checks import shown
from maw_gym.distributed import from_all, from_first, is_first, processes, wait
from maw_gym.errors import DamagedFileError, InputError

if sys.platform != "win32":
    import fcntl

log = logging.getLogger(__name__)

Kept = TypeVar("Kept")

WRITING: Final = ".writing"  # ends the hidden name of a file that is being written

FORMAT: Final = 1  # raise when the checksum is made in another way
OURS: Final = "maw_gym"

_held: dict[Path, int] = {}  # folders that this process holds, and the handles of their locks


def expanded(path: str | Path) -> Path:
    """`path` with a leading ~ or ~user replaced by that home folder.

    Raises:
        InputError: there is no such user, nothing says where the home folder is, or `path` is no
            path at all.
    """
    if not isinstance(path, (str, Path)):
        raise InputError(f"a path is a text, not {shown(path)}")
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise InputError(
            f"no home folder is known for {str(path)!r}; give the whole path"
        ) from None


def cache_home() -> Path:
    """Folder of derived files: ``$MAW_GYM_HOME``, else ``maw_gym`` in the user's cache folder.

    Raises:
        InputError: the home folder is not known.
    """
    named = os.environ.get("MAW_GYM_HOME")
    try:
        if named:
            return expanded(named)
        return expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "maw_gym"
    except InputError as problem:
        raise InputError(f"{problem} of the cache in MAW_GYM_HOME") from None


def canonical(content: Any) -> str:
    """`content` as JSON, the same text for equal contents."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def content_key(content: Mapping[str, Any]) -> str:
    """First 16 hex digits of the sha256 of `content` as canonical JSON.

    Args:
        content: everything the file depends on, JSON-serialisable. Two equal contents share a key.
    """
    return hashlib.sha256(canonical(content).encode()).hexdigest()[:16]


@contextmanager
def written_whole(path: Path, sync: bool = True) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which on success is renamed to `path`.

    A reader sees the old file or the new one, never half of one. On any exception, an interrupt
    included, the temporary file is removed and `path` is left as it was; what a kill leaves is
    taken away by `sweep`.

    Args:
        path: the file.
        sync: wait until it is on the disk; without that a machine that loses its power may leave
            half of it, see `synced`.

    Raises:
        InputError: the file cannot be written, for want of space or of permission.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = _new_file(path)
    except OSError as error:
        raise _unwritable(path, error) from None
    try:
        yield temporary
        if sync:
            _sync(temporary)
        temporary.replace(path)
    except OSError as error:
        if error.filename not in (None, str(path), str(temporary)):
            raise  # of another file, which was read while this one was written
        raise _unwritable(path, error) from None
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        os.close(handle)


def _new_file(path: Path) -> tuple[int, Path]:
    """A hidden file beside `path`, and a handle whose lock says that somebody writes it."""
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}{WRITING}")
        # Not by tempfile, whose files are private: open() gives the usual permissions.
        handle = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        if sys.platform != "win32":
            with suppress(OSError):  # a file system without locks: nothing is swept there either
                fcntl.flock(handle, fcntl.LOCK_EX)
        # A sweep that came between the two lines above has taken the file away.
        if temporary.exists():
            return handle, temporary
        os.close(handle)


def synced(path: Path) -> None:
    """Wait until a file is on the disk.

    Raises:
        InputError: it cannot be written.
    """
    try:
        _sync(path)
    except OSError as error:
        raise _unwritable(path, error) from None


def _sync(path: Path) -> None:
    with path.open("rb") as file:
        os.fsync(file.fileno())


def _unwritable(path: Path, error: OSError) -> InputError:
    reason = error.strerror or error
    return InputError(f"{path} cannot be written: {reason}; make room for it or name another place")


def sweep(folder: Path) -> None:
    """Take away what writers that were killed have left in a folder and all below it.

    A writer holds a lock on its file, which ends with its process: files that are being written
    are left alone, on whatever machine the writer runs.
    """
    if sys.platform == "win32":
        return
    for path in folder.rglob(f".*{WRITING}"):
        with suppress(OSError):
            if path.is_symlink() or not path.is_file():
                continue
            with path.open("r+b") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()


def hold(folder: Path) -> bool:
    """Hold a folder until this process ends; whether no other process holds it.

    Where the file system has no locks, everybody may have it.
    """
    if sys.platform == "win32" or folder.resolve() in _held:
        return True
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return False
    except OSError:
        os.close(handle)
        return True
    _held[folder.resolve()] = handle
    return True


@contextmanager
def one_builder(path: Path) -> Iterator[Path]:
    """Yield `path` under its lock: of several processes that miss it, one builds, others wait.

    The lock belongs to the process (flock), so that of a killed one is free at once.

    Raises:
        InputError: the folder cannot be written.
    """
    lock = FileLock(str(path) + ".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # FileLock waits for ever for some files that can never be made.
        Path(lock.lock_file).open("a").close()
        lock.acquire()
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"the cache {path.parent} cannot be written: {reason}; set MAW_GYM_HOME to a folder"
            " that can"
        ) from None
    try:
        yield path
    finally:
        lock.release()


def kept_or_built(path: Path, read: Callable[[Path], Kept], build: Callable[[], Kept]) -> Kept:
    """What `read` finds at `path`; built first where there is nothing, or what is there is damaged.

    Of several processes one builds. What is there already is read without a lock, so that a
    read-only cache can be used.

    Args:
        path: in the cache; its name must hold a key of everything that is built.
        read: raises DamagedFileError where the content is not what was written.
        build: makes the content, writes it to `path` and returns it.

    Raises:
        InputError: the file cannot be read, or not be written.
    """
    found = kept(path, read)
    if found is None:
        with one_builder(path):
            sweep(path.parent)
            found = kept(path, read)  # another process may have been quicker
            if found is None:
                found = build()
    return found


def kept(path: Path, read: Callable[[Path], Kept]) -> Kept | None:
    """What `read` finds at `path`; None where there is nothing, or what is there is damaged."""
    try:
        if not path.exists():
            return None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    try:
        return read(path)
    except DamagedFileError as problem:
        log.warning("%s; it is made anew", problem)
        return None


def kept_or_built_together(
    path: Path, read: Callable[[Path], Kept], share: Callable[[], object], build: Callable[[], Kept]
) -> Kept:
    """What `read` finds at `path`; built first where there is nothing, or what is there is damaged.

    All processes do this together. One that dies leaves the files of its share: started again, it
    goes on behind them.

    Args:
        path: see `kept_or_built`, in a folder that all processes see.
        read: see `kept_or_built`.
        share: writes this process's share of the work to files of its own.
        build: joins the shares, makes what is missing of them, and writes `path`; the first
            process does it, alone where it is the only one.

    Raises:
        InputError: see `kept_or_built`; or a process does not see what the first has written.
    """
    if processes() == 1:
        return kept_or_built(path, read, build)
    if not from_first(is_first() and kept(path, read) is not None):
        check_one_folder(path.parent)
        share()
        wait()
        if is_first():
            kept_or_built(path, read, build)
        wait()
    found = kept(path, read)
    if found is None:
        raise InputError(f"{path} is not there for all processes; give them one MAW_GYM_HOME")
    return found


def check_one_folder(folder: Path) -> None:
    """Refuse to go on where a folder is another for some of the processes; all do this together.

    Raises:
        InputError: a process does not see what the first one writes there.
    """
    mark = folder / f".{from_first(uuid.uuid4().hex)}"
    reason = None
    if is_first():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            mark.touch()
        except OSError as problem:
            reason = str(problem.strerror or problem)
    reason = from_first(reason)
    if reason is not None:
        raise InputError(f"{folder} cannot be written: {reason}; give a folder that can")
    seen = from_all(mark.exists())
    if is_first():
        mark.unlink()
    if not all(seen):
        raise InputError(
            f"process {seen.index(False)} does not see what process 0 writes to {folder}; give all"
            " of them one folder (of caches: one MAW_GYM_HOME)"
        )


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
