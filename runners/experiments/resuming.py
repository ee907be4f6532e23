"""Going on with a run that was stopped: its settings come from its own config.json."""

import json
import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from maw_gym.errors import InputError

Settings = TypeVar("Settings")

LARGEST = 50_000_000  # bytes of a config.json; written ones have some 10,000


def run_settings(kind: type[Settings], run: Path) -> Settings:
    """The settings of a run, with `resume`, `logdir` and `run_name` where the run now lies.

    Args:
        kind: dataclass of the runner's settings.
        run: folder of the run.

    Raises:
        InputError: there is no such run, it is finished, it was made by another runner, or its
            config.json is damaged.
    """
    run = run.expanduser()
    config = read_config(run)
    if (run / "metrics.json").exists():
        raise InputError(f"run {str(run)!r} is finished; there is nothing to go on with")
    given = config.get("settings")
    if not isinstance(given, dict):
        raise InputError(f"{run / 'config.json'} has no settings; give the folder of another run")
    known = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    for name in sorted(set(given) ^ known):
        raise InputError(
            f"run {str(run)!r} was made by {config.get('learner')!r} of another runner or version:"
            f" setting {name!r} is {'missing' if name in known else 'unknown'}"
        )
    try:
        settings: Any = _value(kind, given)
    except (TypeError, ValueError) as error:
        raise InputError(f"{run / 'config.json'}: impossible settings ({error})") from None
    folder = run.absolute()
    place = {"resume": run, "logdir": run.parent, "run_name": folder.name}
    return replace(settings, **place)


def read_config(run: Path) -> dict[str, Any]:
    """The config.json of a run.

    Raises:
        InputError: it is not there, or not what a run leaves.
    """
    path = run / "config.json"
    try:
        if path.stat().st_size > LARGEST:
            raise InputError(f"{path} is larger than any run's; give the folder of a run")
        config = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        raise InputError(
            f"no run with a config.json in {str(run)!r}; if it was stopped before its training"
            " began, start it anew"
        ) from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is not JSON ({error}); give the folder of a run") from None
    if not isinstance(config, dict):
        raise InputError(f"{path} is not a run's config.json; give the folder of a run")
    return config


def check_same(own: Any, told: Any) -> None:
    """Refuse flags that say something else than the run that goes on.

    Raises:
        InputError: a setting of the command line differs from the run's.
    """
    for field in fields(own):
        mine, other = getattr(own, field.name), getattr(told, field.name)
        if is_dataclass(mine):
            check_same(mine, other)
        elif mine != other:
            flag = "--" + field.name.replace("_", "-")
            raise InputError(
                f"{flag} {other} conflicts with the run's own {mine}; leave the flag out, or start"
                " another run"
            )


def check_provenance(
    run: Path, learner: str, dataset: Mapping[str, Any], encoder: Mapping[str, Any]
) -> None:
    """Refuse to go on with other data than those a run began with.

    Raises:
        InputError: the run was made by another learner, or its dataset or encoder has changed.
    """
    config = read_config(run)
    if config.get("learner") != learner:
        raise InputError(
            f"run {str(run)!r} is one of {config.get('learner')!r}, not of {learner!r}"
        )
    for name, now in (("dataset", dataset), ("encoder", encoder)):
        # As the file would say it now: tuples are lists there.
        if config.get(name) != json.loads(json.dumps(now, default=str)):
            raise InputError(
                f"the {name} of run {str(run)!r} has changed since it began; start another run"
            )


def _value(hint: Any, given: Any) -> Any:
    """A JSON value as the type that a setting has.

    Raises:
        TypeError: it is of another type.
    """
    if is_dataclass(hint):
        assert isinstance(hint, type)
        if not isinstance(given, dict):
            raise TypeError(f"{hint.__name__} must be an object, got {given!r}")
        hints = get_type_hints(hint)
        return hint(**{name: _value(hints[name], value) for name, value in given.items()})
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        if given is None and type(None) in arguments:
            return None
        (hint,) = (argument for argument in arguments if argument is not type(None))
        return _value(hint, given)
    if origin is tuple:
        if not isinstance(given, list):
            raise TypeError(f"expected a list, got {given!r}")
        kinds = arguments[:1] * len(given) if arguments[-1] is Ellipsis else arguments
        return tuple(_value(kind, value) for kind, value in zip(kinds, given, strict=True))
    if hint is Path and isinstance(given, str):
        return Path(given)
    if hint is float and type(given) is int:
        return float(given)
    if type(given) is not hint:
        raise TypeError(f"expected {getattr(hint, '__name__', hint)}, got {given!r}")
    return given
