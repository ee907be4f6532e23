"""From a dataclass of settings to a command line, and back.

A field is a flag, or a section: one whose default is a dataclass, whose fields are flags beside the
others. Command lines and config.json are flat; `made` and `flat` go from flat values to settings
and back. `--help` begins with the flags that the dataclass names in `main_flags`.
"""

import argparse
import shlex
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass, replace
from typing import (
    Any,
    Literal,
    NamedTuple,
    NoReturn,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

from pydantic import TypeAdapter, ValidationError

from maw_gym.errors import InputError, did_you_mean
from maw_gym.settings import described, one_line

Kind = TypeVar("Kind")


@dataclass(frozen=True)
class Flag:
    """In a field's annotation: how it is typed where that is not `--name VALUE`."""

    word: str | None = None
    positional: bool = False


@dataclass(frozen=True)
class Section:
    """In a section's annotation: which of its fields are flags; the others keep their defaults."""

    only: tuple[str, ...] = ()
    without: tuple[str, ...] = ()


class Setting(NamedTuple):
    """A field that is a flag: its check, type, value, text and word, and the way to it."""

    hint: Any
    type: Any
    value: Any  # MISSING: it has to be given
    about: str
    flag: str
    positional: bool
    path: tuple[str, ...]


def settings_in(kind: Any) -> dict[str, Setting]:
    """All flags of a dataclass (with its defaults) or of settings (with their values) by name."""
    found: dict[str, Setting] = {}
    of = kind if isinstance(kind, type) else type(kind)
    hints, types_of = get_type_hints(of, include_extras=True), get_type_hints(of)
    texts = described(of)
    for field in fields(kind):
        name, value = field.name, getattr(kind, field.name, MISSING)
        more = getattr(hints[name], "__metadata__", ())
        if is_dataclass(value):
            told = next((one for one in more if isinstance(one, Section)), Section())
            for inner, one in settings_in(value).items():
                if inner not in told.without and (not told.only or inner in told.only):
                    found[inner] = one._replace(path=(name, *one.path))
            continue
        if value is None and any(map(is_dataclass, get_args(types_of[name]))):
            continue  # a section that is left out
        typed = next((one for one in more if isinstance(one, Flag)), Flag())
        flag = "--" + (typed.word or name).replace("_", "-")
        about = texts.get(name, "")
        found[name] = Setting(
            hints[name], types_of[name], value, about, flag, typed.positional, (name,)
        )
    return found


def made(kind: type[Kind], values: Mapping[str, Any] | None = None, /, **more: Any) -> Kind:
    """Settings from flat values, as they are typed or as JSON has them; the rest are defaults."""
    return cast(Kind, _with(kind, {**(values or {}), **more}))


def changed(settings: Kind, **values: Any) -> Kind:
    """The settings with other values of some flags, whatever sections they are in."""
    return cast(Kind, _with(settings, values))


def _with(base: Any, values: Mapping[str, Any]) -> Any:
    known, tree = settings_in(base), dict[str, Any]()
    for name, value in values.items():
        if name not in known:
            raise InputError(
                f"unknown setting {name!r}; {did_you_mean(name, known)}there are {', '.join(known)}"
            )
        try:
            checked = TypeAdapter(known[name].hint).validate_python(value)
        except ValidationError as error:
            raise InputError(one_line(error, name)) from None
        section, (*path, last) = tree, known[name].path
        for part in path:
            section = section.setdefault(part, {})
        section[last] = checked
    return _built(base, tree)


def _built(base: Any, tree: Mapping[str, Any]) -> Any:
    """A dataclass, or settings, with other values; those of each section in a dictionary."""
    values = {}
    for name, value in tree.items():
        before = getattr(base, name, None)
        values[name] = _built(before, value) if is_dataclass(before) else value
    try:
        return base(**values) if isinstance(base, type) else replace(base, **values)
    except ValidationError as error:  # of a dataclass that knows no InputError
        raise InputError(one_line(error)) from None


def flat(settings: Any) -> dict[str, Any]:
    """The values of settings by name, without their sections."""
    return {name: one.value for name, one in settings_in(settings).items()}


def given_flags(
    kind: type[Any],
    description: str | None,
    arguments: Sequence[str] | None = None,
    program: str | None = None,
) -> dict[str, Any]:
    """What a command line says of the settings, by name; see `made`."""
    known = settings_in(kind)
    positional = [name for name, one in known.items() if one.positional]
    parser = _Parser(
        prog=program,
        usage=" ".join(["%(prog)s", *map(str.upper, positional), "[--flag VALUE ...]"]),
        description=description,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(
            prog, max_help_position=26
        ),
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    main = [name for name in getattr(kind, "main_flags", ()) if name in known]
    rest = [name for name in known if name not in (*positional, *main)]
    for title, names in (
        ("arguments, in this order or by their flags", positional),
        ("flags that are used most", main),
        ("all other flags", rest),
    ):
        group = parser.add_argument_group(title)
        for name in names:
            group.add_argument(known[name].flag, dest=name, **_options(known[name]))
    if positional:
        parser.add_argument("words", nargs="*", help=argparse.SUPPRESS)
    found, unknown = parser.parse_known_intermixed_args(arguments)
    given = vars(found)
    words = given.pop("words", None) or []
    for name in positional:
        if words and name not in given:
            given[name] = words.pop(0)
    if unknown := [*words, *unknown]:
        first = next((word.partition("=")[0] for word in unknown if word.startswith("--")), "")
        close = did_you_mean(first, [one.flag for one in known.values()])
        parser.error(f"unrecognized arguments: {shlex.join(unknown)}; {close}".rstrip("; "))
    required = [name for name, one in known.items() if one.value is MISSING]
    if missing := [name.upper() for name in required if name not in given]:
        parser.error(f"the following arguments are required: {', '.join(missing)}")
    return {
        name: None if value == "None" and type(None) in get_args(known[name].type) else value
        for name, value in given.items()
    }


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; --help shows all flags")


def _options(setting: Setting) -> dict[str, Any]:
    """How argparse takes the words of a setting, and its help."""
    hint, default = setting.type, setting.value
    about = setting.about
    if default is not MISSING and default is not None:
        value = " ".join(map(str, default)) if isinstance(default, tuple) else default
        about += f" (default: {'none' if value == '' else value})"
    options: dict[str, Any] = {"help": about.replace("%", "%%")}
    if hint is bool:
        return options | {"action": argparse.BooleanOptionalAction}
    if get_origin(hint) in (Union, types.UnionType):
        (hint,) = (one for one in get_args(hint) if one is not type(None))
    if get_origin(hint) is tuple:
        hint, *more = get_args(hint)
        options["nargs"] = "+" if more == [Ellipsis] else 1 + len(more)
    if get_origin(hint) is Literal:
        choices = "{" + ",".join(map(str, get_args(hint))) + "}"
        # argparse writes it twice for a list: (first, others).
        return options | {"metavar": (choices, "") if options.get("nargs") == "+" else choices}
    return options | {"metavar": "TEXT" if hint is str else hint.__name__.upper()}
