"""Where derived files are kept, under keys made of content, and how they are written whole."""

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import FileLock


def cache_home() -> Path:
    """Folder of derived files: ``$MAW_GYM_HOME``, else ``maw_gym`` in the user's cache folder."""
    named = os.environ.get("MAW_GYM_HOME")
    if named:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "maw_gym"


def content_key(content: Mapping[str, Any]) -> str:
    """First 16 hex digits of the sha256 of `content` as canonical JSON.

    Args:
        content: everything the file depends on, JSON-serialisable. Two equal contents share a key.
    """
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is synced and renamed to `path`.

    A reader sees the old file or the new one, never half of one. On any exception, an interrupt
    included, the temporary file is removed and `path` is left as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        # mkstemp makes files private; give the permissions that open() would have given.
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def one_builder(path: Path) -> Iterator[Path]:
    """Yield `path` under its lock: of several processes that miss it, one builds, others wait.

    The lock belongs to the process (flock), so that of a killed one is free at once.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(str(path) + ".lock"):
        yield path
