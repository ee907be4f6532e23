"""From a dataclass of settings to a command line, and back to what was given there.

A field is a flag, or a section: a dataclass of settings whose fields are flags beside the others.
Command lines and config.json are flat; `made` and `flat` go from flat values to settings and back.

`--help` fits on a screen: it shows the flags that the dataclass names in `main_flags`, in two
lines each at most. `--help-all` shows all, with everything there is to say about them. A dataclass
that names none has one help with all.
"""

import argparse
import difflib
import shlex
import textwrap
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
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

OPTIONS: Final = "[--flag VALUE ...]"
TWO_LINES: Final = 98  # characters of a flag's text in the short help
PLACES: Final = ("logdir", "run_name", "resume")  # where a run lies: no part of its command


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
    """A field that is a flag.

    Attributes:
        type: without what `Annotated` says of it.
        default: MISSING where it has to be given.
        about: the text below it.
        word: what is typed: its flag, or a word in capitals that stands for the value.
        positional: see `Flag`.
    """

    type: Any
    default: Any
    about: str
    word: str
    positional: bool


def settings_in(kind: type[Any]) -> dict[str, Setting]:
    """All flags of a dataclass by name, those of its sections among them."""
    found: dict[str, Setting] = {}
    hints, types_of = get_type_hints(kind, include_extras=True), get_type_hints(kind)
    texts = described(kind)
    for field in fields(kind):
        hint, name = hints[field.name], field.name
        more = _section(hint)
        if not more:
            told = next((one for one in get_args(hint) if isinstance(one, Flag)), Flag())
            word = "--" + (told.word or name).replace("_", "-")
            factory = field.default_factory
            default = field.default if factory is MISSING else factory()
            text, word = texts.get(name, ""), name.upper() if told.positional else word
            more = {name: Setting(types_of[name], default, text, word, told.positional)}
        assert not found.keys() & more.keys(), (kind, found.keys() & more.keys())
        found |= more
    return found


def _section(hint: Any) -> dict[str, Setting]:
    """The flags of a field that is a section."""
    kind, *more = get_args(hint) if get_origin(hint) is not None else (hint,)
    if not (isinstance(kind, type) and is_dataclass(kind)):
        return {}
    told = next((one for one in more if isinstance(one, Section)), Section())
    return {
        name: one
        for name, one in settings_in(kind).items()
        if name not in told.without and (not told.only or name in told.only)
    }


def made(kind: type[Kind], values: Mapping[str, Any] | None = None, /, **more: Any) -> Kind:
    """Settings from flat values, as they are typed or as JSON has them; the rest are defaults."""
    values, known = {**(values or {}), **more}, settings_in(kind)
    if unknown := sorted(values.keys() - known.keys()):
        raise InputError(f"unknown setting {unknown[0]!r} of {kind.__name__}")
    given: dict[str, Any] = {}
    hints = get_type_hints(kind, include_extras=True)
    for field in fields(kind):  # type: ignore[arg-type]
        hint = hints[field.name]
        if section := _section(hint):
            part = {name: values[name] for name in section if name in values}
            of = get_args(hint)[0] if get_origin(hint) is not None else hint
            given[field.name] = made(of, part)
        elif field.name in values:
            try:
                given[field.name] = TypeAdapter(hint).validate_python(values[field.name])
            except ValidationError as error:
                raise InputError(one_line(error, field.name)) from None
    try:
        return kind(**given)
    except ValidationError as error:  # of a dataclass that knows no InputError
        raise InputError(one_line(error)) from None


def flat(settings: Any) -> dict[str, Any]:
    """The values of settings by name, without their sections."""
    values: dict[str, Any] = {}
    hints = get_type_hints(type(settings), include_extras=True)
    for field in fields(settings):
        value, section = getattr(settings, field.name), _section(hints[field.name])
        if section:
            values |= {name: one for name, one in flat(value).items() if name in section}
        else:
            values[field.name] = value
    return values


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
    known, about = settings_in(kind), description or ""
    parser = _Parser(
        prog=program, allow_abbrev=False, argument_default=argparse.SUPPRESS, add_help=False
    )
    for name, one in known.items():
        parser.add_argument(_flag(name, one), dest=name, **_options(one.type))
    positional = [name for name, one in known.items() if one.positional]
    if positional:
        parser.add_argument("words", nargs="*")
    names: Sequence[str] = getattr(kind, "main_flags", ())
    parser.add_argument(
        "-h", "--help", action=_Show, text=lambda: _help(kind, program, about, names)
    )
    parser.add_argument("--help-all", action=_Show, text=lambda: _help(kind, program, about))
    parse = parser.parse_known_intermixed_args if positional else parser.parse_known_args
    found, unknown = parse(arguments)
    given = vars(found)
    words = given.pop("words", None) or []
    for name in positional:
        if words and name not in given:
            given[name] = words.pop(0)
    if unknown := [*words, *unknown]:
        parser.error(f"unrecognized arguments: {shlex.join(unknown)}{_close(unknown, known)}")
    required = [name for name, one in known.items() if one.default is MISSING]
    if missing := [known[name].word for name in required if name not in given]:
        parser.error(f"the following arguments are required: {', '.join(missing)}")
    return {
        name: None if value == "None" and type(None) in get_args(known[name].type) else value
        for name, value in given.items()
    }


def command_of(runner: str, settings: Any) -> str:
    """The command that has these settings, without those of the machine and what is default."""
    words = []
    known = settings_in(type(settings))
    for name, value in flat(settings).items():
        if name in PLACES or value == known[name].default:
            continue
        flag = known[name].word
        values = value if isinstance(value, tuple) else (value,)
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag.removeprefix('--')}")
        else:
            words += [flag, *map(str, values)]
    return f"python runners/{runner}.py {shlex.join(words)}".rstrip()


def _close(unknown: Sequence[str], known: Mapping[str, Setting]) -> str:
    """A question after the flag that was meant instead of the first unknown one."""
    first = next((word.partition("=")[0] for word in unknown if word.startswith("--")), "")
    flags = [_flag(name, one) for name, one in known.items()]
    close = difflib.get_close_matches(first, flags, n=1, cutoff=0.75) if first else []
    return f"; did you mean {close[0]}?" if close else ""


def _flag(name: str, setting: Setting) -> str:
    return "--" + name.replace("_", "-") if setting.positional else setting.word


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; --help-all shows all flags")


class _Show(argparse.Action):
    """Prints a text and ends."""

    def __init__(
        self, option_strings: Sequence[str], dest: str, text: Callable[[], str], **others: Any
    ) -> None:
        super().__init__(option_strings, dest, nargs=0, **others)
        self.text = text

    def __call__(self, parser: Any, namespace: Any, values: Any, option: str | None = None) -> None:
        print(self.text(), end="")
        raise SystemExit(0)


def _help(kind: type[Any], program: str | None, description: str, names: Sequence[str] = ()) -> str:
    """The help, of some flags in two lines each or of all with everything that there is to say."""
    known = settings_in(kind)
    positional = [name for name, one in known.items() if one.positional]
    usage = [known[name].word for name in positional]
    usage += [
        f"{one.word} VALUE"
        for name, one in known.items()
        if one.default is MISSING and name not in positional
    ]
    form = argparse.HelpFormatter if names else argparse.RawDescriptionHelpFormatter
    page = _Parser(
        prog=program,
        usage=" ".join(["%(prog)s", *usage, OPTIONS]),
        description=description.partition("\n\n")[0] if names else description,
        formatter_class=lambda prog: form(prog, max_help_position=26),
        add_help=False,
    )
    first, group = page.add_argument_group("arguments"), page.add_argument_group("flags")
    shown = [*positional, *names] if names else list(known)
    for name in shown:
        one = known[name]
        value = " ".join(map(str, one.default)) if isinstance(one.default, tuple) else one.default
        end = "" if value is MISSING else f" (default: {value})"
        text = one.about
        if names:
            end = "" if str(value) in ("None", "False") else end
            text = textwrap.shorten(text.partition(";")[0], TWO_LINES - len(end), placeholder=" …")
        text = (text + end).replace("%", "%%")
        if name in positional:
            first.add_argument(name, metavar=one.word, help=text)
        else:
            group.add_argument(one.word, help=text, **_options(one.type))
    if rest := len(known) - len(shown):
        about = f"show the other {rest} flags too, and more about each"
        group.add_argument("--help-all", action="store_true", help=about)
    return page.format_help()


def _options(hint: Any) -> dict[str, Any]:
    """How argparse takes the words of a type."""
    if get_origin(hint) in (Union, types.UnionType):
        (hint, *more) = [one for one in get_args(hint) if one is not type(None)]
        assert not more, hint
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
