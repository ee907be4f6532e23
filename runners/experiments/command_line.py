"""From a dataclass of settings to a command line, and back.

A field is a flag, or a section: a dataclass whose fields are flags beside the others. Command lines
and config.json are flat; `made` and `flat` go from flat values to settings and back.

`--help` fits on a screen: it shows the flags that the dataclass names in `main_flags`, in two
lines each at most. `--help-all` shows all, with everything there is to say about them.
"""

import argparse
import difflib
import shlex
import sys
import textwrap
import types
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import reduce
from typing import (
    Any,
    Final,
    Literal,
    NamedTuple,
    NoReturn,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from pydantic import TypeAdapter, ValidationError

from maw_gym.errors import InputError
from maw_gym.settings import described, one_line

Kind = TypeVar("Kind")

TWO_LINES: Final = 98  # characters of a flag's text in the short help
PLACES: Final = ("logdir", "run_name", "resume", "config")  # no part of what a run is


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
    """A field that is a flag: how it is checked and typed, and the path of attributes to it."""

    hint: Any
    type: Any
    default: Any  # MISSING: it has to be given
    about: str
    flag: str
    positional: bool
    path: tuple[str, ...]

    @property
    def word(self) -> str:
        """What messages call it: a positional one by its name in capitals."""
        return self.path[-1].upper() if self.positional else self.flag


def settings_in(kind: type[Any]) -> dict[str, Setting]:
    """All flags of a dataclass by name, those of its sections among them."""
    found: dict[str, Setting] = {}
    hints, types_of = get_type_hints(kind, include_extras=True), get_type_hints(kind)
    texts = described(kind)
    for field in fields(kind):
        name, hint, of = field.name, hints[field.name], types_of[field.name]
        more = getattr(hint, "__metadata__", ())
        if is_dataclass(of):
            told = next((one for one in more if isinstance(one, Section)), Section())
            for inner, one in settings_in(of).items():  # type: ignore[arg-type]
                if inner not in told.without and (not told.only or inner in told.only):
                    found[inner] = one._replace(path=(name, *one.path))
            continue
        typed = next((one for one in more if isinstance(one, Flag)), Flag())
        flag = "--" + (typed.word or name).replace("_", "-")
        make = field.default_factory
        default = field.default if make is MISSING else make()
        about = texts.get(name, "")
        found[name] = Setting(hint, of, default, about, flag, typed.positional, (name,))
    return found


def made(kind: type[Kind], values: Mapping[str, Any] | None = None, /, **more: Any) -> Kind:
    """Settings from flat values, as they are typed or as JSON has them; the rest are defaults."""
    known, tree = settings_in(kind), dict[str, Any]()
    for name, value in {**(values or {}), **more}.items():
        if name not in known:
            raise InputError(f"unknown setting {name!r} of {kind.__name__}")
        try:
            checked = TypeAdapter(known[name].hint).validate_python(value)
        except ValidationError as error:
            raise InputError(one_line(error, name)) from None
        section, (*path, last) = tree, known[name].path
        for part in path:
            section = section.setdefault(part, {})
        section[last] = checked
    return _built(kind, tree)


def _built(kind: type[Kind], tree: Mapping[str, Any]) -> Kind:
    """A dataclass of checked values, those of each section in a dictionary."""
    types_of = get_type_hints(kind)
    given = {
        name: _built(types_of[name], value) if is_dataclass(types_of[name]) else value
        for name, value in tree.items()
    }
    try:
        return kind(**given)
    except ValidationError as error:  # of a dataclass that knows no InputError
        raise InputError(one_line(error)) from None


def flat(settings: Any) -> dict[str, Any]:
    """The values of settings by name, without their sections."""
    known = settings_in(type(settings))
    return {name: reduce(getattr, one.path, settings) for name, one in known.items()}


def changed(settings: Kind, **values: Any) -> Kind:
    """The settings with other values of some flags, whatever sections they are in."""
    return made(type(settings), flat(settings), **values)


def given_flags(
    kind: type[Any],
    description: str | None,
    arguments: Sequence[str] | None = None,
    program: str | None = None,
) -> dict[str, Any]:
    """What a command line says of the settings, by name; see `made`."""
    known = settings_in(kind)
    arguments = sys.argv[1:] if arguments is None else arguments
    if asked := {"-h", "--help", "--help-all"} & set(arguments):
        names = () if "--help-all" in asked else getattr(kind, "main_flags", ())
        print(_help(known, program, description or "", names), end="")
        raise SystemExit(0)
    parser = _Parser(
        prog=program, allow_abbrev=False, argument_default=argparse.SUPPRESS, add_help=False
    )
    for name, one in known.items():
        parser.add_argument(one.flag, dest=name, **_options(one.type))
    if any(one.positional for one in known.values()):
        parser.add_argument("words", nargs="*")
    found, unknown = parser.parse_known_intermixed_args(arguments)
    given = vars(found)
    words = given.pop("words", None) or []
    for name, one in known.items():
        if one.positional and words and name not in given:
            given[name] = words.pop(0)
    if unknown := [*words, *unknown]:
        first = next((word.partition("=")[0] for word in unknown if word.startswith("--")), "")
        close = difflib.get_close_matches(first, [one.flag for one in known.values()], 1, 0.75)
        hint = f"; did you mean {close[0]}?" if close else ""
        parser.error(f"unrecognized arguments: {shlex.join(unknown)}{hint}")
    required = [name for name, one in known.items() if one.default is MISSING]
    if missing := [known[name].word for name in required if name not in given]:
        parser.error(f"the following arguments are required: {', '.join(missing)}")
    return {
        name: None if value == "None" and type(None) in get_args(known[name].type) else value
        for name, value in given.items()
    }


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; --help-all shows all flags")


def _help(
    known: Mapping[str, Setting], program: str | None, about: str, names: Sequence[str]
) -> str:
    """The help: of these flags in two lines each or, without names, of all with all there is."""
    positional = [name for name, one in known.items() if one.positional]
    form = argparse.HelpFormatter if names else argparse.RawDescriptionHelpFormatter
    page = _Parser(
        prog=program,
        usage=" ".join(
            ["%(prog)s", *(known[name].word for name in positional), "[--flag VALUE ...]"]
        ),
        description=about.partition("\n\n")[0] if names else about,
        formatter_class=lambda prog: form(prog, max_help_position=26),
        add_help=False,
    )
    first, flags = page.add_argument_group("arguments"), page.add_argument_group("flags")
    shown = [*positional, *names] if names else list(known)
    for name in shown:
        one = known[name]
        value = " ".join(map(str, one.default)) if isinstance(one.default, tuple) else one.default
        end, text = "" if value is MISSING else f" (default: {value})", one.about
        if names:
            end = "" if value is None or value is False else end
            text = textwrap.shorten(text.partition(";")[0], TWO_LINES - len(end), placeholder=" …")
        text = (text + end).replace("%", "%%")
        if one.positional:
            first.add_argument(name, metavar=one.word, help=text)
        else:
            flags.add_argument(one.flag, help=text, **_options(one.type))
    if rest := len(known) - len(shown):
        text = f"show the other {rest} flags too, and more about each"
        flags.add_argument("--help-all", action="store_true", help=text)
    return page.format_help()


def _options(hint: Any) -> dict[str, Any]:
    """How argparse takes the words of a type."""
    if get_origin(hint) in (Union, types.UnionType):
        (hint,) = (one for one in get_args(hint) if one is not type(None))
    elif hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    options: dict[str, Any] = {}
    if get_origin(hint) is tuple:
        hint, *more = get_args(hint)
        options["nargs"] = "+" if more == [Ellipsis] else 1 + len(more)
    if get_origin(hint) is Literal:
        choices = "{" + ",".join(map(str, get_args(hint))) + "}"
        # argparse writes it twice for a list: (first, others).
        return options | {"metavar": (choices, "") if options.get("nargs") == "+" else choices}
    return options | {"metavar": "TEXT" if hint is str else hint.__name__.upper()}


def command_of(runner: str, settings: Any) -> str:
    """The command that has these settings, without those of the machine and what is default."""
    words, known = [], settings_in(type(settings))
    for name, value in flat(settings).items():
        if name in PLACES or value == known[name].default:
            continue
        flag = known[name].flag
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        else:
            words += [flag, *map(str, value if isinstance(value, tuple) else (value,))]
    return f"python runners/{runner}.py {shlex.join(words)}".rstrip()
