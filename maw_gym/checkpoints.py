"""Where a training stands: one checksummed file for each step kept, in a folder of its own.

A checkpoint holds tensors and JSON and nothing else, so that going on with a training never runs
what is in a file. It says what it is a checkpoint of: one of something else is not taken. A
training by epochs that was killed goes on after its last finished epoch and ends with the same
weights, bit for bit on the CPU.
"""

import contextlib
import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from maw_gym import files
from maw_gym.errors import DamagedFileError, InputError

log = logging.getLogger(__name__)

KIND: Final = "checkpoint"
KEPT: Final = 2
OPTIMIZER: Final = "optimizer"

# What a state of another version of the code, or of other shapes, does to the one who takes it up.
UNUSABLE: Final = (
    ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError
)  # fmt: skip


class Checkpoint(NamedTuple):
    """The state of a training between two steps."""

    path: Path
    step: int  # how far the training is, counted in what it counts
    tensors: dict[str, Tensor]
    state: dict[str, Any]  # JSON values


class Checkpoints:
    """The checkpoints of one training, of which the last two are kept; without a folder none."""

    def __init__(self, folder: Path | None, about: Mapping[str, Any]) -> None:
        self.folder = folder
        self.identity = files.content_key(about)

    def files(self) -> list[Path]:
        """The files, oldest first."""
        found = self.folder.glob("[0-9]*.safetensors") if self.folder else ()
        return sorted(path for path in found if path.stem.isdecimal())

    def write(
        self, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any]
    ) -> Path | None:
        """Write a checkpoint, then delete those that are no longer kept."""
        if self.folder is None:
            return None
        path = self.folder / f"{step:012d}.safetensors"
        settings = {"identity": self.identity, "step": step, "state": state}
        files.write(path, tensors, KIND, settings)
        reached = [file for file in self.files() if file <= path]
        for old in reached[:-KEPT]:
            old.unlink(missing_ok=True)
        return path

    def restore(self, take: Callable[[Checkpoint], None]) -> Checkpoint | None:
        """Let `take` put a training where the newest usable checkpoint says."""
        unusable = None
        for path in reversed(self.files()):
            try:
                settings, tensors = files.read(path, KIND)
            except DamagedFileError as problem:
                log.warning("checkpoint deleted: %s", problem)
                with contextlib.suppress(OSError):  # in a folder that is read only
                    path.unlink()
                continue
            if settings["identity"] != self.identity or int(path.stem) != settings["step"]:
                log.warning("checkpoint left out: %s is of another training or step", path)
                continue
            checkpoint = Checkpoint(path, settings["step"], tensors, settings["state"])
            try:
                take(checkpoint)
                return checkpoint
            except UNUSABLE as problem:
                unusable = f"{path} cannot be used ({type(problem).__name__}: {problem})"
                log.warning("checkpoint left out: %s", unusable)
        if unusable is not None:
            raise InputError(f"{unusable}; start the training anew")
        return None

    def forget(self) -> None:
        """Delete all, of a training that is done or that begins anew."""
        if self.folder is not None and self.folder.is_dir():
            for path in self.files():
                path.unlink(missing_ok=True)
            files.sweep(self.folder)
            with contextlib.suppress(OSError):  # something else is in it
                self.folder.rmdir()


def optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], Any]:
    """What an optimizer has gathered, as tensors by name, and its settings as JSON values."""
    state = optimizer.state_dict()
    tensors = {
        f"{OPTIMIZER}/{row}/{name}": value
        for row, entries in state["state"].items()
        for name, value in entries.items()
    }
    return tensors, state["param_groups"]


def restore_optimizer(
    optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], groups: Any
) -> None:
    """Put an optimizer of the same parameters where `optimizer_state` found one."""
    entries: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith(f"{OPTIMIZER}/"):
            _, row, entry = name.split("/")
            entries.setdefault(int(row), {})[entry] = value
    optimizer.load_state_dict({"state": entries, "param_groups": groups})


class Best(NamedTuple):
    """The best weights so far."""

    score: float  # what the epochs are compared by, the larger the better
    epoch: int  # 0 is the state before training
    weights: dict[str, Tensor]


class Progress(NamedTuple):
    """How far a training is."""

    epoch: int  # the last one finished; 0 is the state before training
    best: Best
    history: list[dict[str, float]]  # what was measured in each finished epoch


class EpochCheckpoints(Checkpoints):
    """The checkpoints of one training by epochs."""

    def __init__(
        self,
        folder: Path | None,
        about: Mapping[str, Any],
        weights: Mapping[str, Tensor],
        optimizer: torch.optim.Optimizer,
        generator: torch.Generator,
        schedule: torch.optim.lr_scheduler.LRScheduler | None = None,
    ) -> None:
        super().__init__(folder, {"about": about, "start": files.fingerprint(weights)})
        self.weights = weights
        self.optimizer = optimizer
        self.generator = generator
        self.schedule = schedule

    def write_epoch(self, progress: Progress) -> None:
        """Write the present state; whatever goes wrong leaves the one before."""
        tensors, groups = optimizer_state(self.optimizer)
        tensors |= {f"weights/{name}": value for name, value in self.weights.items()}
        tensors |= {f"best/{name}": value for name, value in progress.best.weights.items()}
        tensors["generator"] = self.generator.get_state()
        state = {
            "best": [progress.best.score, progress.best.epoch],
            "history": progress.history,
            "groups": groups,
            "schedule": self.schedule and self.schedule.state_dict(),
        }
        self.write(progress.epoch, tensors, state)

    def restore_epoch(self, start: Progress) -> Progress:
        """Put weights, optimizer, schedule and generator where the last checkpoint says."""
        taken = [start]
        if self.restore(lambda found: taken.append(self._take(found))) is not None:
            log.info("%s: going on after epoch %d", self.folder, taken[-1].epoch)
        return taken[-1]

    def _take(self, checkpoint: Checkpoint) -> Progress:
        tensors, state = checkpoint.tensors, checkpoint.state
        best = {name: tensors[f"best/{name}"].to(t.device) for name, t in self.weights.items()}
        with torch.no_grad():
            for name, value in self.weights.items():
                value.copy_(tensors[f"weights/{name}"])
        restore_optimizer(self.optimizer, tensors, state["groups"])
        if self.schedule is not None:
            self.schedule.load_state_dict(state["schedule"])
        self.generator.set_state(tensors["generator"])
        score, epoch = state["best"]
        return Progress(checkpoint.step, Best(score, epoch, best), state["history"])


def stage_folder(path: Path, stage: str) -> Path:
    """Where the checkpoints of one stage of the training are whose result will be `path`."""
    return path.with_suffix(".checkpoints") / stage


def forget_checkpoints(path: Path) -> None:
    """Delete the checkpoints of all stages."""
    shutil.rmtree(path.with_suffix(".checkpoints"), ignore_errors=True)
