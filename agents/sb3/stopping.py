"""Being told to stop: SIGINT (Ctrl-C) and SIGTERM."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)


class Stopped(KeyboardInterrupt):
    """The user or the system wants the run to end.

    Args:
        number: of the signal.
        advice: how to go on.
    """

    def __init__(self, number: int, advice: str) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}; {advice}")
        self.status = 128 + number
        self._given = (number, advice)

    def __reduce__(self) -> tuple[type["Stopped"], tuple[int, str]]:
        """What it is made of, for another process."""
        return Stopped, self._given


class StopRequest:
    """What a running program does about SIGINT and SIGTERM.

    Outside `deferred` a signal raises `Stopped` where the program stands. Inside, the first is only
    noted, so that the step in progress can be finished, and a second one raises.

    Attributes:
        advice: how to go on, for the message.
        received: the signal that was noted, or None.
    """

    def __init__(self) -> None:
        self.advice = "run the same command again"
        self.received: int | None = None
        self._deferring = False

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handle the signals; does nothing outside the main thread, where Python forbids it."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before: dict[signal.Signals, Any] = {}
        try:
            for number in SIGNALS:
                before[number] = signal.signal(number, self._handle)
            yield
        finally:
            for handled, handler in before.items():
                signal.signal(handled, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Only note the first signal, and raise at the end unless it was raised before.

        Whoever is inside calls `raise_if_received` where stopping is good.
        """
        self.received = None
        self._deferring = True
        try:
            with self.installed():
                yield
                self.raise_if_received()
        finally:
            self._deferring = False

    def raise_if_received(self) -> None:
        """Raise `Stopped` if a signal was noted."""
        if self.received is not None:
            raise Stopped(self.received, self.advice)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        del frame
        if self._deferring and self.received is None:
            self.received = number
            return
        raise Stopped(number, self.advice)


# Signals belong to the process, and so does the answer to them.
STOP: Final = StopRequest()
