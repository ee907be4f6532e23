"""A run's folder, going on with it, and the frame around every runner's main function."""

import contextlib
import importlib.metadata
import json
import logging
import os
import platform
import re
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Final, TypeVar

from pydantic_core import from_json

from maw_gym.errors import InputError, printable
from maw_gym.files import expanded, hold, let_go, sweep, write_json
from runners.experiments.command_line import flat, given_flags, made, settings_in

Settings = TypeVar("Settings")

CONFIG: Final = "config.json"
HOW: Final = ("jobs",)  # settings of how a run is made: what comes out differs by roundings at most
LARGEST: Final = 2_000_000  # bytes of a config.json; written ones have some 10,000
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
PACKAGES: Final = ("maw_gym", "gymnasium", "stable_baselines3", "torch", "numpy", "ir_datasets")

# Folders that this process has claimed, and whether their runs have begun.
_claimed: dict[Path, bool] = {}
_made: list[Path] = []  # folders of runs that were not there, outermost first


# --- the frame -------------------------------------------------------------------------------


def run_main(
    kind: type[Settings],
    main: Callable[[Settings], None],
    arguments: Sequence[str] | None = None,
    program: str | None = None,
) -> None:
    """Read the command line and run `main`; whatever ends it early is one line on stderr."""
    with lasting_streams():
        logging.basicConfig(level=logging.WARNING, format="%(message)s")
        logging.getLogger("maw_gym.progress").setLevel(logging.INFO)
        try:
            with STOP.installed():
                about = sys.modules[main.__module__].__doc__
                main(settings_of(kind, given_flags(kind, about, arguments, program)))
        except InputError as mistake:
            _quit(str(mistake), 2)
        except OSError as problem:
            # No permission, no space: the environment's fault, and no traceback mends it.
            where = f"{problem.filename}: " if problem.filename else ""
            what = f"{where}{problem.strerror or problem}"
            _quit(f"{what}; make room, or give another place that can be read and written", 2)
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


class Stopped(KeyboardInterrupt):
    """The user or the system wants the run to end."""

    def __init__(self, number: int, advice: str) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}; {advice}")
        self.status = 128 + number
        self._given = (number, advice)

    def __reduce__(self) -> tuple[type["Stopped"], tuple[int, str]]:
        """What it is made of, for another process."""
        return Stopped, self._given


class StopRequest:
    """What a running program does about SIGINT and SIGTERM."""

    def __init__(self) -> None:
        self.advice = "run the same command again"
        self.received: int | None = None
        self._deferring = False

    def asked(self) -> bool:
        """Whether a signal was noted."""
        return self.received is not None

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Handle the signals; does nothing outside the main thread, where Python forbids it."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before: dict[signal.Signals, Any] = {}
        try:
            for number in SIGNALS:
                before[number] = signal.signal(number, self._handle)
            yield
        finally:
            for handled, handler in before.items():
                signal.signal(handled, handler)

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Only note the first signal, and raise `Stopped` at the end."""
        self.received, self._deferring = None, True
        try:
            with self.installed():
                try:
                    yield
                except KeyboardInterrupt:
                    if not self.asked():
                        raise
                if self.received is not None:
                    raise Stopped(self.received, self.advice)
        finally:
            self._deferring = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self._deferring and self.received is None:
            self.received = number
            return
        raise Stopped(number, self.advice)


# Signals belong to the process, and so does the answer to them.
STOP: Final = StopRequest()


class _Stream:
    """A stream that may be full, or whose reader may go away: what is written then is dropped."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, and say that all was written."""
        self._guarded(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush."""
        self._guarded(self._stream.flush)

    def _guarded(self, call: Callable[[], Any]) -> None:
        try:
            call()
        except OSError:
            # What the stream still holds would fail once more when Python ends.
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


@contextlib.contextmanager
def lasting_streams() -> Iterator[None]:
    """Let a program finish its work whatever becomes of its standard streams."""
    while (null := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(null)
    streams = [stream or open(os.devnull, "w") for stream in (sys.stdout, sys.stderr)]  # noqa: SIM115
    for stream in streams:
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    told = threading.excepthook

    def quiet(problem: threading.ExceptHookArgs) -> None:
        if not issubclass(problem.exc_type, OSError):
            told(problem)

    threading.excepthook = quiet
    output, errors = map(_Stream, streams)
    try:
        with (
            contextlib.redirect_stdout(output),
            contextlib.redirect_stderr(errors),
        ):
            yield
            output.flush()
    finally:
        threading.excepthook = told


class Stopwatch:
    """Seconds of each stage of a run, for the `wall_seconds` of metrics.json."""

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


# --- the folder ------------------------------------------------------------------------------


def open_run(settings: Any, default: str) -> Path:
    """Claim the folder of a new run, or find that of one to go on with."""
    from maw_gym.envs.rendering import check_matplotlib  # gymnasium takes a second

    check_matplotlib()  # a run ends in figures
    values = flat(settings)
    resume, logdir, name = values.get("resume"), values["logdir"], values["run_name"]
    if resume is not None:
        if not hold(resume):
            raise InputError(
                f"run {str(resume)!r} is being written by another process; wait for it, or stop it"
            )
        sweep(resume)
        return Path(resume)
    plain = name is None or (
        name == Path(name).name and name.isprintable() and name not in ("", ".", "..")
    )
    if not plain:
        raise InputError(
            f"run name {name!r} must be a plain folder name; use --logdir for its place"
        )
    if not str(logdir.absolute()).isprintable():
        raise InputError(
            f"the log folder {str(logdir)!r} has characters that TensorBoard cannot write;"
            " choose another --logdir"
        )
    try:
        missing = [place for place in (logdir, *logdir.parents) if not place.exists()]
        logdir.mkdir(parents=True, exist_ok=True)
        _made.extend(reversed(missing))
        folder = _claim(logdir, name, re.sub(r"[^A-Za-z0-9._-]+", "-", default).strip("-"))
        write_config(folder, None, settings)
    except OSError as problem:
        folder = logdir / (name or default)
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
    """Take away the folders of runs that did not begin; if refused, of those that left nothing
    too.
    """
    while _claimed:
        folder, begun = _claimed.popitem()
        let_go(folder)
        with contextlib.suppress(OSError):
            if os.listdir(folder) == [CONFIG] and (refused or not begun):
                (folder / CONFIG).unlink()
                folder.rmdir()
    while _made:
        with contextlib.suppress(OSError):
            _made.pop().rmdir()  # only where it is empty


def writable_output(path: Path) -> Path:
    """A file that numbers can be written to at the end, before any work; a link is followed."""
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
    settings: Any,
    dataset: Mapping[str, Any] | None = None,
    encoder: Mapping[str, Any] | None = None,
) -> None:
    """Write config.json: every setting, versions, git commit, provenance of data and encoder."""
    values = flat(settings)
    if learner is not None and "resume" in values:
        STOP.advice = f"go on with --resume {folder}"
        if values["resume"] and check_provenance(folder, learner, dataset, encoder):
            return
    content = {
        "learner": learner,
        "settings": values,
        "dataset": dataset,
        "encoder": encoder,
        "versions": {name: _version(name) for name in PACKAGES}
        | {"python": platform.python_version()},
        "git_commit": git_commit(),
    }
    write_json(folder / CONFIG, content)
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


# --- going on --------------------------------------------------------------------------------


def settings_of(kind: type[Settings], given: Mapping[str, Any]) -> Settings:
    """The settings that a command line asks for."""
    if given.get("resume") is None:
        return made(kind, given)
    how = {name: given[name] for name in HOW if name in given}
    own = flat(run_settings(kind, expanded(given["resume"])))
    for name in given.keys() - {"resume", *HOW}:
        other = flat(made(kind, own | {name: given[name]}))[name]
        if own[name] != other:
            raise InputError(
                f"{settings_in(kind)[name].word} {other} conflicts with the run's own"
                f" {own[name]}; leave the flag out, or start another run"
            )
    return made(kind, own | how)


def run_settings(kind: type[Settings], run: Path) -> Settings:
    """The settings of a run, with `resume`, `logdir` and `run_name` where the run now lies."""
    config = read_config(run)
    if (run / "metrics.json").exists():
        raise InputError(f"run {str(run)!r} is finished; there is nothing to go on with")
    given = config.get("settings")
    if not isinstance(given, dict):
        raise InputError(f"{run / CONFIG} has no settings; give the folder of another run")
    for name in sorted(given.keys() - settings_in(kind).keys()):
        raise InputError(
            f"run {str(run)!r} was made by {config.get('learner')!r} of another runner or version:"
            f" setting {name!r} is unknown"
        )
    places = {"resume": run, "logdir": run.parent, "run_name": run.absolute().name}
    try:
        return made(kind, given | places)
    except InputError as error:
        raise InputError(f"{run / CONFIG}: impossible settings ({error})") from None


def read_config(run: Path) -> dict[str, Any]:
    """The config.json of a run."""
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
    """Refuse to go on with other data than those a run began with."""
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
