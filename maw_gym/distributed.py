"""Several processes that run the same program on their own shares of the work (torch.distributed).

``torchrun --nproc-per-node 4 runners/train_encoder.py ...`` starts them; each then calls `start`.
Without torchrun there is one process, and everything here does what one process would do. What all
processes must do together says so: whoever leaves it out makes the others wait.
"""

import os
import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from maw_gym.errors import InputError, UnwritableError, first_line

Thing = TypeVar("Thing")

ADDRESS: Final = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
PATIENCE: Final = timedelta(minutes=30)  # how long processes wait for each other
MEETING: Final = timedelta(minutes=2)  # and for the last to come at the beginning


def start(device: str = "auto") -> None:
    """Join the processes that torchrun has started; without torchrun nothing happens."""
    if dist.is_initialized() or "WORLD_SIZE" not in os.environ:
        return
    given = {name: os.environ.get(name, "") for name in ADDRESS}
    ranks = given["RANK"], given["WORLD_SIZE"]
    # Of a number that nobody has, or two have, the others would hear when their patience ends.
    if (
        not all(given.values())
        or not all(text.isdecimal() for text in ranks)
        or int(ranks[0]) >= int(ranks[1])
    ):
        told = ", ".join(f"{name}={value}" for name, value in given.items())
        raise InputError(
            f"no process of several has {told}; start them by torchrun --nproc-per-node N"
        )
    cuda = torch.cuda.is_available() and device != "cpu"
    if cuda:
        local, gpus = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
        if local >= gpus:
            raise InputError(
                f"there is no GPU for process {local} of this machine, which has {gpus}; start as"
                f" many, --nproc-per-node {gpus}"
            )
        torch.cuda.set_device(local)
    # Addresses of this start are not those of processes that have died since.
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    alone = os.environ.get("GROUP_WORLD_SIZE") == "1"
    attempt = os.environ["TORCHELASTIC_RESTART_COUNT"] if shared and alone else ""
    try:
        store, rank, count = next(rendezvous("env://", timeout=MEETING))
        store.set_timeout(PATIENCE)
        dist.init_process_group(
            "nccl" if cuda else "gloo",
            timeout=PATIENCE,
            store=PrefixStore(f"start {attempt}", store),
            rank=rank,
            world_size=count,
        )
    except (RuntimeError, ValueError) as problem:
        where = f"{given['MASTER_ADDR']}:{given['MASTER_PORT']}"
        raise InputError(
            f"no rendezvous of {ranks[1]} processes at {where}: {first_line(problem)}"
        ) from None


def stop() -> None:
    """Leave the other processes; without any nothing happens."""
    if dist.is_initialized():
        dist.destroy_process_group()


def processes() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


def process() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    """Whether this process is the one that writes files and shows progress."""
    return process() == 0


@contextmanager
def others() -> Iterator[None]:
    """One line in the place of what the library says when another process has gone."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as problem:
        if processes() == 1:
            raise
        raise InputError(
            f"process {process()} has lost another one, whose message says why:"
            f" {' '.join(str(problem).split())[:120]}"
        ) from problem


@others()
def wait() -> None:
    """Go on when all processes are here; all do this together."""
    if processes() > 1:
        dist.barrier()


def own_range(count: int, at: int | None = None) -> slice:
    """The range of `count` things in a row of this process, or of another: equal, but for one."""
    at = process() if at is None else at
    return slice(count * at // processes(), count * (at + 1) // processes())


@others()
def from_all(thing: Thing) -> list[Thing]:
    """What each process has, in the order of their numbers; all do this together."""
    things = [thing] * processes()
    if processes() > 1:
        dist.all_gather_object(things, thing)
    return things


def from_first(thing: Thing) -> Thing:
    """What the first process has; all do this together."""
    return from_all(thing)[0]


def share(count: int) -> slice:
    """This process's rows of a batch of `count`; all where there are fewer than processes."""
    return own_range(count) if count >= processes() else slice(0, count)


def gathered(rows: Tensor, count: int) -> Tensor:
    """All `count` rows of a batch, with gradients, from every process's `share`."""
    if processes() == 1 or count < processes():
        return rows
    # Shares differ by one row, and what is exchanged must have one shape.
    ranges = [own_range(count, at) for at in range(processes())]
    sizes = [one.stop - one.start for one in ranges]
    padding = rows.new_zeros(max(sizes) - len(rows), *rows.shape[1:])
    gather: Callable[[Tensor], Tensor] = _Gathered.apply
    parts = gather(torch.cat([rows, padding])).chunk(processes())
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


class _Gathered(torch.autograd.Function):
    """All processes' rows; backwards, all processes' gradients of one's own."""

    @staticmethod
    @others()
    def forward(context: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows) for _ in range(processes())]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    @others()
    def backward(context: Any, gradient: Tensor) -> Tensor:
        whole = gradient.clone()
        dist.all_reduce(whole)
        return whole.chunk(processes())[process()]


class _Losses(nn.Module):
    """A module with the weights of a training, as DistributedDataParallel wants one."""

    def __init__(self, weights: Iterable[Tensor]) -> None:
        super().__init__()
        self.weights = nn.ParameterList(weights)

    def forward(self, loss: Callable[[], Tensor]) -> Tensor:
        return loss()


def averaging(weights: Iterable[Tensor]) -> nn.Module:
    """A module that calls a loss; its gradients will be their mean over processes."""
    losses = _Losses(weights)
    return DistributedDataParallel(losses) if processes() > 1 else losses


def check_shares(batch_size: int) -> None:
    """Refuse a batch that the processes cannot share evenly."""
    count = processes()
    if batch_size % count:
        raise InputError(
            f"batch_size {batch_size} cannot be shared by {count} processes; give a multiple"
            f" of {count}"
        )


def check_same(what: str, key: str) -> None:
    """Refuse to go on where processes have different keys of `what`; all do this together."""
    keys = from_all(key)
    for number, other in enumerate(keys):
        if other != keys[0]:
            raise InputError(
                f"process {number} has another {what} ({other[:16]}) than process 0"
                f" ({keys[0][:16]}); give all of them the same files"
            )


def check_one_folder(folder: Path) -> None:
    """Refuse to go on where a folder is another for some of the processes; all do this together."""
    mark = folder / f".{from_first(secrets.token_hex(16))}"
    if is_first():
        try:
            folder.mkdir(parents=True, exist_ok=True)
            mark.touch()
        except OSError as problem:
            raise UnwritableError(
                f"{folder} cannot be written: {problem.strerror}; name another place"
            ) from None
    wait()
    seen = from_all(mark.exists())
    if is_first():
        mark.unlink()
    if not all(seen):
        raise InputError(
            f"process {seen.index(False)} does not see what process 0 writes to {folder}; give all"
            " of them one folder (of caches: one MAW_GYM_HOME)"
        )
