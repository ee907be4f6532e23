"""Folds and encoders of a comparison that are worked on at once, each in a process of its own."""

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch

from maw_gym.errors import InputError


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
    # The bars of several processes would write over each other.
    os.environ.setdefault("TQDM_DISABLE", "1")
    threads = max(1, torch.get_num_threads() // jobs)
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        try:
            waiting = [
                pool.submit(_call, function, call, threads, number)
                for number, call in enumerate(calls)
            ]
            for done in as_completed(waiting):
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


def _call(function: Callable[..., None], call: tuple[Any, ...], threads: int, number: int) -> None:
    torch.set_num_threads(threads)
    if torch.cuda.is_available():
        torch.cuda.set_device(number % torch.cuda.device_count())
    function(*call)
