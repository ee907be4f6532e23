"""Going on with a run that was stopped: its settings come from its own config.json."""

import json
import stat
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import from_json

from maw_gym.errors import InputError
from maw_gym.files import expanded
from maw_gym.settings import one_line
from runners.experiments.command_line import word_of

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

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
