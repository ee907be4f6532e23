"""Standard output and standard error that may be closed, full, or unable to show a character."""

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from typing import Any


class _Stream:
    """A stream whose reader may go away: what is written then is dropped.

    Args:
        stream: what is written to.
        dropped: errors that are not told: of standard error all, of standard output that nobody
            reads any more.
    """

    def __init__(self, stream: Any, dropped: type[OSError]) -> None:
        self._stream = stream
        self._dropped = dropped

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, and say that all was written."""
        self._guarded(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flush."""
        self._guarded(self._stream.flush)

    def _guarded(self, call: Any) -> None:
        try:
            call()
        except self._dropped:
            # What the stream still holds would fail once more when Python ends.
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


@contextlib.contextmanager
def lasting_streams() -> Iterator[None]:
    """Let a program finish its work whatever becomes of its standard streams.

    Characters that a stream cannot show are escaped. Threads of libraries, such as TensorBoard's
    writer, tell of a full disk by a traceback of their own: those are left out, the main thread
    tells it in one line.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
    told = threading.excepthook

    def quiet(problem: threading.ExceptHookArgs) -> None:
        if not issubclass(problem.exc_type, OSError):
            told(problem)

    threading.excepthook = quiet
    output: Any = _Stream(sys.stdout, BrokenPipeError)
    try:
        with (
            contextlib.redirect_stdout(output),
            contextlib.redirect_stderr(_Stream(sys.stderr, OSError)),
        ):
            yield
            output.flush()
    finally:
        threading.excepthook = told
