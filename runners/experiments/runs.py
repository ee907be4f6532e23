"""A run's folder, and the frame around every runner's main function."""

import contextlib
import importlib.metadata
import logging
import os
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from agents.sb3.stopping import STOP, Stopped
from maw_gym.errors import InputError, printable
from maw_gym.files import hold, let_go, sweep, write_json
from runners.experiments.command_line import given_flags
from runners.experiments.resuming import CONFIG, Settings, check_provenance, settings_of
from runners.experiments.streams import lasting_streams

if TYPE_CHECKING:
    from runners.experiments.settings import FolderSettings

PACKAGES: Final = ("maw_gym", "gymnasium", "stable_baselines3", "torch", "numpy", "ir_datasets")

# Folders that this process has claimed, and whether their runs have begun.
_claimed: dict[Path, bool] = {}


def run_main(
    settings: type[Settings],
    main: Callable[[Settings], None],
    arguments: Sequence[str] | None = None,
    program: str | None = None,
) -> None:
    """Read the command line and run `main`; whatever ends it early is one line on stderr.

    Exit status 2 is a user's mistake, 1 numbers that are no longer finite, 130 and 143 are SIGINT
    and SIGTERM.

    Args:
        settings: a dataclass, see `runners.experiments.command_line`.
        main: the runner.
        arguments: see `given_flags`.
        program: see there.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    with lasting_streams():
        _run(settings, main, arguments, program)


def _run(
    settings: type[Settings],
    main: Callable[[Settings], None],
    arguments: Sequence[str] | None,
    program: str | None,
) -> None:
    try:
        with STOP.installed():
            about = sys.modules[main.__module__].__doc__
            given = given_flags(settings, about, arguments, program)
            main(settings_of(settings, given))
    except InputError as mistake:
        _quit(str(mistake), 2)
    except OSError as problem:
        # No permission, no space: the environment's fault, and no traceback mends it.
        where = f"{problem.filename}: " if problem.filename else ""
        _quit(
            f"{where}{problem.strerror or problem}; make room, or give another place that can be"
            " read and written",
            2,
        )
    except MemoryError:
        _quit("the memory is not enough; lower --num-envs, --n-steps or the batch size", 2)
    except FloatingPointError as problem:
        _quit(str(problem), 1)
    except Stopped as stopped:
        _quit(str(stopped), stopped.status)
    except KeyboardInterrupt:
        _quit("interrupted", 130)
    finally:
        _give_back()


def _quit(message: str, status: int) -> None:
    if os.environ.get("RANK", "0") != "0":
        # Of torchrun's processes the first one says what all have found; it ends the others.
        time.sleep(10)
    _give_back(refused=status == 2)
    print(f"error: {printable(' '.join(message.split()))}", file=sys.stderr)
    # Worker threads must not hold a failed run; buffers were written above.
    raise SystemExit(status)


def open_run(settings: "FolderSettings", default: str) -> Path:
    """Claim the folder of a new run, or find that of one to go on with.

    Args:
        settings: of the run; they are written into a new folder at once.
        default: what a run without a name is called, before the time.

    Raises:
        InputError: the name is not a plain folder name, is taken, or cannot be written; or another
            process works on the run.
    """
    resume: Path | None = getattr(settings, "resume", None)
    if resume is not None:
        if not hold(resume):
            raise InputError(
                f"run {str(resume)!r} is being written by another process; wait for it, or stop it"
            )
        sweep(resume)
        return resume
    name = settings.run_name
    plain = name is None or (
        name == Path(name).name and name.isprintable() and name not in ("", ".", "..")
    )
    if not plain:
        raise InputError(
            f"run name {name!r} must be a plain folder name; use --logdir for its place"
        )
    if not str(settings.logdir.absolute()).isprintable():
        raise InputError(
            f"the log folder {str(settings.logdir)!r} has characters that TensorBoard cannot write;"
            " choose another --logdir"
        )
    try:
        settings.logdir.mkdir(parents=True, exist_ok=True)
        folder = _claim(settings.logdir, name, re.sub(r"[^A-Za-z0-9._-]+", "-", default).strip("-"))
        write_config(folder, None, settings)
    except OSError as problem:
        folder = settings.logdir / (name or default)
        raise InputError(
            f"cannot write the run folder {str(folder)!r} ({problem.strerror}); choose another"
            " --logdir"
        ) from None
    return folder


def _claim(logdir: Path, name: str | None, default: str) -> Path:
    """Make a folder that was not there, which only one process can."""
    base = name or f"{default}-{time.strftime('%Y%m%d-%H%M%S')}"
    number = 1
    while True:
        folder = logdir / (base if number == 1 else f"{base}-{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            if name is not None or number == 1000:
                raise InputError(f"run {str(folder)!r} exists; choose another --run-name") from None
            number += 1
        else:
            _claimed[folder] = False
            hold(folder)
            return folder


def _give_back(refused: bool = False) -> None:
    """Take away the folders of runs that did not begin; if refused, of those that left nothing too.

    A run that has begun and is stopped can go on, however little there is of it; one that was
    refused would be refused again.
    """
    while _claimed:
        folder, begun = _claimed.popitem()
        let_go(folder)
        with contextlib.suppress(OSError):
            if not begun or (refused and os.listdir(folder) == [CONFIG]):
                (folder / CONFIG).unlink(missing_ok=True)
                folder.rmdir()


def writable_output(path: Path) -> Path:
    """A file that numbers can be written to at the end, before any work; a link is followed.

    Raises:
        InputError: it is a folder or a device, or its folder cannot be written to.
    """
    try:
        target = path.resolve()
        if target.exists() and not target.is_file():
            raise InputError(f"{str(path)!r} is no ordinary file; give another for the numbers")
        folder = next(parent for parent in target.parents if parent.exists())
        if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
            raise InputError(f"{str(folder)!r} cannot be written to; give another file")
        longest = os.pathconf(folder, "PC_NAME_MAX") - 20  # while it is written its name is longer
        if len(os.fsencode(target.name)) > longest:
            raise InputError(f"the name of {str(path)!r} is too long; give a shorter one")
    except (OSError, RuntimeError, ValueError) as problem:
        if isinstance(problem, InputError):
            raise
        raise InputError(f"{str(path)!r} cannot be written ({problem}); give another") from None
    return target


def write_config(
    folder: Path,
    learner: str | None,
    settings: "FolderSettings",
    dataset: Mapping[str, Any] | None = None,
    encoder: Mapping[str, Any] | None = None,
) -> None:
    """Write config.json: every setting, versions, git commit, provenance of data and encoder.

    It is written twice: when the folder is claimed, and when data and encoder are known. From then
    on the run has begun: it keeps its folder and this file, a run that goes on included.

    Raises:
        InputError: the run was made by another learner, or its dataset or encoder has changed.
    """
    if learner is not None and hasattr(settings, "resume"):
        STOP.advice = f"go on with --resume {folder}"
        if settings.resume and check_provenance(folder, learner, dataset, encoder):
            return
    write_json(
        folder / CONFIG,
        {
            "learner": learner,
            "settings": asdict(settings),
            "dataset": dataset,
            "encoder": encoder,
            "versions": {name: _version(name) for name in PACKAGES}
            | {"python": platform.python_version()},
            "git_commit": git_commit(),
        },
    )
    if learner is not None and folder in _claimed:
        _claimed[folder] = True


def _version(package: str) -> str | None:
    """The installed version; None where a checkout is run without being installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def git_commit() -> str | None:
    """The commit of the source tree, or None outside a checkout or without git."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        shown = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError:
        return None
    return shown.stdout.strip() or None


class Stopwatch:
    """Seconds of each stage of a run, for the `wall_seconds` of metrics.json.

    Args:
        silent: tell nobody which stage runs.
    """

    def __init__(self, silent: bool = False) -> None:
        self.silent = silent
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage and tell the user that it runs."""
        if not self.silent:
            print(f"{name} ...", file=sys.stderr, flush=True)
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 3)
