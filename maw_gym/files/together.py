"""Files that several processes build together, each its share, and the first one joins."""

import uuid
from collections.abc import Callable
from pathlib import Path

from maw_gym.distributed import from_all, from_first, is_first, processes, wait
from maw_gym.errors import InputError
from maw_gym.files.cache import Kept, kept, kept_or_built


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
