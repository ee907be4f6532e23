"""Two processes on this machine that torchrun might have started."""

import atexit
import multiprocessing.connection
import os
import resource
import signal
import socket

import torch

from maw_gym.errors import InputError

# Where there are two GPUs the processes have one each, and meet over NCCL; else over gloo.
DEVICE = "cuda" if torch.cuda.device_count() >= 2 else "cpu"
COUNT = 2

_workers = []  # of all tests: each takes seconds to start


def free_port():
    with socket.socket() as some:
        some.bind(("127.0.0.1", 0))
        return some.getsockname()[1]


def together(function, *arguments):
    """What `function` returns in each process; an exception counts as its result."""
    context = multiprocessing.get_context("spawn")
    while len(_workers) < COUNT:
        here, there = context.Pipe()
        worker = context.Process(target=_serve, args=(there, len(_workers)), daemon=True)
        worker.start()
        there.close()
        _workers.append((worker, here))
    port = free_port()
    for _, end in _workers:
        end.send((port, function, arguments))
    results = [None] * COUNT
    ends = [end for _, end in _workers]
    multiprocessing.connection.wait(ends, timeout=120)
    failed = False
    for _ in range(COUNT):  # NCCL waits for one that has failed for ever
        for row, end in enumerate(ends):
            if results[row] is None and end.poll(5 if failed else 60):
                results[row] = end.recv()
                failed = failed or isinstance(results[row], Exception)
    if None in results:
        end_all()
    return [result[0] if isinstance(result, tuple) else result for result in results]


@atexit.register
def end_all():
    """End the processes; the next call starts others."""
    while _workers:
        worker, _ = _workers.pop()
        worker.terminate()
        worker.join()


def assert_lost(problem, number):
    """What process `number` says in one line when another one has failed."""
    if DEVICE == "cuda":  # over NCCL it says nothing: it waits for the other until it is ended
        assert problem is None
        return
    assert isinstance(problem, InputError)
    assert f"process {number} has lost another one, whose message says why" in str(problem)
    assert "\n" not in str(problem)


def full_disk():
    """No file of this process may be larger than 2,000 bytes, until the next call of `together`."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


def _serve(end, number):
    told = {"RANK": number, "LOCAL_RANK": number, "WORLD_SIZE": COUNT, "MASTER_ADDR": "127.0.0.1"}
    told |= {"OMP_NUM_THREADS": 1, "NCCL_NVLS_ENABLE": 0}
    os.environ.update({name: str(value) for name, value in told.items()})
    from maw_gym import distributed

    torch.set_num_threads(1)
    before = dict(os.environ)
    while True:
        port, function, arguments = end.recv()
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        os.environ.update(before, MASTER_PORT=str(port))
        try:
            distributed.start(DEVICE)
            end.send((function(*arguments),))
        except Exception as error:
            end.send(error)
        finally:
            distributed.stop()
