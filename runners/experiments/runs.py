"""A run's folder, and the frame around every runner's main function."""

import contextlib
import importlib.metadata
import json
import logging
import os
import platform
import re
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from agents.sb3.stopping import STOP, Stopped
from maw_gym.errors import InputError, printable
from maw_gym.files import expanded, hold, let_go, sweep, write_json
from maw_gym.settings import one_line
from runners.experiments.command_line import given_flags, word_of

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from runners.experiments.settings import FolderSettings

Settings = TypeVar("Settings", bound="DataclassInstance")

CONFIG: Final = "config.json"
HOW: Final = ("jobs",)  # settings of how a run is made: what comes out differs by roundings at most
LARGEST: Final = 2_000_000  # bytes of a config.json; written ones have some 10,000


def settings_of(kind: type[Settings], given: dict[str, Any]) -> Settings:
    """The settings that a command line asks for.

    With `resume` they are those of that run, and a flag that says something else is refused, unless
    it is one of `HOW`.

    Args:
        kind: dataclass of the runner's settings.
        given: see `runners.experiments.command_line.given_flags`.

    Raises:
        InputError: a value that cannot be, or that is not the run's own.
    """
    if given.get("resume") is None:
        return kind(**given)
    own = run_settings(kind, expanded(given["resume"]))
    own = replace(own, **{name: given[name] for name in HOW if name in given})
    for name in given.keys() - {"resume"}:
        mine, other = getattr(own, name), getattr(replace(own, **{name: given[name]}), name)
        if mine != other:
            raise InputError(
                f"{word_of(kind, name)} {other} conflicts with the run's own {mine}; leave the"
                " flag out, or start another run"
            )
    return own


def run_settings(kind: type[Settings], run: Path) -> Settings:
    """The settings of a run, with `resume`, `logdir` and `run_name` where the run now lies.

    Args:
        kind: dataclass of the runner's settings.
        run: folder of the run.

    Raises:
        InputError: there is no such run, it is finished, it was made by another runner, or its
            config.json is damaged.
    """
    config = read_config(run)
    if (run / "metrics.json").exists():
        raise InputError(f"run {str(run)!r} is finished; there is nothing to go on with")
    given = config.get("settings")
    if not isinstance(given, dict):
        raise InputError(f"{run / CONFIG} has no settings; give the folder of another run")
    known = {field.name for field in fields(kind)}
    for name in sorted((set(given) ^ known) - set(HOW)):
        raise InputError(
            f"run {str(run)!r} was made by {config.get('learner')!r} of another runner or version:"
            f" setting {name!r} is {'missing' if name in known else 'unknown'}"
        )
    try:
        settings = TypeAdapter(kind).validate_json(json.dumps(given), strict=True)
    except ValidationError as error:
        raise InputError(f"{run / CONFIG}: impossible settings ({one_line(error)})") from None
    folder = run.absolute()
    return replace(settings, resume=run, logdir=run.parent, run_name=folder.name)


def read_config(run: Path) -> dict[str, Any]:
    """The config.json of a run.

    Raises:
        InputError: it is not there, or not what a run leaves.
    """
    path = run / CONFIG
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > LARGEST:
            raise InputError(f"{path} is not a run's: no file, or too large; give a run's folder")
        config = from_json(path.read_bytes())  # refuses what is nested too deeply
    except OSError:
        raise InputError(
            f"no run with a {CONFIG} in {str(run)!r}; if it was stopped before its training"
            " began, start it anew"
        ) from None
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} is not JSON ({error}); give the folder of a run") from None
    if not isinstance(config, dict):
        raise InputError(f"{path} is not a run's {CONFIG}; give the folder of a run")
    return config


def check_provenance(
    run: Path,
    learner: str,
    dataset: Mapping[str, Any] | None,
    encoder: Mapping[str, Any] | None,
) -> bool:
    """Refuse to go on with other data than those a run began with.

    Returns:
        Whether it had begun: one that was stopped before knows neither.

    Raises:
        InputError: the run was made by another learner, or its dataset or encoder has changed.
    """
    config = read_config(run)
    if config.get("learner") is None:
        return False
    if config["learner"] != learner:
        raise InputError(
            f"run {str(run)!r} is one of {config.get('learner')!r}, not of {learner!r}"
        )
    for name, now in (("dataset", dataset), ("encoder", encoder)):
        # As the file would say it now: tuples are lists there.
        if config.get(name) != json.loads(json.dumps(now, default=str)):
            raise InputError(
                f"the {name} of run {str(run)!r} has changed since it began; start another run"
            )
    return True


class _Stream:
    """A stream whose reader may go away: what is written then is dropped.

    Args:
        stream: what is written to.
        dropped: errors that are not told: of standard error all, of standard output that nobody
            reads any more.
    """

    def __init__(self, stream: Any, dropped: type[OSError]) -> None:
        self._stream = stream
        self._dropped = dropped

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, and say that all was written."""
        self._guarded(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush."""
        self._guarded(self._stream.flush)

    def _guarded(self, call: Any) -> None:
        try:
            call()
        except self._dropped:
            # What the stream still holds would fail once more when Python ends.
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


@contextlib.contextmanager
def lasting_streams() -> Iterator[None]:
    """Let a program finish its work whatever becomes of its standard streams.

    Characters that a stream cannot show are escaped. Threads of libraries, such as TensorBoard's
    writer, tell of a full disk by a traceback of their own: those are left out, the main thread
    tells it in one line.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    told = threading.excepthook

    def quiet(problem: threading.ExceptHookArgs) -> None:
        if not issubclass(problem.exc_type, OSError):
            told(problem)

    threading.excepthook = quiet
    output: Any = _Stream(sys.stdout, BrokenPipeError)
    try:
        with (
            contextlib.redirect_stdout(output),
            contextlib.redirect_stderr(_Stream(sys.stderr, OSError)),
        ):
            yield
            output.flush()
    finally:
        threading.excepthook = told


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
    logging.getLogger("maw_gym.progress").setLevel(logging.INFO)
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
    except (MemoryError, RuntimeError) as problem:
        # Python says so where a limit on memory leaves no room for a thread.
        if isinstance(problem, RuntimeError) and "start new thread" not in str(problem):
            raise
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
