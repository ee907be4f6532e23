"""The exceptions for what the caller can mend, and checks of what a caller gives."""

import difflib
import operator
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


class InputError(ValueError):
    """A user's mistake: one line that shows the value found and the way out.

    The runners print the message on stderr and exit with status 2; in a program it is a ValueError.
    """


class DamagedFileError(InputError):
    """A file that was read whole and does not hold what was once written.

    What is kept for speed is then made anew. A file that could not be read, is of another kind or
    of a newer version is none of these: that is an InputError and nothing more.
    """


class UnwritableError(InputError):
    """A place that cannot be written to."""


def printable(text: str) -> str:
    """`text` with control characters escaped: what comes from a file must not draw on a screen."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its kind."""
    return next(iter(str(error).splitlines()), type(error).__name__).strip()


def shown(value: object) -> str:
    """`value` on one line, cut to a readable length."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else text[:79] + "…"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A question for a message, with a blank behind it; empty where nothing known is like it."""
    close = difflib.get_close_matches(word, list(known), 1, 0.7)
    return f"did you mean {close[0]!r}? " if close else ""


def checked_texts(values: Any, what: str = "texts") -> list[str]:
    """`values`, an iterable of strings that is no string itself, as a list; or an InputError."""
    if isinstance(values, str):
        raise InputError(f"give a list of {what}, not the single text {shown(values)}")
    if not isinstance(values, Iterable) or isinstance(values, Mapping):
        raise InputError(f"give a list of {what}, not {shown(values)}")
    texts = list(values)
    if set(map(type, texts)) <= {str}:  # the check of each costs as much as encoding it
        return texts
    for row, text in enumerate(texts):
        if not isinstance(text, str):
            kind = type(text).__name__
            raise InputError(
                f"{what} must be strings; number {row} is {shown(text)} of type {kind}"
            )
    return texts


def checked_int(value: Any, name: str, least: int, most: int | None = None) -> int:
    """`value` as a whole number in [least, most], which a bool is not; or an InputError."""
    try:
        number = least - 1 if isinstance(value, (bool, np.bool_)) else operator.index(value)
    except TypeError:
        number = least - 1
    if number < least or (most is not None and number > most):
        bounds = f"of {least} or more" if most is None else f"from {least} to {most}"
        raise InputError(f"{name} must be a whole number {bounds}, got {shown(value)}")
    return number


def expanded(path: str | Path) -> Path:
    """`path` with a leading ~ or ~user replaced by that home folder; or an InputError."""
    if not isinstance(path, (str, Path)):
        raise InputError(f"a path must be a string or a Path, got {shown(path)}")
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise InputError(
            f"no home folder is known for {str(path)!r}; give the whole path"
        ) from None


def one_of(name: str, value: object, known: Sequence[str]) -> None:
    """Refuse a value that is none of the `known` ones by an InputError."""
    if value not in known:
        raise InputError(f"unknown {name} {shown(value)}; choose one of {', '.join(known)}")
