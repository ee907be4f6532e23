"""A run's folder, and the frame around every runner's main function."""

import contextlib
import importlib.metadata
import io
import json
import logging
import platform
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import tyro

from agents.sb3.stopping import STOP, Stopped
from maw_gym.errors import InputError
from maw_gym.files.cache import written_whole
from runners.experiments.resuming import check_provenance, check_same, run_settings

Settings = TypeVar("Settings")

PACKAGES = ("maw_gym", "gymnasium", "stable_baselines3", "torch", "numpy", "ir_datasets")


def run_main(settings: type[Settings], main: Callable[[Settings], None]) -> None:
    """Read the command line and run `main`; whatever ends it early is one line on stderr.

    Exit status 2 is a user's mistake, 1 numbers that are no longer finite, 130 and 143 are SIGINT
    and SIGTERM. With `--resume RUN` the run's own settings are the defaults of the command line, so
    that a flag that says something else is noticed.

    Args:
        settings: a dataclass; its docstrings are the help.
        main: the runner.
    """
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    description = sys.modules[main.__module__].__doc__
    try:
        with STOP.installed():
            told = _command_line(settings, description)
            # Learners in the environment can be resumed, and comparisons.
            resume: Path | None = getattr(told, "resume", None)
            if resume is not None:
                own = run_settings(settings, resume)
                told = _command_line(settings, description, own)
                check_same(own, told)
            main(told)
    except InputError as mistake:
        _quit(str(mistake), 2)
    except OSError as problem:
        # No permission, no space: the environment's fault, and no traceback mends it.
        _quit(f"{problem.strerror or problem}: {problem.filename or ''}".rstrip(": "), 2)
    except FloatingPointError as problem:
        _quit(str(problem), 1)
    except Stopped as stopped:
        _quit(str(stopped), stopped.status)
    except KeyboardInterrupt:
        _quit("interrupted", 130)
    finally:
        _remove_empty()


def _command_line(
    kind: type[Settings], description: str | None, default: Settings | None = None
) -> Settings:
    """The settings that the command line asks for.

    Raises:
        InputError: a flag is unknown, or its value cannot be one; what tyro draws in a box.
    """
    shown = io.StringIO()
    try:
        with contextlib.redirect_stderr(shown):
            if default is None:
                return tyro.cli(kind, description=description)
            return tyro.cli(kind, description=description, default=default)
    except SystemExit as end:
        if end.code != 2:  # the help, for instance
            raise
    # A title, what is wrong, and where the help is; rules between them, and a frame.
    lines = [line.strip("╭╮╰╯│─ ") for line in shown.getvalue().splitlines()]
    told = " ".join(line for line in lines[1:] if line.strip("-"))
    told = re.sub(r"^Error parsing \w+: ", "", told.partition("For full helptext")[0].strip())
    raise InputError(f"{told.rstrip('.')}; --help shows all flags")


# Folders that `new_run` has made in this process.
_made: list[Path] = []


def _remove_empty() -> None:
    """Take away the folders of runs that ended before they left anything."""
    while _made:
        with contextlib.suppress(OSError):
            _made.pop().rmdir()


def _quit(message: str, status: int) -> None:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    # Worker threads must not hold a failed run; buffers were written above.
    raise SystemExit(status)


def new_run(logdir: Path, name: str | None, default: str, resume: Path | None = None) -> Path:
    """Make the folder of a new run, or find that of one to go on with.

    Args:
        logdir: folder of all runs.
        name: of the run; None makes one of `default` and the time.
        default: learner, dataset and seed.
        resume: the folder of a run that was stopped, which is returned as it is.

    Raises:
        InputError: the name is not a plain folder name, is taken, or cannot be written.
    """
    if resume is not None:
        return resume
    plain = name is None or (
        name == Path(name).name and name.isprintable() and name not in ("", ".", "..")
    )
    if not plain:
        raise InputError(
            f"run name {name!r} must be a plain folder name; use --logdir for its place"
        )
    stamp = time.strftime("%Y%m%d-%H%M%S")
    folder = logdir / (name or f"{re.sub(r'[^A-Za-z0-9._-]+', '-', default).strip('-')}-{stamp}")
    if (folder / "config.json").exists():
        raise InputError(f"run {str(folder)!r} exists; choose another --run-name")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            stack.callback((folder / ".probe").unlink, missing_ok=True)
            (folder / ".probe").touch()
        _made.append(folder)
    except OSError as problem:
        raise InputError(
            f"cannot write the run folder {str(folder)!r} ({problem.strerror}); choose another"
            " --logdir"
        ) from None
    return folder


def write_json(path: Path, content: Any) -> None:
    """Write JSON, whole or not at all."""
    with written_whole(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2, default=str) + "\n", encoding="utf-8")


def write_config(
    folder: Path,
    learner: str,
    settings: Any,
    dataset: Mapping[str, Any],
    encoder: Mapping[str, Any],
) -> None:
    """Write config.json: every setting, versions, git commit, provenance of data and encoder.

    A run that goes on keeps the one it has.

    Raises:
        InputError: the run was made by another learner, or its dataset or encoder has changed.
    """
    assert is_dataclass(settings)
    if hasattr(settings, "resume"):
        STOP.advice = f"go on with --resume {folder}"
    if getattr(settings, "resume", None) is not None:
        check_provenance(folder, learner, dataset, encoder)
        return
    write_json(
        folder / "config.json",
        {
            "learner": learner,
            "settings": asdict(settings),  # type: ignore[arg-type]
            "dataset": dataset,
            "encoder": encoder,
            "versions": {name: _version(name) for name in PACKAGES}
            | {"python": platform.python_version()},
            "git_commit": git_commit(),
        },
    )


def _version(package: str) -> str | None:
    """The installed version; None where a checkout is run without being installed."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def git_commit() -> str | None:
    """The commit of the source tree, or None outside a checkout."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


class Stopwatch:
    """Seconds of each stage of a run, for the `wall_seconds` of metrics.json."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage and tell the user that it runs."""
        print(f"{name} ...", file=sys.stderr, flush=True)
        start = time.perf_counter()
        yield
        self.seconds[name] = round(time.perf_counter() - start, 3)
