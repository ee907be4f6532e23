"""Work shared out among the cores.

`map_in_threads` gives each core a Python thread, instead of all cores to every operation. An
operation that runs on several threads ends at a barrier, where all wait for the slowest: of many
middling operations in a row, more is lost there than computed, and where another process has one of
the cores, every barrier waits for it. Threads that each take the next piece of work never wait.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_threads(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int | None = None
) -> Iterator[Result]:
    """``map(function, items)``, several at once, each with torch's operations on one thread."""
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
