"""Files that are written whole, under keys made of content, and read with suspicion.

Locks, temporary names and checksums are known here alone. The entry ``maw_gym`` of a safetensors
file's metadata is JSON: ``format``, ``kind``, ``settings`` and ``checksum``, the sha256 of the
other three and of the names, types, shapes and values of all tensors. So one flipped bit anywhere
is noticed, or was in white space.
"""

import ctypes
import hashlib
import json
import logging
import os
import secrets
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from filelock import FileLock, Timeout

from maw_gym.errors import DamagedFileError, InputError, UnwritableError, expanded, first_line

if TYPE_CHECKING:  # torch is imported where it is used: settings and help do not wait for it
    from torch import Tensor

log = logging.getLogger(__name__)

Thing = TypeVar("Thing")
Built = TypeVar("Built")

WRITING: Final = ".writing"  # ends the hidden name of what is being written
LOCK: Final = ".lock"
MANIFEST: Final = "manifest.json"  # of a folder that is written whole
FORMAT: Final = 1  # raise when the checksum is made in another way
OURS: Final = "maw_gym"

_held: dict[Path, FileLock] = {}  # by folder


def cache_home() -> Path:
    """Folder of derived files: ``$MAW_GYM_HOME``, else ``maw_gym`` in the user's cache folder."""
    if named := os.environ.get("MAW_GYM_HOME"):
        return expanded(named)
    return expanded(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "maw_gym"


def canonical(content: Any) -> str:
    """`content` as JSON, the same text for equal contents."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def content_key(content: Mapping[str, Any]) -> str:
    """First 16 hex digits of the sha256 of `content` as canonical JSON."""
    return _sha256_of(content)[:16]


def fingerprint(tensors: Mapping[str, "Tensor"]) -> str:
    """The sha256 (hex) of names, types, shapes and values."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        if tensor.numel():
            # A number alone, of no dimension, cannot be seen as bytes.
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _sha256_of(content: Any) -> str:
    return hashlib.sha256(canonical(content).encode()).hexdigest()


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which on success is renamed to `path`."""
    with _temporary(path) as temporary:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.open("xb").close()
        yield temporary
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)


@contextmanager
def written_folder(folder: Path, mark: str) -> Iterator[Path]:
    """Yield a temporary folder beside `folder`, which on success takes its place."""
    folder = folder.resolve()
    with _temporary(folder) as temporary:
        if folder.exists() and not (folder / mark).is_file() and any(folder.iterdir()):
            raise InputError(f"{folder} holds other files, no {mark}; give a new folder")
        temporary.mkdir(parents=True)
        yield temporary
        for path in [*temporary.rglob("*"), temporary]:
            _sync(path)
        _exchange(temporary, folder)
        _sync(folder.parent)


@contextmanager
def _temporary(path: Path) -> Iterator[Path]:
    """A hidden name beside `path`, of which nothing is left; what cannot be written is named."""
    # Not by tempfile, whose files are private: open() gives the usual permissions.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}{WRITING}")
    try:
        yield temporary
    except OSError as error:
        at = Path(error.filename or path)
        if not {at, *at.parents} & {path, temporary} and at not in path.parents:
            raise  # of another file, which was read while this one was written
        reason = error.strerror or error
        raise UnwritableError(
            f"{path} cannot be written: {reason}; make room for it or name another place"
        ) from None
    finally:
        _remove(temporary)


def _exchange(new: Path, old: Path) -> None:
    """Put `new` in the place of `old`, and `old`, if there is one, in that of `new`."""
    if not old.exists():
        new.rename(old)
        return
    with suppress(AttributeError):  # of another system than Linux
        here, both = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
        exchange = ctypes.CDLL(None, use_errno=True).renameat2
        if exchange(here, os.fsencode(new), here, os.fsencode(old), both) == 0:
            return
    # Without it a kill in between leaves the old folder under the other name.
    aside = new.with_name(f"{new.name}{WRITING}")
    old.rename(aside)
    new.rename(old)
    aside.rename(new)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():  # of a pipe rmtree would wait for a writer
        shutil.rmtree(path, ignore_errors=True)
    with suppress(OSError):
        path.unlink()


def sweep(folder: Path, name: str = "*") -> None:
    """Take away what writers that were killed have left in a folder and all below it."""
    for path in folder.rglob(f".{name}.*{WRITING}"):
        _remove(path)


def hold(folder: Path) -> bool:
    """Hold a folder until this process ends; whether no other process holds it."""
    folder = folder.resolve()
    if folder not in _held:
        lock = FileLock(folder / LOCK, thread_local=False)
        try:
            lock.acquire(blocking=False)
        except Timeout:
            return False
        except (OSError, NotImplementedError):  # a folder that is read only, or without locks
            return True
        _held[folder] = lock
    return True


def let_go(folder: Path) -> None:
    """Undo `hold`; nothing of the lock is left in the folder."""
    lock = _held.pop(folder.resolve(), None)
    if lock is not None:
        _remove(Path(lock.lock_file))
        lock.release()


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """The lock of a file: of several processes that miss it, one builds, others wait."""
    lock = FileLock(str(path) + LOCK)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # FileLock waits for ever for some files that can never be made.
        Path(lock.lock_file).open("a").close()
        lock.acquire()
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UnwritableError(
            f"the cache {path.parent} cannot be written: {reason}; set MAW_GYM_HOME to a folder"
            " that can"
        ) from None
    try:
        yield
    finally:
        lock.release()


def cached(
    path: Path,
    build: Callable[[], Built],
    save: Callable[[Path, Built], object],
    load: Callable[[Path], Thing],
    together: bool = False,
) -> Thing:
    """What `load` finds at `path`; built, saved and loaded where it is missing or damaged."""
    from maw_gym.distributed import check_one_folder, from_all, is_first, processes, wait

    found = loaded(path, load)
    if together and processes() > 1:
        if not all(from_all(found is not None)):
            check_one_folder(path.parent)
            built = build()
            if is_first():
                with locked(path):
                    save(path, built)
            wait()
            found = load(path)
    elif found is None:
        with locked(path):
            sweep(path.parent, path.name)
            found = loaded(path, load)  # another process may have been quicker
            if found is None:
                save(path, build())
                found = load(path)
    assert found is not None
    return found


def loaded(path: Path, load: Callable[[Path], Thing]) -> Thing | None:
    """What `load` finds at `path`; None where there is nothing, or what is there is damaged."""
    try:
        return load(path) if path.exists() else None
    except DamagedFileError as problem:
        log.warning("%s; it is made anew", problem)
        return None


def write_json(path: Path, content: Any, kind: str | None = None) -> None:
    """Write JSON, whole or not at all; with a kind for `read_json`, else to be looked at."""
    if kind is None:  # what JSON does not know is written as its text
        text = json.dumps(content, indent=2, default=str)
    else:
        whole = {"kind": kind, "content": json.loads(json.dumps(content))}
        text = json.dumps(whole | {"checksum": _sha256_of(whole)})
    with written_whole(path) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read_json(path: Path, kind: str) -> Any:
    """The content that `write_json` has written as this kind."""
    check_readable(path, f"{kind} file")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        checksum = found.pop("checksum")
        whole = set(found) == {"kind", "content"} and checksum == _sha256_of(found)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as problem:
        raise DamagedFileError(f"{path} was not written by maw_gym ({problem})") from None
    _check_whole(path, whole, found.get("kind"), kind)
    return found["content"]


def write_manifest(folder: Path, kind: str, settings: Mapping[str, Any]) -> None:
    """Write what a folder is and the checksums of its files, in the end; see `written_folder`."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    files = {path.relative_to(folder).as_posix(): _sha256_of_file(path) for path in paths}
    write_json(folder / MANIFEST, {"settings": settings, "files": files}, kind)


def read_manifest(folder: Path, kind: str) -> tuple[dict[str, Any], list[str]]:
    """Settings and file names that `write_manifest` has written, after the files were compared."""
    if not (folder / MANIFEST).exists():
        raise InputError(f"no {kind} in {str(folder)!r}; save one there first")
    content = read_json(folder / MANIFEST, kind)
    try:
        settings, files = dict(content["settings"]), content["files"].items()
    except (AttributeError, LookupError, TypeError, ValueError):
        raise DamagedFileError(f"{folder / MANIFEST} was not written by maw_gym") from None
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    for name, checksum in files:
        if name not in there:  # which a path that leads elsewhere is not
            raise DamagedFileError(f"{folder} is damaged: {name!r} is gone")
        if _sha256_of_file(folder / name) != checksum:
            raise DamagedFileError(f"{folder / name} is damaged: its checksum is another")
    return settings, [name for name, _ in files]


def _sha256_of_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class TensorFile(NamedTuple):
    """What a file holds; the tensors are memory-mapped and take memory where they are looked at."""

    settings: dict[str, Any]
    tensors: dict[str, "Tensor"]


def write(
    path: Path, tensors: Mapping[str, "Tensor"], kind: str, settings: Mapping[str, Any]
) -> None:
    """Write tensors and settings to `path`, whole or not at all."""
    from safetensors.torch import save

    # As they will be read: tuples are lists in JSON, and all names are texts.
    content = {"format": FORMAT, "kind": kind, "settings": json.loads(json.dumps(settings))}
    content["checksum"] = _sha256_of(content | {"tensors": fingerprint(tensors)})
    on_cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # One entry: safetensors writes several in an order that changes from process to process.
    data = save(on_cpu, {OURS: canonical(content)})
    with written_whole(path) as temporary:
        temporary.write_bytes(data)


def read(path: Path, kind: str) -> TensorFile:
    """What a file written by `write` holds, after its checksum was checked."""
    from safetensors import SafetensorError, safe_open

    check_readable(path, f"{kind} file")
    before = path.stat()
    problem: InputError | None = None
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        problem = DamagedFileError(f"{path} is not a readable safetensors file: {error}")
    except (OSError, RuntimeError, MemoryError) as error:
        problem = InputError(f"{path} cannot be read: {first_line(error)}")
    after = path.stat()
    # safetensors opens a file twice, and another may have been renamed to it in between.
    if (before.st_ino, before.st_mtime_ns) != (after.st_ino, after.st_mtime_ns):
        return read(path, kind)
    if problem is not None:
        raise problem
    try:
        content = json.loads(metadata[OURS])
        checksum = content.pop("checksum")
        version, found, settings = content["format"], content["kind"], content["settings"]
        content["tensors"] = fingerprint(tensors)
        whole = len(content) == 4 and checksum == _sha256_of(content)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        raise DamagedFileError(
            f"{path} was not written by maw_gym; give another {kind} file"
        ) from None
    if not whole and type(version) is int and version > FORMAT:
        raise InputError(f"{path} was written by a newer version of maw_gym; update maw_gym")
    _check_whole(path, whole, found, kind)
    return TensorFile(settings, tensors)


def _check_whole(path: Path, whole: bool, found: Any, wanted: str) -> None:
    if not whole:
        raise DamagedFileError(f"{path} is damaged: its checksum is not that of its content")
    if found != wanted:
        raise InputError(f"{path} holds a {found!r}, not a {wanted!r}")


def check_tensors(
    path: Path, tensors: Mapping[str, "Tensor"], shapes: Mapping[str, tuple[int | None, ...]]
) -> None:
    """Compare the tensors of a file with those that its settings promise."""
    import torch

    for name in sorted({*tensors, *shapes}):
        tensor, shape, wrong = tensors.get(name), shapes.get(name), None
        if tensor is None or shape is None:
            wrong = "is gone" if tensor is None else "is unknown"
        elif tensor.ndim != len(shape) or any(
            wanted not in (None, given) for wanted, given in zip(shape, tensor.shape, strict=True)
        ):
            wrong = f"has shape {tuple(tensor.shape)}, expected {shape}"
        elif tensor.dtype != torch.float32:
            wrong = f"is {tensor.dtype}, expected torch.float32"
        elif not tensor.isfinite().all():
            wrong = "holds values that are not finite"
        if wrong is not None:
            raise DamagedFileError(f"{path}: tensor {name!r} {wrong}")


def check_readable(path: Path, what: str, largest: int | None = None) -> None:
    """Refuse, before it is read, what is no file, cannot be opened or is too large."""
    if not os.path.exists(path):
        raise InputError(f"no {what} {str(path)!r}; give the path of one")
    if not os.path.isfile(path):
        raise InputError(f"{path} is not a regular file; give the path of a {what}")
    try:
        path.open("rb").close()
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    if largest is not None and (size := path.stat().st_size) > largest:
        raise InputError(f"{path} has {size} bytes, and a {what} at most {largest}; give another")
