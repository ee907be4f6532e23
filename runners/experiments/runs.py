"""The frame around every runner's main function, a run's folder, and going on with it."""

import contextlib
import importlib.metadata
import itertools
import json
import logging
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar, get_args, get_origin

import yaml

from maw_gym import __version__
from maw_gym.errors import InputError, did_you_mean, expanded, first_line, printable
from maw_gym.files import check_readable, hold, let_go, sweep, write_json
from maw_gym.run import CONFIG, METRICS, Run
from maw_gym.runners.experiments.command_line import changed, flat, given_flags, made, settings_in

Settings = TypeVar("Settings")

PLACES: Final = ("logdir", "run_name", "resume", "config")  # no part of what a run is
HOW: Final = ("jobs",)  # settings of how a run is made: what comes out differs by roundings at most
SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
PACKAGES: Final = ("gymnasium", "stable_baselines3", "torch", "numpy", "ir_datasets")

_made: list[Path] = []  # folders that this process has made for runs, outermost first


# --- the frame -------------------------------------------------------------------------------


def run_main(
    kind: type[Settings],
    main: Callable[[Settings], None],
    arguments: Sequence[str] | None = None,
    program: str | None = None,
) -> None:
    """Read the command line and run `main`; whatever ends it early is one line on stderr."""
    before = {number: signal.signal(number, STOP.handle) for number in SIGNALS}
    with lasting_streams():
        logging.basicConfig(level=logging.WARNING, format="%(message)s")
        logging.getLogger("maw_gym.progress").setLevel(logging.INFO)
        try:
            about = sys.modules[main.__module__].__doc__
            main(settings_of(kind, given_flags(kind, about, arguments, program)))
        except InputError as mistake:
            _quit(str(mistake), 2)
        except OSError as problem:
            # No permission, no space: the environment's fault, and no traceback mends it.
            what = f"{problem.filename or ''}: {problem.strerror or problem}".removeprefix(": ")
            _quit(f"{what}; make room, or give another place that can be read and written", 2)
        except MemoryError:
            _quit("the memory is not enough; lower --num-envs, --n-steps or the batch size", 2)
        except FloatingPointError as problem:
            _quit(str(problem), 1)
        except KeyboardInterrupt as stopped:
            what, status = stopped.args or ("interrupted", 130)
            _give_back()
            left = STOP.run is not None and STOP.run.exists()
            advice = f"go on with --resume {STOP.run}" if left else "run the same command again"
            _quit(f"{what}; {advice}", status)
        finally:
            _give_back()
            for number, handler in before.items():
                signal.signal(number, handler)


def _quit(message: str, status: int) -> None:
    if os.environ.get("RANK", "0") != "0":
        # Of torchrun's processes the first one says what all have found; it ends the others.
        time.sleep(10)
    print(f"error: {printable(' '.join(message.split()))}", file=sys.stderr)
    raise SystemExit(status)


class StopRequest:
    """What a program does about SIGINT and SIGTERM: it ends, or first writes a checkpoint."""

    run: Path | None = None  # that can go on
    received: int | None = None
    _deferring = False

    def asked(self) -> bool:
        """Whether a signal was noted."""
        return self.received is not None

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Only note the first signal, and end the program afterwards; a second one does at once."""
        self.received, self._deferring = None, True
        try:
            yield
        except KeyboardInterrupt:
            if not self.asked():
                raise
        finally:
            self._deferring = False
        if self.received is not None:
            self.handle(self.received, None)

    def handle(self, number: int, frame: object) -> None:
        """Answer a signal."""
        if not self._deferring or self.asked():
            raise KeyboardInterrupt(f"stopped by {signal.Signals(number).name}", 128 + number)
        self.received = number


# Signals belong to the process, and so does the answer to them.
STOP: Final = StopRequest()


class _Stream:
    """A stream that may be full, or whose reader may go away: what is written then is dropped."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.lost = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, and say that all was written."""
        self._try(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        """Flush."""
        self._try(self._stream.flush)

    def _try(self, call: Callable[..., Any], *text: str) -> None:
        try:
            call(*text)
        except OSError:
            self.lost = True
            # What the stream still holds would fail once more when Python ends.
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


@contextlib.contextmanager
def lasting_streams() -> Iterator[None]:
    """Let a program finish its work whatever becomes of its standard streams."""
    streams = [_Stream(stream or open(os.devnull, "w")) for stream in (sys.stdout, sys.stderr)]  # noqa: SIM115
    for stream in streams:
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    with contextlib.redirect_stdout(streams[0]), contextlib.redirect_stderr(streams[1]):
        try:
            yield
        finally:
            for stream in streams:
                stream.flush()


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
    _check_matplotlib()
    values = flat(settings)
    folder: Path | None = values.get("resume")
    if folder is not None:
        if not hold(folder):
            raise InputError(
                f"run {str(folder)!r} is being written by another process; wait for it, or stop it"
            )
        sweep(folder)
        return folder
    logdir, name = values["logdir"], values["run_name"]
    if name in ("", "..") or (name and not (name == Path(name).name and name.isprintable())):
        raise InputError(
            f"run name {name!r} must be a plain folder name; use --logdir for its place"
        )
    if not str(logdir.absolute()).isprintable():
        raise InputError(
            f"the log folder {str(logdir)!r} has characters that TensorBoard cannot write;"
            " choose another --logdir"
        )
    default = re.sub(r"[^A-Za-z0-9._-]+", "-", default).strip("-")
    base = name or f"{default}-{time.strftime('%Y%m%d-%H%M%S')}"
    folder = logdir / base
    try:
        _made.extend(reversed([place for place in (logdir, *logdir.parents) if not place.exists()]))
        logdir.mkdir(parents=True, exist_ok=True)
        for number in itertools.count(2):
            try:
                folder.mkdir()  # only one process can
                break
            except FileExistsError:
                if name:
                    taken = f"run {str(folder)!r} exists; choose another --run-name"
                    raise InputError(taken) from None
                folder = logdir / f"{base}-{number}"
        _made.append(folder)
        hold(folder)
        write_config(folder, None, settings)
    except OSError as problem:
        raise InputError(
            f"cannot write the run folder {str(folder)!r} ({problem.strerror}); choose another"
            " --logdir"
        ) from None
    return folder


def _check_matplotlib() -> None:
    """A run ends in figures: refuse before the work what could not be drawn after it."""
    try:
        import matplotlib.figure  # noqa: F401
    except (OSError, ValueError) as error:  # a broken matplotlibrc, say
        raise InputError(
            f"matplotlib cannot be imported ({first_line(error)}); mend its matplotlibrc or unset"
            " MPLBACKEND"
        ) from None


def _give_back() -> None:
    """Take away the folders of a run that has left nothing but its settings."""
    while _made:
        folder = _made.pop()
        let_go(folder)
        with contextlib.suppress(OSError):
            if os.listdir(folder) == [CONFIG]:
                (folder / CONFIG).unlink()
            folder.rmdir()  # only where it is empty


def writable_output(path: Path) -> Path:
    """A file that numbers can be written to at the end, before any work; a link is followed."""
    target = path.resolve()
    folder = next(parent for parent in target.parents if parent.exists())
    if target.exists() and not target.is_file():
        raise InputError(f"{str(path)!r} is no ordinary file; give another for the numbers")
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise InputError(f"{str(folder)!r} cannot be written to; give another file")
    return target


def write_config(
    folder: Path,
    learner: str | None,
    settings: Any,
    dataset: Mapping[str, Any] | None = None,
    encoder: Mapping[str, Any] | None = None,
) -> None:
    """Write config.json: every setting, versions, git commit, provenance of data and encoder.

    Of a run that goes on, refuse other data than those it began with.
    """
    values = flat(settings)
    if learner is not None and "resume" in values:
        STOP.run = folder
    begun = Run(folder).config if values.get("resume") else {}
    if begun.get("learner") is None:
        versions = {name: importlib.metadata.version(name) for name in PACKAGES}
        content = {
            "learner": learner,
            "settings": values,
            "dataset": dataset,
            "encoder": encoder,
            "versions": {"maw_gym": __version__, **versions, "python": sys.version.split()[0]},
            "git_commit": _git_commit(),
        }
        write_json(folder / CONFIG, content)
        return
    if begun["learner"] != learner:
        raise InputError(f"run {str(folder)!r} is one of {begun['learner']!r}, not of {learner!r}")
    for name, now in (("dataset", dataset), ("encoder", encoder)):
        # As the file would say it now: tuples are lists there.
        if begun.get(name) != json.loads(json.dumps(now, default=str)):
            raise InputError(
                f"the {name} of run {str(folder)!r} has changed since it began; start another run"
            )


def _git_commit() -> str | None:
    """The commit of the source tree, or None outside a checkout or without git."""
    root = Path(__file__).resolve().parents[2]
    with contextlib.suppress(OSError):
        if (root / ".git").exists():
            command = ["git", "-C", str(root), "rev-parse", "HEAD"]
            return subprocess.run(command, capture_output=True, text=True).stdout.strip() or None
    return None


# --- going on --------------------------------------------------------------------------------


def settings_of(kind: type[Settings], given: Mapping[str, Any]) -> Settings:
    """The settings that a command line asks for; of a run that goes on they are its own."""
    if given.get("config") is not None:
        given = {**_settings_in_file(kind, expanded(given["config"])), **given}
    if given.get("resume") is None:
        return made(kind, given)
    folder = expanded(given["resume"])
    run = Run(folder)
    if run.config and (folder / METRICS).exists():
        raise InputError(f"run {str(folder)!r} is finished; there is nothing to go on with")
    # Where it now lies.
    places = {"resume": folder, "logdir": folder.parent, "run_name": folder.absolute().name}
    try:
        begun = made(kind, run.settings | places)
    except InputError as problem:
        learner = run.config.get("learner")
        raise InputError(f"{folder / CONFIG}: a run of {learner!r}: {problem}") from None
    for name in given.keys() - {"resume", *HOW}:
        own, other = flat(begun)[name], flat(changed(begun, **{name: given[name]}))[name]
        if own != other:
            raise InputError(
                f"{settings_in(kind)[name].flag} {other} conflicts with the run's own {own};"
                " leave the flag out, or start another run"
            )
    return changed(begun, **{name: given[name] for name in HOW if name in given})


def _settings_in_file(kind: type[Any], path: Path) -> dict[str, Any]:
    """The settings in a YAML file by the words of their flags, or in a config.json."""
    check_readable(path, "file of settings", 2_000_000)
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (ValueError, RecursionError, yaml.YAMLError) as problem:
        raise InputError(f"{path} is neither YAML nor JSON ({first_line(problem)})") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} has no settings; write one a line, such as `timesteps: 1000`")
    if isinstance(content.get("settings"), dict):  # of a run, whose place is its own
        content = {k: value for k, value in content["settings"].items() if k not in PLACES}
    known, found = settings_in(kind), dict[str, Any]()
    words = {one.flag[2:].replace("-", "_"): name for name, one in known.items()}
    for word, value in content.items():
        name = str(word).replace("-", "_")
        name = words.get(name, name)
        if name not in known:
            raise InputError(
                f"{path}: unknown setting {word!r}; {did_you_mean(name, known)}there are"
                f" {', '.join(known)}"
            )
        types = (known[name].type, *get_args(known[name].type))
        if isinstance(value, str | int) and any(get_origin(one) is tuple for one in types):
            value = [value]  # one of several, as behind a flag
        found[name] = value
    return found
