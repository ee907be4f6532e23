"""Several processes on this machine, as torchrun starts them."""

import multiprocessing
import os
import socket
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import torch

from maw_gym.errors import InputError

# Where there are two GPUs the processes have one each, and meet over NCCL; else over gloo.
DEVICE = "cuda" if torch.cuda.device_count() >= 2 else "cpu"


def free_port() -> int:
    with socket.socket() as some:
        some.bind(("127.0.0.1", 0))
        return some.getsockname()[1]


def together(function: Callable[..., Any], *arguments: Any, count: int = 2) -> list[Any]:
    """What `function` returns in each of `count` processes; an exception counts as its result.

    Whoever fails ends all others, as torchrun does.
    """
    context = multiprocessing.get_context("spawn")
    port = free_port()
    workers, ends = [], []
    for number in range(count):
        here, there = context.Pipe()
        worker = context.Process(
            target=_run, args=(there, number, count, port, function, arguments), daemon=True
        )
        worker.start()
        there.close()
        workers.append(worker)
        ends.append(here)
    results: list[Any] = [None] * count
    try:
        for end in multiprocessing.connection.wait(ends, timeout=120):
            results[ends.index(end)] = end.recv()
        if not any(isinstance(result, Exception) for result in results):
            for row, end in enumerate(ends):
                if results[row] is None:
                    assert end.poll(120), "a process does not answer"
                    results[row] = end.recv()
        else:
            for row, end in enumerate(ends):
                if results[row] is None and end.poll(3):
                    results[row] = end.recv()
    finally:
        for worker in workers:
            worker.terminate()
            worker.join()
    return [result[0] if isinstance(result, tuple) else result for result in results]


def assert_lost(problem: Any, number: int) -> None:
    """What process `number` says in one line when another one has failed.

    Over NCCL it says nothing: it waits for the other until it is ended.
    """
    if DEVICE == "cuda":
        assert problem is None
        return
    assert isinstance(problem, InputError)
    assert f"process {number} has lost another one, whose message says why" in str(problem)
    assert "\n" not in str(problem)


def _run(
    end: Connection,
    number: int,
    count: int,
    port: int,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    os.environ.update(
        RANK=str(number),
        LOCAL_RANK=str(number),
        WORLD_SIZE=str(count),
        MASTER_ADDR="127.0.0.1",
        MASTER_PORT=str(port),
        OMP_NUM_THREADS="1",
        NCCL_NVLS_ENABLE="0",
    )
    from maw_gym import distributed

    torch.set_num_threads(1)
    try:
        distributed.start(DEVICE)
        end.send((function(*arguments),))
    except Exception as error:
        end.send(error)
    finally:
        distributed.stop()
