"""Threads: work shared out among the cores, and work done aside.

`map_in_threads` gives each core a Python thread, instead of all cores to every operation. An
operation that runs on several threads ends at a barrier, where all wait for the slowest: of many
middling operations in a row, more is lost there than computed, and where another process has one of
the cores, every barrier waits for it. Threads that each take the next piece of work never wait.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self, TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_threads(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int | None = None
) -> Iterator[Result]:
    """``map(function, items)``, several at once, each with torch's operations on one thread.

    Args:
        function: called in threads of its own: it may not rely on torch.no_grad() around the map,
            which each thread has for itself.
        items: taken as they are needed, in the calling thread.
        threads: how many at once; None is as many as torch uses for an operation.

    Yields:
        The results in order. What a function raises is raised where its result would be, and no
        further one is called.
    """
    usual = torch.get_num_threads()
    threads = usual if threads is None else threads
    if threads < 2:
        yield from map(function, items)
        return
    pending: deque[Future[Result]] = deque()
    torch.set_num_threads(1)  # threads that start from here on have this setting
    try:
        with ThreadPoolExecutor(threads) as pool:
            try:
                for item in items:
                    pending.append(pool.submit(function, item))
                    if len(pending) > threads:
                        yield pending.popleft().result()
                while pending:
                    yield pending.popleft().result()
            finally:
                for future in pending:
                    future.cancel()
    finally:
        torch.set_num_threads(usual)


class ThreadAside:
    """A thread that does one thing after the other, beside the caller's own work.

    A context manager: in the end, after an interrupt too, everything is done. Where one of the
    things fails, none behind it is done: its error is raised by a later `submit`, or in the end
    unless the caller has failed too.

    Args:
        waiting: how many things may be undone when `submit` returns, at least 1: what they hold is
            held so long.
    """

    def __init__(self, waiting: int) -> None:
        self._pool = ThreadPoolExecutor(1)
        self._pending: deque[Future[Any]] = deque()
        self._waiting = waiting
        self._failure: BaseException | None = None

    def submit(self, function: Callable[..., Result], *arguments: Any) -> Future[Result]:
        """Let the thread call `function` in its turn; goes on when few enough wait."""
        future = self._pool.submit(self._call, function, *arguments)
        self._pending.append(future)
        while self._pending and (len(self._pending) > self._waiting or self._pending[0].done()):
            self._pending.popleft().result()
        return future

    def _call(self, function: Callable[..., Result], *arguments: Any) -> Result:
        if self._failure is not None:
            raise self._failure
        try:
            return function(*arguments)
        except BaseException as failure:
            self._failure = failure
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *more: object) -> None:
        self._pool.shutdown()
        # Who closes a generator has not failed, and is to hear of it.
        if self._failure is not None and kind in (None, GeneratorExit):
            raise self._failure
