"""The exceptions for what the caller can mend."""


class InputError(ValueError):
    """A user's mistake: one line that shows the value found and the way out.

    The runners print the message on stderr and exit with status 2; in a program it is a ValueError.
    """


class DamagedFileError(InputError):
    """A file that was read whole and does not hold what was once written.

    What is kept for speed is then made anew. A file that could not be read, is of another kind or
    of a newer version is none of these: that is an InputError and nothing more.
    """


def printable(text: str) -> str:
    """`text` with control characters escaped: what comes from a file must not draw on a screen."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its kind."""
    return next(iter(str(error).splitlines()), type(error).__name__).strip()
