"""From a dataclass of settings to a command line, and back to what was given there.

Each field is a flag. Values go to the dataclass as they are typed; its fields check them. Only what
was given is returned, so that the settings of a run that goes on need not be guessed from defaults.

`--help` fits on a screen: it shows the fields that the dataclass names in `main_flags`, in two
lines each at most. `--help-all` shows all, with everything there is to say about them. A dataclass
that names none has one help with all.
"""

import argparse
import shlex
import sys
import textwrap
import types
from collections.abc import Callable, Iterable, Sequence
from dataclasses import MISSING, Field, dataclass, fields
from typing import Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from maw_gym.errors import InputError
from maw_gym.settings import described

OPTIONS = "[--flag VALUE ...]"
TWO_LINES = 98  # characters of a flag's text in the short help


@dataclass(frozen=True)
class Flag:
    """In a field's annotation: how it is typed where that is not `--name VALUE`.

    Attributes:
        word: of the flag; the field's name unless given.
        old: words that it had once; they work, and say which is the right one.
        positional: it is typed without its flag, though that works too.
    """

    word: str | None = None
    old: tuple[str, ...] = ()
    positional: bool = False


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}; --help-all shows all flags")


class _Old(argparse.Action):
    """Stores as ever, and says which word is the right one."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option: str | None = None) -> None:
        print(f"{option} is {self.metavar} now", file=sys.stderr)
        setattr(namespace, self.dest, values)


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


def given_flags(
    kind: type[Any],
    description: str | None,
    arguments: Sequence[str] | None = None,
    program: str | None = None,
) -> dict[str, Any]:
    """What a command line says of the settings, by name.

    Args:
        kind: dataclass of settings.
        description: stands above the help; its first paragraph above the short one.
        arguments: the command line's words; None are the program's.
        program: how the help calls the program; None is the name of its file.

    Raises:
        InputError: an unknown flag, or one without its value.
    """
    flags, hints = flags_of(kind), get_type_hints(kind)
    positional = [name for name, flag in flags.items() if flag.positional]
    parser = _parser(kind, fields(kind), program)
    for field in fields(kind):
        for old in flags[field.name].old:
            options = _options(hints[field.name]) | {"metavar": word_of(kind, field.name)}
            parser.add_argument(f"--{old}", dest=field.name, action=_Old, **options)
    if positional:
        parser.add_argument("words", nargs="*")
    about = description or ""
    names: Sequence[str] = getattr(kind, "main_flags", ())
    parser.add_argument(
        "-h", "--help", action=_Show, text=lambda: _help(kind, program, about, names)
    )
    parser.add_argument("--help-all", action=_Show, text=lambda: _help(kind, program, about))
    parse = parser.parse_intermixed_args if positional else parser.parse_args
    given = vars(parse(arguments))
    words = given.pop("words", None) or []
    for name in positional:
        if words and name not in given:
            given[name] = words.pop(0)
    if words:
        parser.error(f"unrecognized arguments: {shlex.join(words)}")
    required = {field.name for field in fields(kind) if _default(field) is MISSING}
    if missing := [word_of(kind, name) for name in flags if name in required - given.keys()]:
        parser.error(f"the following arguments are required: {', '.join(missing)}")
    optional = {name for name, hint in hints.items() if type(None) in get_args(hint)}
    return {
        name: None if value == "None" and name in optional else value
        for name, value in given.items()
    }


def flags_of(kind: type[Any]) -> dict[str, Flag]:
    """How each field is typed."""
    hints = get_type_hints(kind, include_extras=True)
    return {
        field.name: next(
            (extra for extra in get_args(hints[field.name]) if isinstance(extra, Flag)), Flag()
        )
        for field in fields(kind)
    }


def word_of(kind: type[Any], name: str) -> str:
    """What is typed for a field: its flag, or a word in capitals that stands for the value."""
    flag = flags_of(kind)[name]
    if flag.positional:
        return name.upper()
    return "--" + (flag.word or name).replace("_", "-")


def _parser(kind: type[Any], shown: Iterable["Field[Any]"], program: str | None) -> _Parser:
    """A parser of some fields' flags, without help."""
    parser = _Parser(
        prog=program,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        add_help=False,
    )
    hints, flags = get_type_hints(kind), flags_of(kind)
    for field in shown:
        word = (flags[field.name].word or field.name).replace("_", "-")
        parser.add_argument(f"--{word}", dest=field.name, **_options(hints[field.name]))
    return parser


def _help(kind: type[Any], program: str | None, description: str, names: Sequence[str] = ()) -> str:
    """The help, of some flags in two lines each or of all with everything that there is to say."""
    flags, hints, texts = flags_of(kind), get_type_hints(kind), described(kind)
    own = {field.name: field for field in fields(kind)}
    required = [name for name, field in own.items() if _default(field) is MISSING]
    positional = [name for name, flag in flags.items() if flag.positional]
    usage = [name.upper() for name in positional]
    usage += [f"{word_of(kind, name)} VALUE" for name in required if name not in positional]
    page = _Parser(
        prog=program,
        usage=" ".join(["%(prog)s", *usage, OPTIONS]),
        description=description.partition("\n\n")[0] if names else description,
        formatter_class=_Short if names else _Full,
        add_help=False,
    )
    first, group = page.add_argument_group("arguments"), page.add_argument_group("flags")
    shown = [*positional, *names] if names else list(own)
    for name in shown:
        text, default = texts.get(name, ""), _default(own[name])
        value = " ".join(map(str, default)) if isinstance(default, tuple) else str(default)
        end = "" if default is MISSING else f" (default: {value})"
        if names:
            end = "" if value in ("None", "False") else end
            text = textwrap.shorten(text.partition(";")[0], TWO_LINES - len(end), placeholder=" …")
        text = (text + end).replace("%", "%%")
        if name in positional:
            first.add_argument(name, metavar=name.upper(), help=text)
        else:
            group.add_argument(word_of(kind, name), help=text, **_options(hints[name]))
    if rest := len(own) - len(shown):
        about = f"show the other {rest} flags too, and more about each"
        group.add_argument("--help-all", action="store_true", help=about)
    return page.format_help()


class _Full(argparse.RawDescriptionHelpFormatter):
    def __init__(self, prog: str, **others: Any) -> None:
        super().__init__(prog, max_help_position=26, **others)


class _Short(argparse.HelpFormatter):
    def __init__(self, prog: str, **others: Any) -> None:
        super().__init__(prog, max_help_position=26, **others)


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
        flag = word_of(type(settings), field.name)
        values = value if isinstance(value, tuple) else (value,)
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag.removeprefix('--')}")
        else:
            words += [flag, *map(str, values)]
    return f"python runners/{runner}.py {shlex.join(words)}".rstrip()
