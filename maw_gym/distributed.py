"""Several processes that run the same program on their own shares of the work (torch.distributed).

``torchrun --nproc-per-node 4 runners/train_encoder.py ...`` starts them; each then calls `start`.
Without torchrun there is one process, and everything here does what one process would do. What all
processes must do together says so: whoever leaves it out makes the others wait.
"""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, Final, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.distributed.distributed_c10d import PrefixStore
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from maw_gym.errors import InputError

Thing = TypeVar("Thing")

ADDRESS: Final = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
PATIENCE: Final = timedelta(minutes=30)  # how long processes wait for each other
MEETING: Final = timedelta(minutes=2)  # and for the last to come at the beginning


def start(device: str = "auto") -> None:
    """Join the processes that torchrun has started; without torchrun nothing happens."""
    if dist.is_initialized() or "WORLD_SIZE" not in os.environ:
        return
    missing = [name for name in ADDRESS if name not in os.environ]
    if missing:
        raise InputError(
            f"WORLD_SIZE is set and {', '.join(missing)} is not; start several processes by"
            " torchrun --nproc-per-node N"
        )
    # Of a number that nobody has, or two have, the others would hear when their patience ends.
    ranks = os.environ["RANK"], os.environ["WORLD_SIZE"]
    if not all(text.isdecimal() for text in ranks) or not int(ranks[0]) < int(ranks[1]):
        raise InputError(
            f"RANK {ranks[0]!r} is none of the numbers from 0 below WORLD_SIZE {ranks[1]!r}; start"
            " several processes by torchrun --nproc-per-node N"
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
    try:
        store, rank, count = next(rendezvous("env://", timeout=MEETING))
        store.set_timeout(PATIENCE)
        dist.init_process_group(
            "nccl" if cuda else "gloo",
            timeout=PATIENCE,
            store=PrefixStore(_attempt(), store),
            rank=rank,
            world_size=count,
        )
    except (RuntimeError, ValueError) as problem:
        where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        raise InputError(
            f"no rendezvous of {os.environ['WORLD_SIZE']} processes at {where}:"
            f" {str(problem).splitlines()[0]}"
        ) from None


def _attempt() -> str:
    """What tells the addresses of this start from those of processes that have died since."""
    shared = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    alone = os.environ.get("GROUP_WORLD_SIZE") == "1"
    return f"start {os.environ['TORCHELASTIC_RESTART_COUNT']}" if shared and alone else "start"


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


def wait() -> None:
    """Go on when all processes are here; all do this together."""
    if processes() > 1:
        with others():
            dist.barrier()


def own_range(count: int) -> slice:
    """This process's range of `count` things in a row: of equal sizes, but for one."""
    return slice(*(count * at // processes() for at in (process(), process() + 1)))


def from_first(thing: Thing) -> Thing:
    """What the first process has; all do this together."""
    if processes() == 1:
        return thing
    box = [thing]
    with others():
        dist.broadcast_object_list(box)
    return box[0]


def from_all(thing: Thing) -> list[Thing]:
    """What each process has, in the order of their numbers; all do this together."""
    if processes() == 1:
        return [thing]
    things: list[Thing] = [thing] * processes()
    with others():
        dist.all_gather_object(things, thing)
    return things


def share(count: int) -> slice:
    """This process's rows of a batch of `count`; all where there are fewer than processes."""
    return own_range(count) if count >= processes() else slice(0, count)


def gathered(rows: Tensor, count: int) -> Tensor:
    """All `count` rows of a batch, with gradients, from every process's `share`."""
    if processes() == 1 or count < processes():
        return rows
    # Shares differ by one row, and what is exchanged must have one shape.
    sizes = [
        count * (at + 1) // processes() - count * at // processes() for at in range(processes())
    ]
    padding = rows.new_zeros(max(sizes) - len(rows), *rows.shape[1:])
    gather: Callable[[Tensor], Tensor] = _Gathered.apply
    parts = gather(torch.cat([rows, padding])).chunk(processes())
    return torch.cat([part[:size] for part, size in zip(parts, sizes, strict=True)])


class _Gathered(torch.autograd.Function):
    """All processes' rows; backwards, all processes' gradients of one's own."""

    @staticmethod
    def forward(context: Any, rows: Tensor) -> Tensor:
        del context
        parts = [torch.empty_like(rows) for _ in range(processes())]
        with others():
            dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> Tensor:
        del context
        whole = gradient.clone()
        with others():
            dist.all_reduce(whole)
        return whole.chunk(processes())[process()]


class _Losses(nn.Module):
    """A module with the weights of a training, as DistributedDataParallel wants one."""

    def __init__(self, weights: Iterable[Tensor]) -> None:
        super().__init__()
        self.weights = nn.ParameterList(weights)

    def forward(self, loss: Callable[[], Tensor]) -> Tensor:
        return loss()


def with_mean_gradients(weights: Iterable[Tensor]) -> nn.Module:
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


def check_same(what: str, key: str) -> None:
    """Refuse to go on where processes have different keys of `what`; all do this together."""
    keys = from_all(key)
    for number, other in enumerate(keys):
        if other != keys[0]:
            raise InputError(
                f"process {number} has another {what} ({other[:16]}) than process 0"
                f" ({keys[0][:16]}); give all of them the same files"
            )
