"""From a dataclass of settings to a command line, and back to what was given there.

Each field is a flag. Values go to the dataclass as they are typed; its fields check them. Only what
was given is returned, so that the settings of a run that goes on need not be guessed from defaults.
"""

import argparse
import shlex
import types
from collections.abc import Sequence
from dataclasses import MISSING, Field, fields
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from maw_gym.errors import InputError
from maw_gym.settings import described


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; --help shows all flags")


def given_flags(
    kind: type[Any], description: str | None, arguments: Sequence[str] | None = None
) -> dict[str, Any]:
    """What a command line says of the settings, by name.

    Args:
        kind: dataclass of settings.
        description: stands above the help.
        arguments: the command line's words; None are the program's.

    Raises:
        InputError: an unknown flag, or one without its value.
    """
    parser = _Parser(
        description=description,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    hints, texts = get_type_hints(kind), described(kind)
    for field in fields(kind):
        flag = "--" + field.name.replace("_", "-")
        options = _options(hints[field.name], field)
        default = _default(field)
        shown = " ".join(map(str, default)) if isinstance(default, tuple) else default
        text = texts.get(field.name, "")
        if default is not MISSING:
            text += f" (default: {shown})"
        parser.add_argument(flag, help=text.replace("%", "%%"), **options)
    given = vars(parser.parse_args(arguments))
    optional = {name for name, hint in hints.items() if type(None) in get_args(hint)}
    return {
        name: None if value == "None" and name in optional else value
        for name, value in given.items()
    }


def _options(hint: Any, field: "Field[Any]") -> dict[str, Any]:
    """How argparse takes the words of a type."""
    if get_origin(hint) in (Union, types.UnionType):
        (hint, *more) = [one for one in get_args(hint) if one is not type(None)]
        assert not more, field.name
    elif hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    options: dict[str, Any] = {"required": _default(field) is MISSING}
    if get_origin(hint) is tuple:
        hint, *more = get_args(hint)
        options["nargs"] = "*" if more == [Ellipsis] else 1 + len(more)
    if get_origin(hint) is Literal:
        return options | {"metavar": "{" + ",".join(map(str, get_args(hint))) + "}"}
    return options | {"metavar": "TEXT" if hint is str else hint.__name__.upper()}


def _default(field: "Field[Any]") -> Any:
    if field.default_factory is not MISSING:
        return field.default_factory()
    return field.default


def command_of(runner: str, settings: Any) -> str:
    """The command that has these settings, without those of the machine and what is default."""
    words = []
    for field in fields(settings):
        value = getattr(settings, field.name)
        if field.name in ("logdir", "run_name", "resume") or value == _default(field):
            continue
        flag = field.name.replace("_", "-")
        values = value if isinstance(value, tuple) else (value,)
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            words += [f"--{flag}", *map(str, values)]
    return f"python runners/{runner}.py {shlex.join(words)}".rstrip()
