"""Folds and encoders of a comparison that are worked on at once, each in a process of its own."""

import multiprocessing
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from typing import TYPE_CHECKING, Any

import torch

from maw_gym.errors import InputError

if TYPE_CHECKING:
    from multiprocessing.sharedctypes import Synchronized


def run_side_by_side(
    function: Callable[..., None], calls: Sequence[tuple[Any, ...]], jobs: int
) -> None:
    """Call a function with each of `calls`, `jobs` at once.

    The cores are shared out among the processes, and so are the GPUs, where there are several.

    Args:
        function: of a module, so that another process finds it; leaves what it does in files.
        calls: its arguments.
        jobs: processes.

    Raises:
        InputError: a process was ended from outside. What a call raises is raised here, and the
            other processes are ended.
    """
    context = multiprocessing.get_context("spawn")
    share = (max(1, torch.get_num_threads() // jobs), context.Value("i", 0))
    # The bars of several processes would write over each other; tqdm asks when it is imported.
    bars = os.environ.get("TQDM_DISABLE")
    os.environ["TQDM_DISABLE"] = "1"
    try:
        with ProcessPoolExecutor(jobs, context, _begin, share) as pool:
            _wait_for_all(pool, [pool.submit(function, *call) for call in calls], jobs)
    finally:
        os.environ.pop("TQDM_DISABLE")
        if bars is not None:
            os.environ["TQDM_DISABLE"] = bars


def _wait_for_all(pool: ProcessPoolExecutor, calls: Sequence[Future[None]], jobs: int) -> None:
    try:
        for done in as_completed(calls):
            done.result()
    except BaseException as problem:
        pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()
        if isinstance(problem, BrokenProcessPool):
            raise InputError(
                f"one of {jobs} processes was ended from outside, perhaps for want of memory;"
                " go on with --resume and fewer --jobs"
            ) from None
        raise


def _begin(threads: int, started: "Synchronized[int]") -> None:
    """Take a share of the cores and of the GPUs, and end with the process that asked for it."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    torch.set_num_threads(threads)
    with started.get_lock():
        number = started.value
        started.value += 1
    if torch.cuda.device_count() > 1:
        torch.cuda.set_device(number % torch.cuda.device_count())
