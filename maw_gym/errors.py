"""The one exception for mistakes of the caller."""


class InputError(ValueError):
    """A user's mistake: one line that shows the value found and the way out.

    The runners print the message on stderr and exit with status 2; in a program it is a ValueError.
    """
