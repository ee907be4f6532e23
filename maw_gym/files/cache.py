"""Where derived files are kept, under keys made of content, and how they are written whole."""

import hashlib
import json
import logging
import os
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final, TypeVar

from filelock import FileLock

from maw_gym.checks import shown
from maw_gym.errors import DamagedFileError, InputError

if sys.platform != "win32":
    import fcntl

log = logging.getLogger(__name__)

Kept = TypeVar("Kept")

WRITING: Final = ".writing"  # ends the hidden name of a file that is being written

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
